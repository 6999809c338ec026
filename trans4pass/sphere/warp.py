"""One camera's image as another camera sees it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trans4pass.errors import ConfigError

from .cameras import Camera, Panorama


class Warp(nn.Module):
    """What a camera `target` sees of images that a camera `source` took, both at the same place.

    `rotation` (3,3) takes the target's directions to the source's (see `rotation`): with rotation(yaw=90) the target
    looks where the source has its right. The positions are worked out once, in float64, for images of any number.

    Attributes:
        seen: bool (H,W), the pixels of the target whose direction lies within the source.
    """

    def __init__(self, source: Camera, target: Camera, rotation: Tensor | None = None):
        super().__init__()
        rays = target.rays()
        if rotation is not None:
            rays = rays @ rotation.to(rays).T
        position = source.locate(rays)  # (H,W,2)
        size = torch.tensor((source.width, source.height), dtype=torch.float64)
        self.source = source
        self.closed = isinstance(source, Panorama) and source.closed
        inside = (position >= 0) & (position <= size)  # False for NaN
        seen = inside[..., 1] if self.closed else inside.all(-1)
        position = torch.where(seen[..., None], position, 0.0)
        cell = torch.minimum(position.floor(), size - 1).long()
        self.seen = nn.Buffer(seen, persistent=False)
        self.position = nn.Buffer(position.float(), persistent=False)
        self.index = nn.Buffer(cell[..., 1] * source.width + cell[..., 0], persistent=False)

    def forward(self, images: Tensor, fill: float = 0.0) -> Tensor:
        """Images, logits or weights (B,C,h,w) -> (B,C,H,W), bilinear and differentiable; `fill` where nothing is seen.

        uint8 is rounded. Over the seam and over the poles a panorama goes on at its other side.
        """
        self._check(images)
        x = images.to(torch.promote_types(images.dtype, torch.float32))  # half precision loses whole pixels
        x = F.pad(x, (1, 1, 0, 0), "circular" if self.closed else "replicate")
        x = torch.cat((self._beyond(x[..., :1, :], 90), x, self._beyond(x[..., -1:, :], -90)), -2)
        size = torch.tensor((x.shape[-1], x.shape[-2]), dtype=torch.float32).to(x.device, non_blocking=True)
        grid = (self.position + 1) * (2 / size) - 1  # pixel borders at -1 and 1
        grid = grid.to(x.dtype).expand(len(x), -1, -1, -1)
        result = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        result = torch.where(self.seen, result, fill)
        return (result if images.is_floating_point() else result.round()).to(images.dtype)

    def nearest(self, labels: Tensor, fill: int = 255) -> Tensor:
        """Labels (...,h,w) of any type -> (...,H,W), each pixel's nearest; `fill` where nothing is seen."""
        self._check(labels)
        return torch.where(self.seen, labels.flatten(-2)[..., self.index], fill)

    def _beyond(self, row: Tensor, pole: float) -> Tensor:
        """The row after a border row (B,C,1,w+2): over a pole it is the same latitude half a turn away."""
        border = getattr(self.source, "top" if pole > 0 else "bottom", None)
        if not self.closed or border is None or abs(border - pole) > 1e-6:
            return row
        inner = row[..., 1:-1].roll(self.source.width // 2, -1)
        return F.pad(inner, (1, 1, 0, 0), "circular")

    def _check(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if (height, width) != (self.source.height, self.source.width):
            raise ConfigError(
                f"an image of {width}x{height} pixels does not fit the warp's source of {self.source.width}x"
                f"{self.source.height}: resize it, or make a warp of its size"
            )
