"""Cameras, the rays of their pixels, and what each ray meets first."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from trans4pass.sphere import Panorama, Pinhole

from .scene import BOX, ELLIPSOID

FAR = 1e4  # m, the sky's distance


class Camera(NamedTuple):
    """Rays, two per pixel each way and one more: odd rows and columns are the pixels' centres, even ones their borders.

    A ray reaches position + t * (plan[0,c], plan[1,c], rise[r]) for t >= 0.
    """

    position: np.ndarray  # (3,) x, y, z in m
    plan: np.ndarray  # (2,C) float32, x and y direction, C = 2 * width + 1
    rise: np.ndarray  # (R,) float32, z direction, R = 2 * height + 1


def pinhole_camera(image: Pinhole, position: np.ndarray, heading: float) -> Camera:
    """A level camera that takes perspective images and looks along `heading`, radians clockwise from +y."""
    right = (np.arange(2 * image.width + 1) - image.width) / 2 / image.focal
    rise = (image.height - np.arange(2 * image.height + 1)) / 2 / image.focal
    sin, cos = np.sin(heading), np.cos(heading)
    plan = np.stack([sin + right * cos, cos - right * sin])
    return Camera(position, plan.astype(np.float32), rise.astype(np.float32))


def panorama_camera(image: Panorama, position: np.ndarray, heading: float) -> Camera:
    """A level camera that takes full panoramas, centred on `heading`."""
    # The first and the last sample both lie on the seam; the modulo makes their directions exactly equal.
    yaw = heading + image.yaw(np.arange(2 * image.width + 1) % (2 * image.width) / 2)
    rise = np.tan(image.latitude(np.arange(2 * image.height + 1) / 2))
    return Camera(position, np.stack([np.sin(yaw), np.cos(yaw)]).astype(np.float32), rise.astype(np.float32))


def trace(shapes: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Find what every ray meets first.

    Returns t, float32 (R,C), and the index into `shapes`, int32 (R,C), where N stands for the ground and N+1 for the
    sky.
    """
    rise = np.where(np.abs(camera.rise) < 1e-6, np.float32(1e-6), camera.rise)  # no division by zero at the horizon
    ground = np.where(rise < 0, -camera.position[2] / rise, FAR).clip(max=FAR).astype(np.float32)
    depth = np.repeat(ground[:, None], camera.plan.shape[1], axis=1)
    hit = np.where(depth < FAR, len(shapes), len(shapes) + 1).astype(np.int32)

    # In its own frame, in half extents, a box is the cube [-1, 1]^3 and an ellipsoid the unit ball.
    half, yaw = shapes["half"].T, shapes["yaw"]
    x, y, z = camera.position.astype(np.float32)[:, None] - shapes["centre"].T
    start = np.stack([*turn(x, y, yaw), z]) / half  # (3,N)
    east, north = camera.plan[:, None]  # (1,C) each
    plan = np.stack(turn(east, north, yaw[:, None])) / half[:2, :, None]  # (2,N,C)
    lift = rise / half[2, :, None]  # (N,R)
    enter, leave = _cross_in_plan(shapes["form"], start, plan)  # (N,C) each
    rise_in, rise_out = _cross_slab(start[2, :, None], lift)  # (N,R) each
    for i, rows, columns in _windows(enter, leave, rise_in, rise_out):
        if shapes["form"][i] == BOX:
            t = np.maximum(rise_in[i, rows, None], enter[i, columns])
            met = (t > 0) & (t < np.minimum(rise_out[i, rows, None], leave[i, columns]))
        else:
            t, met = _cross_ball(start[:, i], plan[:, i, columns], lift[i, rows])
        met &= t < depth[rows, columns]
        np.copyto(depth[rows, columns], t, where=met)
        np.copyto(hit[rows, columns], i, where=met)
    return depth, hit


def turn(x: np.ndarray, y: np.ndarray, yaw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vector (x, y) as (right, forward) of a frame whose forward is `yaw` radians clockwise from +y."""
    return x * np.cos(yaw) - y * np.sin(yaw), x * np.sin(yaw) + y * np.cos(yaw)


def _cross_slab(start: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """t at which start + t * direction enters and leaves [-1, 1]."""
    inverse = 1 / np.where(np.abs(direction) < 1e-9, np.float32(1e-9), direction)
    middle, spread = -start * inverse, np.abs(inverse)
    return middle - spread, middle + spread


def _cross_in_plan(form: np.ndarray, start: np.ndarray, plan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """t at which each column enters and leaves each shape seen from above, (N,C) each; enter >= leave for a miss.

    `start` (3,N) and `plan` (2,N,C) are the rays in the shapes' own scaled frames.
    """
    enter, leave = (np.zeros(plan.shape[1:], np.float32) for _ in range(2))
    box, ball = form == BOX, form == ELLIPSOID
    sides = _cross_slab(start[:2, box, None], plan[:, box])
    enter[box], leave[box] = sides[0].max(axis=0), sides[1].min(axis=0)

    origin, direction = start[:2, ball, None], plan[:, ball]
    a, b, c = (direction**2).sum(axis=0), (direction * origin).sum(axis=0), (origin**2).sum(axis=0) - 1
    reach = np.sqrt((b * b - a * c).clip(0))  # 0 for a miss
    enter[ball], leave[ball] = (-b - reach) / a, (-b + reach) / a
    return enter, leave


def _cross_ball(start: np.ndarray, plan: np.ndarray, lift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First t on the unit ball of rays from `start` (3,) along `plan` (2,c) and `lift` (r,), and where they meet it."""
    a = (plan**2).sum(axis=0) + lift[:, None] ** 2
    b = start[:2] @ plan + lift[:, None] * start[2]
    root = b * b - a * ((start**2).sum() - 1)
    t = (-b - np.sqrt(root.clip(0))) / a
    return t, (root > 0) & (t > 0)


def _windows(enter, leave, rise_in, rise_out) -> Iterator[tuple[int, slice, slice]]:
    """(shape, rows, columns) of the part of the image each shape may be seen in; two parts if it lies across a seam.

    The arguments are the t at which columns (N,C) and rows (N,R) enter and leave the shapes.
    """
    seen = leave > np.maximum(enter, 0)
    nearest = np.where(seen, enter, FAR).min(axis=1, keepdims=True).clip(0)
    farthest = np.where(seen, leave, 0).max(axis=1, keepdims=True)
    level = (rise_in < farthest) & (rise_out > nearest)  # (N,R), one run of rows for each shape
    top, bottom = level.argmax(axis=1), level.shape[1] - level[:, ::-1].argmax(axis=1)
    seen &= level.any(axis=1, keepdims=True)
    shape, edge = np.nonzero(np.diff(seen, prepend=False, append=False, axis=1))  # starts and ends of runs take turns
    for i, first, end in zip(shape[::2], edge[::2], edge[1::2]):
        yield i, slice(top[i], bottom[i]), slice(first, end)
