"""Views that know that a panorama is a sphere: pinhole images bent into panoramas, and panoramas that are tilted.

What a view cannot see is black, as padding is, has the label 255 and weighs 0.
"""

import math
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Generator, Tensor

from trans4pass.errors import ConfigError
from trans4pass.settings import Positive, Share
from trans4pass.sphere import Panorama, Pinhole, Warp, rotation

from .files import MAX_PIXELS
from .views import Range, Sample, View, filling, randint, uniform

Fov = Annotated[float, Interval(ge=10, le=150)]  # degrees; beyond, hardly a pixel is left in the middle
Quarter = Annotated[float, Interval(ge=-90, le=90)]  # degrees, either way
Half = Annotated[float, Interval(ge=-180, le=180)]
POLES = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], dtype=torch.float64)


class ToSphere(View):
    """Bend a pinhole image as an equirectangular panorama shows it, and crop to what is seen of it.

    In its middle the result has the pinhole image's resolution. Its size depends on what is drawn: in a batch another
    view must follow that gives all one size (`TrainTransform` does).

    Args:
        fov: lowest and highest horizontal field of view in degrees, 10..150. What is drawn need not be the camera's:
            a larger one bends more.
        pitch: of the camera, upwards, -90..90 degrees.
        roll: of the camera, clockwise, -180..180 degrees.
    """

    needs_pinholes = True

    def __init__(self, fov: Range[Fov], pitch: Range[Quarter] = (-10.0, 10.0), roll: Range[Half] = (-5.0, 5.0)):
        self.fov, self.pitch, self.roll = fov, pitch, roll

    def one(self, sample: Sample, generator: Generator) -> Sample:
        view = self.camera(sample, generator)
        return warped(sample, Footprint(view, self.turn(generator), rows_of(view)).warp)

    def camera(self, sample: Sample, generator: Generator) -> Pinhole:
        height, width = sample["image"].shape[-2:]
        return Pinhole(height, width, uniform(*self.fov, generator))

    def turn(self, generator: Generator) -> Tensor:
        return rotation(0.0, uniform(*self.pitch, generator), uniform(*self.roll, generator))


class AroundSphere(ToSphere):
    """Bend several pinhole images into one panorama, 360 degrees wide.

    A data set gives `count` of its images, the first as its sampler has it and the others drawn from it; a method's
    batch gives one, which is taken `count` times. They look in evenly spaced directions from a random yaw on, with one
    field of view; where they overlap, the first is seen. The result's sides are neighbours.

    Args:
        count: pinhole images in a panorama.
        fov, pitch, roll: see `ToSphere`.
        latitudes: of the panorama's lower and upper border, -90..90 degrees; None: it is as high as what is seen, which
            the host must ask a GPU where a method views its batch.
    """

    def __init__(
        self,
        count: Positive,
        fov: Range[Fov],
        pitch: Range[Quarter] = (-10.0, 10.0),
        roll: Range[Half] = (-5.0, 5.0),
        latitudes: Range[Quarter] | None = None,
    ):
        super().__init__(fov, pitch, roll)
        self.images, self.latitudes = count, latitudes
        if latitudes is not None and latitudes[0] == latitudes[1]:
            raise ConfigError(f"latitudes={list(latitudes)} leave a panorama no height: give a lower and an upper one")

    def one(self, sample: Sample, generator: Generator) -> Sample:
        view = self.camera(sample, generator)
        rows = rows_of(view)
        if 2 * rows**2 > MAX_PIXELS:
            raise ConfigError(
                f"{view.width} pixels over {view.fov:.0f} degrees make a panorama of {2 * rows}x{rows}: make fov "
                "larger, or the images smaller before (cache_size)"
            )
        first = randint(2 * rows, generator)
        canvas = {
            key: x.new_full((1, *x.shape[1:-2], rows, 2 * rows), filling(key)) for key, x in sample.items()
        }  # [n, ..., h, w] -> [1, ..., rows, 2 rows]
        empty = torch.ones(rows, 2 * rows, dtype=torch.bool, device=sample["image"].device)
        for number in range(self.images):
            part = Footprint(view, self.turn(generator), rows)
            warp = part.warp.to(empty.device, non_blocking=True)
            columns = (torch.arange(*part.columns) + first + round(number * 2 * rows / self.images)) % (2 * rows)
            place = (..., slice(*part.rows), columns.to(empty.device, non_blocking=True))
            index = number % len(sample["image"])
            seen = warped({key: x[index : index + 1] for key, x in sample.items()}, warp)
            new = warp.seen & empty[place]
            for key, x in canvas.items():
                x[place] = torch.where(new, seen[key], x[place])
            empty[place] &= ~new
        if self.latitudes is None:
            reached = (~empty).any(1).nonzero()
            top, bottom = int(reached[0]), int(reached[-1]) + 1
        else:
            lower, upper = self.latitudes
            top, bottom = (round(rows * (90 - latitude) / 180) for latitude in (upper, lower))
        return {key: x[..., top : max(bottom, top + 1), :] for key, x in canvas.items()}


