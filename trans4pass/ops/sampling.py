"""Bilinear sampling in pixel units, tile by tile: where the neighbours of a sample lie, and how to read them fast.

Sizes in the shapes below: n images of a tile, G offset groups, K = k*k taps, P output positions of a tile, C channels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BORDER = 2  # pixels around the map: positions are clamped to [-2, size], where all four neighbours exist
TILE_SAMPLES = 1 << 16  # 256 KiB for each float32 temporary
TILE_POSITIONS = 256  # at least, for matrix products worth their overhead


class Corners(NamedTuple):
    """Where the samples of a tile lie."""

    index: Tensor  # [n, G, K, P] of the upper left neighbour in the flattened, bordered map
    fraction: Tensor  # [n, G, K, 2, P] of a pixel, below and right of it

    def weights(self, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights [n, G, K, P] of the upper left, upper right, lower left and lower right neighbours, times `mask`."""
        fy, fx = self.fraction.unbind(3)
        lower = fy if mask is None else fy * mask
        upper = 1 - fy if mask is None else mask - lower
        upper_right, lower_right = upper * fx, lower * fx
        return upper.sub_(upper_right), upper_right, lower - lower_right, lower_right

    def grads(self, dots: list[Tensor], mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients [n, G, K, P] of the samples' y, x and modulator.

        `dots` holds, for each neighbour, the dot product over channels of its values and the samples' gradient.
        """
        fy, fx = self.fraction.unbind(3)
        upper, lower = torch.lerp(dots[0], dots[1], fx), torch.lerp(dots[2], dots[3], fx)
        dy, dx = lower - upper, torch.lerp(dots[1].sub_(dots[0]), dots[3].sub_(dots[2]), fy)
        if mask is not None:
            dy, dx = dy.mul_(mask), dx.mul_(mask)
        return dy, dx, torch.lerp(upper, lower, fy)


class Sampler(NamedTuple):
    """The sizes of one deformable convolution, and what follows from them; the subclasses add a memory layout.

    A layout keeps samples [S, channels, ...] in the order in which they are read fastest. `lay` brings one number per
    sample into that order, ready to be multiplied with samples; `unlay` brings it back to [n, G, K, P].
    """

    batch: int
    channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    groups: int
    kernel: int
    stride: int
    padding: int
    wrap: bool

    @property
    def taps(self) -> int:
        return self.kernel**2

    @property
    def depth(self) -> int:
        """Channels per offset group."""
        return self.channels // self.groups

    @property
    def row(self) -> int:
        """Pixels in a row of the bordered map."""
        return self.width + 2 * BORDER

    @property
    def shifts(self) -> tuple[int, int, int, int]:
        """How far each neighbour lies behind the upper left one in a flattened, bordered map."""
        return 0, 1, self.row, self.row + 1

    def tiles(self) -> Iterator[tuple[slice, list[slice]]]:
        """Slices of the batch, each with the slices of the flattened output positions that cover it."""
        count = self.out_height * self.out_width
        positions = max(TILE_POSITIONS, TILE_SAMPLES // (self.channels * self.taps))
        images = max(1, positions // count)
        parts = [slice(i, min(i + positions, count)) for i in range(0, count, positions)]
        return ((slice(i, i + images), parts) for i in range(0, self.batch, images))

    def corners(self, offset: Tensor, positions: slice) -> Corners:
        """Neighbours and fractions at `offset` [n, G, K, 2, P]."""
        device = offset.device
        tap = torch.arange(self.kernel, device=device) - self.padding
        position = torch.arange(positions.start, positions.stop, device=device)
        y = tap[:, None, None] + position.div(self.out_width, rounding_mode="floor") * self.stride
        x = tap[:, None] + position.remainder(self.out_width) * self.stride
        grid = torch.stack(torch.broadcast_tensors(y, x), 2).flatten(0, 1)  # 2 x [k, k, P] -> [K, 2, P]
        point = offset + grid.to(offset.dtype)
        point[:, :, :, 0].clamp_(-BORDER, self.height)
        if self.wrap:
            point[:, :, :, 1].remainder_(self.width)
        else:
            point[:, :, :, 1].clamp_(-BORDER, self.width)
        corner = point.floor()
        top, left = corner.int().unbind(3)
        index = torch.add(left, top, alpha=self.row).add_(BORDER * self.row + BORDER)
        # A NaN position gets an arbitrary index; its fraction, and so its sample, is NaN.
        return Corners(
            index.clamp_(0, (self.height + BORDER) * self.row + self.width + BORDER).long(), point.sub_(corner)
        )

    def bordered(self, x: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, C, H+4, W+4], zeros around; a wrapped map goes on sideways instead."""
        if self.wrap:
            return F.pad(x[..., self._wrapped_columns(x.device)], (0, 0, BORDER, BORDER))
        return F.pad(x, [BORDER] * 4)

    def unbordered(self, x: Tensor) -> Tensor:
        """The gradient of `bordered`."""
        x = x[:, :, BORDER:-BORDER]
        if self.wrap:
            zeros = x.new_zeros(*x.shape[:3], self.width)
            return zeros.index_add_(3, self._wrapped_columns(x.device), x)
        return x[..., BORDER:-BORDER]

    def _wrapped_columns(self, device: torch.device) -> Tensor:
        return torch.arange(-BORDER, self.width + BORDER, device=device) % self.width


class PlaneSampler(Sampler):
    """Samples as [n*G, C/G, K*P], a plane per channel: fast for few channels per offset group."""

    def lay_map(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.depth, x.shape[2] * x.shape[3])  # [n, C, h, w] -> [n*G, C/G, h*w]

    def unlay_map(self, x: Tensor) -> Tensor:
        return x.view(-1, self.channels, self.height + 2 * BORDER, self.row)  # [n*G, C/G, h*w] -> [n, C, h, w]

    def lay(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 1, x.shape[2] * x.shape[3])  # [n, G, K, P] -> [n*G, 1, K*P]

    lay_index = lay

    def unlay(self, x: Tensor, shape: torch.Size) -> Tensor:
        return x.view(shape)  # [n*G, 1, K*P] -> [n, G, K, P]

    def gather(self, source: Tensor, shift: int, index: Tensor) -> Tensor:
        return source[..., shift:].gather(2, index.expand(-1, self.depth, -1))

    def scatter_add(self, target: Tensor, shift: int, index: Tensor, samples: Tensor) -> None:
        target[..., shift:].scatter_add_(2, index.expand(-1, self.depth, -1), samples)

    def columns(self, samples: Tensor, shape: torch.Size) -> Tensor:
        return samples.view(shape[0], -1, shape[3])  # [n*G, C/G, K*P] -> [n, C*K, P]

    def grad_samples(self, matrix: Tensor, grad: Tensor) -> Tensor:
        grad_columns = torch.matmul(matrix.t(), grad)
        return grad_columns.view(-1, self.depth, self.taps * grad.shape[2])  # [n, C*K, P] -> [n*G, C/G, K*P]

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)  # [O, C, k, k] -> [O, C*K]

    def unmatrix(self, matrix: Tensor) -> Tensor:
        return matrix.view(-1, self.channels, self.kernel, self.kernel)  # [O, C*K] -> [O, C, k, k]


