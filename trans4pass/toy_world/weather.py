"""Weather: what changes a panorama in ways that no map of its colours undoes. Labels never depend on it.

Fog grows with depth, a night is dark but for lamps and windows, rain falls in streaks and wets the ground, a low sun
casts long shadows, and dirt on the lens blurs and hides. The kinds are those of SynPASS (cloud, fog, rain, sun, night).
"""

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.random import Generator

from .lighting import lamp_heads
from .rays import Camera
from .scene import ROAD, SIDEWALK, Scene
from .shading import Look, direction

MAIN = ("none", "fog", "rain", "low_sun")  # one of them for each image, equally often
LOW_SUN = np.array([[1.25], [0.95], [0.6]], np.float32)  # its gains of red, green and blue
NIGHTS, DIRTY = 0.3, 0.4  # share of the images, whatever else they show
MUD = np.array([0.42, 0.37, 0.3], np.float32).reshape(3, 1, 1)


class Weather(NamedTuple):
    """The weather of one image; every strength is 0 for none and about 1 at most for what can still be recognised."""

    fog: float = 0.0
    night: float = 0.0
    rain: float = 0.0
    low_sun: float = 0.0
    dirt: float = 0.0


STRENGTHS = Weather._fields


def draw_weather(rng: Generator, **strengths: float) -> Weather:
    """The weather of one image, where each kind occurs at 0.5 to 1 times its strength.

    Every draw is made in any case, so that a strength changes nothing but its own kind of weather.
    """
    main, night, dirt = MAIN[rng.integers(len(MAIN))], rng.random() < NIGHTS, rng.random() < DIRTY
    present = {main, "night" * night, "dirt" * dirt}
    amounts = dict(zip(STRENGTHS, rng.uniform(0.5, 1.0, len(STRENGTHS)).tolist()))
    return Weather(**{name: amounts[name] * strengths[name] * (name in present) for name in STRENGTHS})


def relight(look: Look, weather: Weather, scene: Scene, rng: Generator) -> Look:
    """`look` under the sky of this weather; where there is none, as it was."""
    low = min(weather.low_sun, 1.0)
    # A low sun stands over the street, at either end: across it, the houses would leave no light on anything.
    azimuth = scene.street.angle(0.0) + np.pi * rng.integers(2) + np.deg2rad(rng.uniform(-45, 45))
    elevation = np.deg2rad(rng.uniform(14, 26))
    return look._replace(
        sun=look.sun * (1 + 1.3 * low) * 0.02**weather.night * 0.3**weather.rain * 0.35**weather.fog,
        towards_sun=direction(azimuth, elevation) if low > 0 else look.towards_sun,
        ambient=look.ambient * 0.55**low * 0.14**weather.night,
        clouds=look.clouds + weather.rain,
        fog=0.055 * weather.fog + 0.008 * weather.rain,
        noise=look.noise + 0.015 * weather.night,
        night=weather.night,
        lamps=lamp_heads(scene) if weather.night > 0 else look.lamps,
        shadows=low,
        sun_colour=LOW_SUN**low,
    )


def weathered(
    colours: np.ndarray, labels: np.ndarray, camera: Camera, weather: Weather, rng: Generator, wraps: bool
) -> np.ndarray:
    """`colours` (3,R,C) of a camera's rays with what is wet, what falls, and what sticks to the lens.

    `wraps` says that the last column is the first one again, as in panoramas.
    """
    drops, blots = rng.spawn(2)
    if weather.rain > 0:
        colours = _wet(colours, labels, camera, weather.rain)
        streaks = _streaks(colours.shape[1:], weather.rain, drops, wraps)
        colours = colours + (0.25 + 0.6 * colours.mean() - 0.25 * colours) * streaks
    if weather.dirt > 0:
        cover = _blots(colours.shape[1:], weather.dirt, blots, wraps)
        colours = colours + (_blurred(colours, wraps) - colours) * np.minimum(2 * cover, 1)
        colours = colours + (MUD * (0.2 + 1.2 * colours.mean()) - colours) * cover * 0.8
    return colours


def _wet(colours: np.ndarray, labels: np.ndarray, camera: Camera, rain: float) -> np.ndarray:
    """Dark roads that mirror what stands behind them: in a level camera, what is as far above the horizon."""
    slope = np.sqrt(camera.rise**2 / (1 + camera.rise**2))[:, None]  # sine of the angle to the ground
    mirror = np.isin(labels, (ROAD, SIDEWALK)) * (1 - slope) ** 2 * min(0.75 * rain, 0.75)
    return colours * (1 - 0.45 * min(rain, 1) * (mirror > 0)) + colours[:, ::-1] * mirror


def _streaks(size: tuple[int, int], rain: float, rng: Generator, wraps: bool) -> np.ndarray:
    """Opacity (R,C) of falling drops: slanting lines, all in one direction."""
    rows, columns = size
    opacity, slant = np.zeros((rows, columns - wraps), np.float32), rng.uniform(-0.4, 0.4)
    for _ in range(round(rain * rows * columns / 180)):
        length = int(rng.integers(rows // 16 + 2, rows // 6 + 4))
        row = int(rng.integers(-length, rows)) + np.arange(length)
        column = np.rint(rng.integers(columns) + slant * np.arange(length)).astype(int)
        seen = (row >= 0) & (row < rows) & (wraps | (column >= 0) & (column < columns))
        opacity[row[seen], column[seen] % (columns - wraps)] = rng.uniform(0.25, 0.8)
    return _closed(opacity, wraps)


def _blots(size: tuple[int, int], dirt: float, rng: Generator, wraps: bool) -> np.ndarray:
    """Opacity (R,C), 0 .. 0.9, of soft round blots on the lens."""
    rows, columns = size
    cover, period = np.zeros(size, np.float32), columns - wraps
    y, x = np.arange(rows)[:, None], np.arange(columns)
    for _ in range(round(dirt * 14 * columns / rows / 5)):
        row, column, radius = rng.uniform(0, rows), rng.uniform(0, period), rows * rng.uniform(0.04, 0.16)
        across = np.abs(x - column)
        across = np.minimum(across, period - across) if wraps else across
        square = ((y - row) ** 2 + across**2) / radius**2
        cover = np.maximum(cover, rng.uniform(0.4, 0.9) * np.exp(-(square**2)).astype(np.float32))
    return cover


def _blurred(colours: np.ndarray, wraps: bool) -> np.ndarray:
    """Means over 5 x 5 rays, two apart."""
    body = colours[..., :-1] if wraps else colours
    padded = np.pad(body, ((0, 0), (4, 4), (0, 0)), mode="edge")
    padded = np.pad(padded, ((0, 0), (0, 0), (4, 4)), mode="wrap" if wraps else "edge")
    for axis in (1, 2):
        padded = sliding_window_view(padded, 9, axis)[..., ::2].mean(axis=-1)
    return _closed(padded, wraps)


def _closed(values: np.ndarray, wraps: bool) -> np.ndarray:
    """`values`, with the first column once more behind the last one where the image wraps."""
    return np.concatenate([values, values[..., :1]], axis=-1) if wraps else values
