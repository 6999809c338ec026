"""Prediction piece by piece: windows of an image, or perspective views of a panorama, blended back into one map.

The logits of a piece are added where it was taken, times a weight that falls smoothly to its border; rows that no later
piece reaches are divided by the weights' sum and handed on. So a panorama's logits never stand in memory as a whole.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from trans4pass.data import Size
from trans4pass.data.views import MIN_SIDE
from trans4pass.errors import ConfigError
from trans4pass.models import as_float, not_black
from trans4pass.precision import Precision
from trans4pass.sphere import Panorama, Pinhole, Warp, rotation

from .predictor import TTA, Predictor, no_progress

WINDOW: Size = (1024, 512)  # width, height in pixels
ROWS = 256  # of a panorama that are warped, or handed on, at a time
UNSEEN = 1e-4
MOST_VIEWS = 64  # around the sphere at one pitch


class Window:
    """A rectangle of the image that is predicted by itself; its columns may go on at the other side.

    Attributes:
        top: the first row of the image that it reaches.
        bottom: the first one below it.
    """

    def __init__(self, top: int, columns: Tensor, height: int, overlap: float):
        self.top, self.bottom, self.columns, self.overlap = top, top + height, columns, overlap

    def look(self, images: Tensor) -> Tensor:
        """Of images (B,3,H,W) what the network sees, (B,3,h,w)."""
        return images[..., self.top : self.bottom, self.columns]

    def weight(self) -> Tensor:
        """Of each pixel of the piece, (h,w), above 0; asked after `look`."""
        return taper(self.bottom - self.top, self.overlap)[:, None] * taper(len(self.columns), self.overlap)

    def place(self, x: Tensor, onto: Tensor, first: int) -> None:
        """Add the piece's values (B,C,h,w) to a map (B,C,rows,W) whose first row is the image's row `first`."""
        rows = onto[..., self.top - first : self.bottom - first, :]
        rows.index_add_(-1, self.columns.to(onto.device), x)


class PerspectiveView:
    """A pinhole's view of a full panorama, used as a `Window` is; weighted by its pixels' solid angles, too.

    `column` is the border between two of the panorama's columns that it is centred on.
    """

    def __init__(self, panorama: Panorama, view: Pinhole, column: int, pitch: float, overlap: float):
        self.view, self.pitch, self.overlap = view, pitch, overlap
        seen = Warp(view, Panorama(90, 180), rotation(pitch=pitch).T).seen  # in cells of 2 degrees
        rows, columns = (seen.any(axis).nonzero()[:, 0] for axis in (1, 0))
        degrees = panorama.fov / panorama.width, (panorama.top - panorama.bottom) / panorama.height
        highest, lowest = 90 - 2 * (int(rows[0]) - 1), 90 - 2 * (int(rows[-1]) + 2)
        self.top = max(0, math.floor((panorama.top - highest) / degrees[1]))
        self.bottom = min(panorama.height, math.ceil((panorama.top - lowest) / degrees[1]))
        half = math.ceil((2 * (int(columns[-1]) + 2) - 180) / degrees[0])
        yaw = (column - panorama.width / 2) * degrees[0]
        if 2 * half < panorama.width:
            self.columns = torch.arange(column - half, column + half) % panorama.width
            self.fov, self.turn = 2 * half * degrees[0], rotation(pitch=pitch)
        else:  # it sees a pole
            self.columns, self.fov, self.turn = torch.arange(panorama.width), 360.0, rotation(yaw, pitch)
        self.panorama = panorama

    def crop_of_panorama(self, top: int, bottom: int) -> Panorama:
        """These rows of the panorama, and the view's columns of them."""
        upper, lower = (math.degrees(self.panorama.latitude(row)) for row in (top, bottom))
        return Panorama(bottom - top, len(self.columns), upper, lower, self.fov)

    def look(self, images: Tensor) -> Tensor:
        warp = Warp(self.crop_of_panorama(self.top, self.bottom), self.view, self.turn).to(images.device)
        self.seen = warp.seen.cpu()
        part = images[..., self.top : self.bottom, self.columns]
        return torch.cat([warp(part[:, channel : channel + 1]) for channel in range(part.shape[1])], 1)

    def weight(self) -> Tensor:
        angles = self.view.solid_angles()
        height, width = (taper(side, self.overlap) for side in angles.shape)
        inside = self.seen.float() + UNSEEN  # what lies beyond the panorama's upper and lower border says little
        return (height[:, None] * width * inside * (angles / angles.max())).float()

    def place(self, x: Tensor, onto: Tensor, first: int) -> None:
        columns = self.columns.to(onto.device)
        for top in range(self.top, self.bottom, ROWS):
            bottom = min(self.bottom, top + ROWS)
            warp = Warp(self.view, self.crop_of_panorama(top, bottom), self.turn.T).to(onto.device)
            for channel in range(x.shape[1]):  # each by itself, since a warp copies what it reads
                rows = onto[:, channel : channel + 1, top - first : bottom - first]
                rows.index_add_(-1, columns, warp(x[:, channel : channel + 1]))