class RowSampler(Sampler):
    """Samples as [n*P*G*K, C/G], a row of channels per sample: fast for many channels per offset group."""

    def lay_map(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (self.groups, self.depth)).permute(0, 1, 3, 4, 2)  # [n, C, h, w] -> [n, G, h, w, C/G]
        return x.reshape(-1, self.depth)  # -> [n*G*h*w, C/G]

    def unlay_map(self, x: Tensor) -> Tensor:
        x = x.view(-1, self.groups, self.height + 2 * BORDER, self.row, self.depth)  # -> [n, G, h, w, C/G]
        return x.permute(0, 1, 4, 2, 3).flatten(1, 2)  # -> [n, C, h, w]

    def lay(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).reshape(-1, 1)  # [n, G, K, P] -> [n*P*G*K, 1]

    def lay_index(self, index: Tensor) -> Tensor:
        start = torch.arange(index.shape[0] * self.groups, device=index.device)
        start = start.view(-1, self.groups, 1, 1) * ((self.height + 2 * BORDER) * self.row)
        return self.lay(index + start).squeeze(1)

    def unlay(self, x: Tensor, shape: torch.Size) -> Tensor:
        n, groups, taps, positions = shape
        return x.view(n, positions, groups, taps).permute(0, 2, 3, 1)  # [n*P*G*K, 1] -> [n, G, K, P]

    def gather(self, source: Tensor, shift: int, index: Tensor) -> Tensor:
        return source[shift:].index_select(0, index)

    def scatter_add(self, target: Tensor, shift: int, index: Tensor, samples: Tensor) -> None:
        target[shift:].index_add_(0, index, samples)

    def columns(self, samples: Tensor, shape: torch.Size) -> Tensor:
        return samples.view(shape[0], shape[3], -1).transpose(1, 2)  # [n*P*G*K, C/G] -> [n, G*K*C/G, P]

    def grad_samples(self, matrix: Tensor, grad: Tensor) -> Tensor:
        grad_columns = torch.matmul(grad.transpose(1, 2), matrix)
        return grad_columns.view(-1, self.depth)  # [n, P, G*K*C/G] -> [n*P*G*K, C/G]

    def matrix(self, weight: Tensor) -> Tensor:
        weight = weight.view(-1, self.groups, self.depth, self.taps)  # [O, C, k, k] -> [O, G, C/G, K]
        return weight.transpose(2, 3).flatten(1)  # -> [O, G*K*C/G]

    def unmatrix(self, matrix: Tensor) -> Tensor:
        matrix = matrix.view(-1, self.groups, self.taps, self.depth).transpose(2, 3)  # -> [O, G, C/G, K]
        return matrix.reshape(-1, self.channels, self.kernel, self.kernel)  # -> [O, C, k, k]