class Tilt(View):
    """Tilt panoramas that are 360 degrees wide, with square pixels, by a random pitch and roll.

    Args:
        pitch: in the middle of the image, upwards, -90..90 degrees.
        roll: clockwise, -90..90 degrees.
        horizon: where the images' horizon lies, as a share of their height from above.
    """

    needs_panorama = True

    def __init__(self, pitch: Range[Quarter] = (-5.0, 5.0), roll: Range[Quarter] = (-5.0, 5.0), horizon: Share = 0.5):
        self.pitch, self.roll, self.horizon = pitch, roll, horizon

    def one(self, sample: Sample, generator: Generator) -> Sample:
        height, width = sample["image"].shape[-2:]
        panorama = Panorama.of(height, width, self.horizon)
        turn = rotation(0.0, uniform(*self.pitch, generator), uniform(*self.roll, generator))
        return warped(sample, Warp(panorama, panorama, turn))


class Footprint:
    """The smallest part of a full panorama of `rows` rows and twice as many columns that holds what a view sees.

    Attributes:
        rows, columns: the first and the one after the last; columns count from the middle, where yaw is 0.
        warp: from the view to the part.
    """

    def __init__(self, view: Pinhole, turn: Tensor, rows: int):
        step = 180 / rows  # degrees of a row and of a column
        x, y, z = (frame(view) @ turn.T).unbind(-1)
        latitudes, yaws = torch.asin(z).rad2deg(), torch.atan2(x, y).rad2deg()
        upper, lower, left, right = (float(v) for v in (latitudes.max(), latitudes.min(), yaws.min(), yaws.max()))
        size = torch.tensor((view.width, view.height))
        place = view.locate(POLES @ turn)
        zenith, nadir = ((place >= 0) & (place <= size)).all(-1).tolist()
        if zenith or nadir:  # then all yaws are seen
            upper, lower, left, right = 90 if zenith else upper, -90 if nadir else lower, -180, 180
        self.rows = max(0, math.floor((90 - upper) / step)), min(rows, math.ceil((90 - lower) / step))
        self.columns = max(-rows, math.floor(left / step)), min(rows, math.ceil(right / step))
        count, width = self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]
        top, bottom = (90 - row * step for row in self.rows)
        camera = Panorama(count, width, top, bottom, 360.0 if width == 2 * rows else width * step)
        self.warp = Warp(view, camera, turn.T @ rotation(sum(self.columns) / 2 * step))


def rows_of(view: Pinhole) -> int:
    """Of a full panorama with the view's resolution in its middle, where a pixel is 1/focal radians high."""
    return max(1, round(math.pi * view.focal))


def frame(view: Pinhole) -> Tensor:
    """The directions (n,3) of the corners of all pixels on the view's border."""
    x, y = torch.arange(view.width + 1) - view.width / 2, view.height / 2 - torch.arange(view.height + 1)
    right = torch.cat((x, x, torch.full_like(y, x[0].item()), torch.full_like(y, x[-1].item()))).double()
    up = torch.cat((torch.full_like(x, y[0].item()), torch.full_like(x, y[-1].item()), y, y)).double()
    rays = torch.stack((right, torch.full_like(right, view.focal), up), -1)
    return rays / rays.norm(dim=-1, keepdim=True)


def warped(sample: Sample, warp: Warp) -> Sample:
    """The image bilinear, all else by nearest neighbour."""
    warp = warp.to(sample["image"].device, non_blocking=True)
    return {
        key: warp(x, filling(key)) if key == "image" else warp.nearest(x, filling(key)) for key, x in sample.items()
    }