Piece = Window | PerspectiveView


class Tiled(Predictor):
    """A predictor that looks at pieces; scales and mirrored views are averaged for each of them.

    `yaw_rolls` is the number of sets of pieces, evenly shifted against one another.

    Args:
        overlap: share of a piece's side, at each border, in which its weight falls; neighbours overlap by that much.
        closed: whether images are full panoramas, whose left and right borders meet.
    """

    def __init__(
        self, network: nn.Module, device: torch.device, tta: TTA, precision: Precision, overlap: float, closed: bool
    ):
        super().__init__(network, device, TTA(tta.scales, tta.flip), precision)
        if self.wrap:
            raise ConfigError(
                "this model was trained with wrap=true and takes the left and right border of whatever it sees for "
                "neighbours, which those of a window or a view are not: use views=whole"
            )
        self.overlap, self.closed, self.sets = overlap, closed or tta.yaw_rolls > 1, tta.yaw_rolls

    def pieces(self, height: int, width: int) -> list[Piece]:
        """Those of an image, in the order of their upper borders."""
        raise NotImplementedError

    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat(list(self.bands(images)), 2)

    @torch.inference_mode()
    def bands(self, images: Tensor, step: Callable[[float], None] = no_progress) -> Iterator[Tensor]:
        pieces = self.pieces(*images.shape[2:])
        images = images.to(self.device)
        alignment = getattr(self.network, "alignment", None)
        statistics = None if alignment is None else statistics_of(images)
        start, rows = 0, most_rows(pieces)
        held: Tensor | None = None  # (B,K+1,rows,W), the weights last, from row `start` on
        for number, piece in enumerate(pieces):
            if alignment is not None:
                alignment.given = statistics  # a piece's colours are moved as the image's
            try:
                logits = self._mean_of_views(piece.look(images))
            finally:
                if alignment is not None:
                    alignment.given = None
            weight = piece.weight().to(logits).expand(len(logits), 1, -1, -1)
            if held is None:
                held = logits.new_zeros(len(logits), logits.shape[1] + 1, rows, images.shape[3])
            piece.place(logits.mul_(weight), held[:, :-1], start)
            piece.place(weight, held[:, -1:], start)
            del logits, weight
            end = min((later.top for later in pieces[number + 1 :]), default=images.shape[2])
            if end > start:
                for done in held[:, :, : end - start].split(ROWS, 2):
                    yield done[:, :-1] / done[:, -1:]
                move_up(held, end - start)
                start = end
            step(1 / len(pieces))


class Windows(Tiled):
    """Windows of `window` = (W,H) pixels, or of the image's size where that is less."""

    def __init__(self, *args, window: Size = WINDOW, **kwargs):
        super().__init__(*args, **kwargs)
        self.window = window

    def pieces(self, height: int, width: int) -> list[Piece]:
        across, down = min(self.window[0], width), min(self.window[1], height)
        tops = starts(height, down, self.overlap)
        lefts = starts(width, across, self.overlap, self.closed, self.sets)
        ranges = [torch.arange(left, left + across) % width for left in lefts]
        return [Window(top, columns, down, self.overlap) for top in tops for columns in ranges]


class Perspectives(Tiled):
    """Square views of a full panorama, `fov` degrees wide.

    Args:
        side: of a view in pixels; None: in its middle a view has the panorama's resolution.
        horizon: where a panorama's horizon lies, as a share of its height from above.
    """

    def __init__(self, *args, fov: float = 90.0, side: int | None = None, horizon: float = 0.5, **kwargs):
        super().__init__(*args, closed=True, **kwargs)
        self.fov, self.side, self.horizon = fov, side, horizon

    def pieces(self, height: int, width: int) -> list[Piece]:
        panorama = Panorama.of(height, width, self.horizon)
        natural = round(width / math.pi * math.tan(math.radians(self.fov) / 2))
        side, views = self.side or max(MIN_SIDE, natural), []
        view = Pinhole(side, side, self.fov)
        for pitch, count in rings(panorama, self.fov, self.overlap):
            for number in range(count * self.sets):
                column = (width + 1) // 2 + round(number * width / (count * self.sets))
                views.append(PerspectiveView(panorama, view, column, pitch, self.overlap))
        return sorted(views, key=lambda piece: piece.top)


