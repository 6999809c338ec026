"""Charts as inline SVG: lines, bars, matrices. Their colours are the style sheet's, for light and dark pages."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 24  # around a plot
COLOURS = 6  # that the style sheet has
TICKS = 4  # about as many on an axis
DIGITS = 6  # that fit in LEFT
BAR, BETWEEN = 11, 6  # heights
LONGEST = 22  # characters of a name beside a bar or a matrix


def lines(title: str, series: Mapping[str, Points]) -> str:
    """Curves over the same axis; points that are no numbers are left out, one point alone is a dot."""
    curves = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return ""
    xs, ys = ([point[axis] for points in curves.values() for point in points] for axis in (0, 1))
    across, up = ticks(min(0, *xs), max(xs)), ticks(min(ys), max(ys))
    (x0, x1), (y0, y1) = (min(0, *xs), max(*xs, 1)), (min(*ys, up[0]), max(*ys, up[-1]))

    def x(value: float) -> float:
        return LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (y1 - value) / (y1 - y0 or 1) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value, words in zip(up, labelled(up), strict=True):
        parts.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(text(LEFT - 6, y(value) + 4, words, "end"))
    for value, words in zip(across, labelled(across), strict=True):
        parts.append(text(x(value), HEIGHT - 6, words, "middle"))
    for number, points in enumerate(curves.values()):
        path = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points)
        dashes = ' stroke-dasharray="5 3"' if number >= COLOURS else ""
        parts.append(f'<path class="curve" stroke="{colour(number)}"{dashes} d="M{path}"/>')
        if len(points) < 8:
            parts += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour(number)}"/>' for a, b in points]
    return figure(title, parts, HEIGHT, list(curves))


def bars(title: str, rows: Mapping[str, Sequence[float | None]], names: Sequence[str]) -> str:
    """Per row a bar for each of `names`, in percent with its figure; none where there is no number."""
    left, right = 8 + 6.2 * min(LONGEST, max(map(len, rows))), WIDTH - 42
    pitch = BAR * len(names) + BETWEEN
    parts, top = [], 2.0
    for row, values in rows.items():
        parts.append(text(left - 6, top + (pitch - BETWEEN) / 2 + 4, short(row), "end", "name"))
        for number, value in enumerate(values):
            y = top + number * BAR
            if value is None or not math.isfinite(value):
                parts.append(text(left + 4, y + BAR, "–"))
                continue
            length = max(0.5, (right - left) * min(100.0, value) / 100)
            tip = f"<title>{escape(row)}, {escape(names[number])}: {value:.1f}</title>"
            size = f'width="{length:.1f}" height="{BAR - 1}"'
            parts.append(f'<rect x="{left:.1f}" y="{y:.1f}" {size} rx="1.5" fill="{colour(number)}">{tip}</rect>')
            parts.append(text(left + length + 4, y + BAR - 0.5, f"{value:.0f}"))
        top += pitch
    return figure(title, parts, top, names if len(names) > 1 else [])


def matrix(title: str, names: Sequence[str], values: Sequence[Sequence[float | None]], what: str) -> str:
    """A square table of shares in [0,1] as shades, the rows' names beside it; `what` says in words what a cell is.

    `what` has the places {row}, {column} and {value}.
    """
    foot = 6.2 * min(LONGEST, max(map(len, names)))
    left, top = 8 + foot, 2.0
    cell = (WIDTH - left - 4) / len(names)
    deep = top + cell * len(names)
    parts = []
    for i, row in enumerate(names):
        parts.append(text(left - 6, top + (i + 0.5) * cell + 4, short(row), "end", "name"))
        x = left + (i + 0.5) * cell + 4
        parts.append(
            f'<text class="name" transform="translate({x:.1f} {deep + 6:.1f}) rotate(-90)" text-anchor="end">'
            f"{escape(short(row))}</text>"
        )
        for j, column in enumerate(names):
            value = values[i][j]
            if value is None or not math.isfinite(value):
                continue
            place = f'x="{left + j * cell:.1f}" y="{top + i * cell:.1f}" width="{cell:.1f}" height="{cell:.1f}"'
            tip = escape(what.format(row=row, column=column, value=f"{100 * value:.0f}%"))
            shade = f'fill="var(--c0)" fill-opacity="{min(1.0, max(0.0, value)):.3f}"'
            parts.append(f"<rect {place} {shade}><title>{tip}</title></rect>")
    parts.append(f'<path class="grid" fill="none" d="M{left:.1f} {top}H{WIDTH - 4}V{deep:.1f}H{left:.1f}Z"/>')
    return figure(title, parts, deep + foot + 8, [])


def figure(title: str, parts: Sequence[str], height: float, names: Sequence[str]) -> str:
    keys = "".join(
        f'<span><i class="{"again" if n >= COLOURS else ""}" style="background:{colour(n)}"></i>{escape(name)}</span>'
        for n, name in enumerate(names)
    )
    key = f'<div class="key">{keys}</div>' if names else ""
    drawing = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}{key}</figure>\n"


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    kinds = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kinds}>{escape(words)}</text>'


def ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose a range, about `TICKS` of them."""
    if low == high:
        low, high = (low - 1, high + 1) if low == 0 else (low - abs(low) / 2, high + abs(high) / 2)
    raw = (high - low) / TICKS
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def labelled(values: Sequence[float]) -> list[str]:
    """An axis's numbers in one notation: as 1.5e-4 all of them where one would not fit beside a plot otherwise."""
    plain = [f"{value:g}" for value in values]
    if all(len(one) <= DIGITS and "e" not in one for one in plain):
        return plain
    parts = [f"{value:e}".split("e") for value in values]
    return [f"{float(mantissa):g}e{int(power)}" if float(mantissa) else "0" for mantissa, power in parts]


def colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
