"""Light that does not reach everywhere: the shadows of a low sun, and street lamps at night."""

import numpy as np

from .rays import FAR, Camera, trace
from .scene import POLE, Scene

SUN_DISTANCE = 400.0  # m: near enough for float32, far enough for nearly parallel rays
SHADOWED = 60.0  # m around the camera in which shadows are worked out
MAP = 512, 384  # columns and rows of the shadow map
WARM = np.array([[1.0], [0.78], [0.45]], np.float32)  # the light of lamps and of windows


def in_shadow(scene: Scene, points: np.ndarray, index: np.ndarray, towards_sun: np.ndarray) -> np.ndarray:
    """Where another shape stands between `points` (3,n), those of shapes `index` (n,), and the sun; bool (n,).

    A shadow map: the scene is traced from the sun, and a point that is farther from it than what that ray met is dark.
    A shape does not shadow itself here, since its sides know which way they face.
    """
    flat = np.hypot(*towards_sun[:2])
    forward = -towards_sun[:2] / flat
    right = np.array([forward[1], -forward[0]])
    sun = (SUN_DISTANCE * towards_sun).astype(np.float32)
    near = np.flatnonzero(np.hypot(*points[:2]) < SHADOWED)
    dark = np.zeros(points.shape[1], bool)
    if not near.size:
        return dark
    offset = points[:, near] - sun[:, None]
    t = forward @ offset[:2]
    u, v = right @ offset[:2] / t, offset[2] / t

    columns, column = _grid(u, MAP[0])
    rows, row = _grid(v, MAP[1])  # from the lowest up
    plan = forward[:, None] + right[:, None] * columns
    depth, hit = trace(scene.shapes, Camera(sun, plan.astype(np.float32), rows.astype(np.float32)))
    met = hit[row, column]
    dark[near] = (met < len(scene.shapes)) & (met != index[near]) & (depth[row, column] < t - 0.3)
    return dark


def _grid(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` even steps over the range of `values` (n,), and the index of the nearest one to each value."""
    low, high = values.min(), max(values.max(), values.min() + 1e-4)
    return np.linspace(low, high, count), np.rint((values - low) / (high - low) * (count - 1)).astype(int)


def lamp_heads(scene: Scene) -> np.ndarray:
    """Where the scene's street lamps hang: (3,L) in m, below the outer ends of their arms."""
    shapes = scene.shapes
    arms = shapes[(shapes["label"] == POLE) & (shapes["half"][:, 0] > 0.9)]
    out = arms["half"][:, 0]
    ends = arms["centre"].T - np.stack([out * np.cos(arms["yaw"]), -out * np.sin(arms["yaw"]), np.full_like(out, 0.3)])
    return ends.astype(np.float32)


def lamplight(points: np.ndarray, lamps: np.ndarray) -> np.ndarray:
    """The light of `lamps` (3,L) at `points` (3,n), (n,): strongest straight below, with the distance's square."""
    light = np.zeros(points.shape[1], np.float32)
    for lamp in lamps.T:
        up = lamp[:, None] - points
        square = (up**2).sum(axis=0)
        light += 2.2 * (up[2] / np.sqrt(square + 1e-6)).clip(0.05) / (1 + square / 16)
    return light


def halo(directions: np.ndarray, distance: np.ndarray, position: np.ndarray, lamps: np.ndarray, width: float):
    """What is seen of `lamps` (3,L) themselves from `position`, (n,): blots of `width` radians round each.

    `directions` (3,n) are unit vectors, `distance` (n,) the m to what hides the lamps behind it, `FAR` for the sky.
    """
    glare = np.zeros_like(distance)
    for lamp in lamps.T:
        to_lamp = (lamp - position).astype(np.float32)
        away = np.float32(np.sqrt((to_lamp**2).sum()))
        square = 2 * (1 - (to_lamp / away) @ directions)
        glare += np.exp(-square / (2 * width**2)) * (distance.clip(max=FAR) > away - 1)
    return glare