def statistics_of(images: Tensor) -> tuple[Tensor, Tensor]:
    """As `channel_statistics` of images (B,3,H,W), however large: without a copy of them in floats."""
    sums = images.new_zeros(3, len(images), 3, 1, 1, dtype=torch.float64)
    for part in images.split(ROWS, 2):
        image = as_float(part).double()
        counted = not_black(image).expand_as(image)
        sums += torch.stack([(power * counted).sum((2, 3), keepdim=True) for power in (counted, image, image**2)])
    mean, square = sums[1:] / sums[0].clamp_min(1)
    return mean.float(), (square - mean**2).clamp_min(0).sqrt().float()


def taper(count: int, overlap: float) -> Tensor:
    """Weights (count,) in (0,1]: sin^2 from each end over the share `overlap`, 1 between."""
    place = torch.arange(count) + 0.5
    ramp = (torch.minimum(place, count - place) / max(1.0, overlap * count)).clamp(max=1)
    return (ramp * (math.pi / 2)).sin() ** 2


def starts(length: int, window: int, overlap: float, closed: bool = False, sets: int = 1) -> list[int]:
    """Where windows begin that cover `length` pixels evenly; `closed` round and round, in several shifted sets."""
    stride = window * (1 - overlap)
    if closed:
        count = math.ceil(length / stride) * sets
        return [round(number * length / count) for number in range(count)]
    count = math.ceil((length - window) / stride)
    return [round(number * (length - window) / max(1, count)) for number in range(count + 1)]


def rings(panorama: Panorama, fov: float, overlap: float) -> list[tuple[float, int]]:
    """Pitches in degrees, and how many evenly spaced square views at each cover the panorama between them."""
    span, stride = panorama.top - panorama.bottom, fov * (1 - overlap)
    count = max(0, math.ceil((span - fov) / stride)) + 1
    result = []
    for number in range(count):
        high, low = (panorama.top - (number + part) * span / count for part in (0, 1))
        pitch = (high + low) / 2
        flattest = min(abs(high), abs(low)) if high * low > 0 else 0.0
        around = math.ceil(360 * math.cos(math.radians(flattest)) / stride)
        column = 360 / panorama.width  # neighbours may be one further away, where they are centred on whole columns
        counts = range(max(1, around), MOST_VIEWS)
        around = next((n for n in counts if covered(high, low, pitch, fov, 360 / n + column)), None)
        if around is None:
            raise ConfigError(
                f"views of {fov:g} degrees that overlap by {overlap:g} leave parts of the sphere unseen: make fov "
                "larger, or overlap"
            )
        result.append((pitch, around))
    return result


def covered(high: float, low: float, pitch: float, fov: float, apart: float) -> bool:
    """Whether a view sees all latitudes from `high` to `low` up to half way to its neighbours, `apart` degrees away."""
    latitude = torch.linspace(low, high, 17, dtype=torch.float64).deg2rad()[:, None]
    yaw = torch.linspace(-apart / 2, apart / 2, 17, dtype=torch.float64).deg2rad()
    parts = latitude.cos() * yaw.sin(), latitude.cos() * yaw.cos(), latitude.sin().expand(-1, 17)
    place = Pinhole(2, 2, fov).locate(torch.stack(parts, -1) @ rotation(pitch=pitch))
    return bool(((place >= 0) & (place <= 2)).all())  # False for NaN


def most_rows(pieces: list[Piece]) -> int:
    """How many rows are begun and not finished at most, when pieces come in this order."""
    lowest = [max(piece.bottom for piece in pieces[: n + 1]) for n in range(len(pieces))]
    return max(bottom - piece.top for piece, bottom in zip(pieces, lowest, strict=True))


def move_up(x: Tensor, rows: int) -> None:
    """Drop the first rows of maps (B,C,H,W) in place, with zeros below; one channel is copied at a time."""
    for channel in range(x.shape[1]):
        x[:, channel] = torch.cat((x[:, channel, rows:], torch.zeros_like(x[:, channel, :rows])), 1)
