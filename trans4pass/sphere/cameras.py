"""What a pixel of an image looks at, and where in an image a direction is seen."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from trans4pass.errors import ConfigError

ROUNDING = 1e-9  # degrees by which a panorama may pass a pole


@dataclass(frozen=True)
class Panorama:
    """An equirectangular image: columns are yaws, rows are latitudes; `of` makes the usual ones.

    Attributes:
        height, width: in pixels.
        top, bottom: latitudes of the upper and the lower border, in degrees, 90 = the zenith.
        fov: width in degrees, centred on yaw 0; at 360 the left and right borders meet.
    Raises:
        ConfigError: for angles that cannot be.
    """

    height: int
    width: int
    top: float = 90.0
    bottom: float = -90.0
    fov: float = 360.0

    def __post_init__(self) -> None:
        if not (0 < self.fov <= 360 and -90 - ROUNDING <= self.bottom < self.top <= 90 + ROUNDING):
            raise ConfigError(
                f"a panorama of {self.width}x{self.height} pixels from latitude {self.bottom:g} to {self.top:g} and "
                f"{self.fov:g} degrees wide cannot be: latitudes lie within -90 and 90, a width within 0 and 360; with "
                "square pixels a full panorama is at most half as high as it is wide"
            )

    @classmethod
    def of(cls, height: int, width: int, horizon: float = 0.5, fov: float = 360.0) -> Self:
        """One of square pixels, e.g. 2048x400 of DensePASS, whose latitudes go from 35 to -35 degrees.

        `horizon` is where latitude 0 lies, as a share of the height from above; it may lie outside.
        """
        degrees = fov / width  # of one pixel
        return cls(height, width, horizon * height * degrees, (horizon - 1) * height * degrees, fov)

    @property
    def closed(self) -> bool:
        """Whether its left and right borders meet."""
        return self.fov == 360

    def yaw(self, x):
        """Of positions x in pixels, in radians; of tensors, arrays or numbers."""
        return (x / self.width - 0.5) * math.radians(self.fov)

    def latitude(self, y):
        """Of positions y in pixels, in radians; of tensors, arrays or numbers."""
        return math.radians(self.top) - y * (math.radians(self.top - self.bottom) / self.height)

    def rays(self) -> Tensor:
        """The directions of the pixels' centres, float64 (H,W,3), of length 1."""
        yaw, latitude = self.yaw(centres(self.width)), self.latitude(centres(self.height))[:, None]
        parts = latitude.cos() * yaw.sin(), latitude.cos() * yaw.cos(), latitude.sin().expand(-1, self.width)
        return torch.stack(parts, -1)

    def locate(self, rays: Tensor) -> Tensor:
        """Where directions (...,3) are seen, float64 (...,2): x and y in pixels."""
        x, y, z = rays.unbind(-1)
        yaw, latitude = torch.atan2(x, y), torch.atan2(z, torch.hypot(x, y))
        column = (yaw / math.radians(self.fov) + 0.5) * self.width
        row = (math.radians(self.top) - latitude) * (self.height / math.radians(self.top - self.bottom))
        return torch.stack((column, row), -1)

    def solid_angles(self) -> Tensor:
        """The share of the sphere that each pixel covers, float64 (H,W) in steradians; their sum is the image's."""
        sines = self.latitude(torch.arange(self.height + 1, dtype=torch.float64)).sin()
        rows = (sines[:-1] - sines[1:]) * (math.radians(self.fov) / self.width)
        return rows[:, None].expand(-1, self.width)


@dataclass(frozen=True)
class Pinhole:
    """A perspective image of square pixels, `fov` degrees wide (0 < fov < 180), that looks along y."""

    height: int
    width: int
    fov: float

    def __post_init__(self) -> None:
        if not 0 < self.fov < 180:
            raise ConfigError(f"a perspective view {self.fov:g} degrees wide cannot be: give one within 0 and 180")

    @property
    def focal(self) -> float:
        """Distance from the centre of projection to the image, in pixels."""
        return self.width / 2 / math.tan(math.radians(self.fov) / 2)

    def rays(self) -> Tensor:
        """See `Panorama`."""
        right = (centres(self.width) - self.width / 2) / self.focal
        up = (self.height / 2 - centres(self.height)[:, None]) / self.focal
        rays = torch.stack(torch.broadcast_tensors(right, torch.ones_like(right), up), -1)
        return rays / rays.norm(dim=-1, keepdim=True)

    def locate(self, rays: Tensor) -> Tensor:
        """See `Panorama`; NaN behind the camera."""
        x, y, z = rays.unbind(-1)
        depth = torch.where(y > 0, y / self.focal, torch.nan)
        return torch.stack((self.width / 2 + x / depth, self.height / 2 - z / depth), -1)

    def solid_angles(self) -> Tensor:
        """See `Panorama`."""
        x = (torch.arange(self.width + 1, dtype=torch.float64) - self.width / 2) / self.focal
        y = ((torch.arange(self.height + 1, dtype=torch.float64) - self.height / 2) / self.focal)[:, None]
        corner = torch.atan2(x * y, (1 + x**2 + y**2).sqrt())  # of the rectangle from the middle to each corner
        return corner.diff(dim=0).diff(dim=1)


Camera = Panorama | Pinhole  # an image on the sphere of directions


def centres(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64) + 0.5


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Tensor:
    """The matrix (3,3), float64, that takes a camera's directions to the world's: rolled, then pitched, then yawed."""
    (sy, cy), (sp, cp), (sr, cr) = ((math.sin(a), math.cos(a)) for a in map(math.radians, (yaw, pitch, roll)))
    turn = torch.tensor([[cy, sy, 0], [-sy, cy, 0], [0, 0, 1]], dtype=torch.float64)
    lift = torch.tensor([[1, 0, 0], [0, cp, -sp], [0, sp, cp]], dtype=torch.float64)
    tilt = torch.tensor([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]], dtype=torch.float64)
    return turn @ lift @ tilt
