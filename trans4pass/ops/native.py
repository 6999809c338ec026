"""Deformable convolution in plain PyTorch, with a hand-written backward.

Positions stay in pixels, so that whole-number positions (all of them at zero offset) are exact; the normalised
coordinates of `grid_sample` are not. The map gets a border of two zeros: positions are clamped to [-2, size], where all
four neighbours exist and those outside the map count 0, in values and in every gradient.

Memory: the samples, [B, C*k*k, Ho, Wo], are never held at once, nor kept for the backward pass. Both passes go tile by
tile (some images, or some rows of one) and sample anew, so that temporaries stay in the processor's cache.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BORDER = 2
TILE_SAMPLES = 1 << 16  # 256 KiB for each temporary
TILE_POSITIONS = 128  # at least, for matrix products worth their overhead


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    wrap: bool = False,
) -> Tensor:
    """See `trans4pass.ops.deform_conv2d`; all tensors share one floating dtype, and there is no second derivative."""
    out = _DeformConv.apply(input, offset, mask, weight, stride, padding, wrap)
    return out if bias is None else out + bias[:, None, None]


class _DeformConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, offset, mask, weight, stride, padding, wrap):
        ctx.save_for_backward(input, offset, mask, weight)
        ctx.geometry = geometry = _Geometry.of(input, offset, weight, stride, padding, wrap)
        matrix = weight.flatten(1)
        out = input.new_empty(len(input), len(weight), *offset.shape[2:])
        for images in geometry.image_tiles():
            source = geometry.bordered(input[images])
            for rows in geometry.row_tiles():
                corners = geometry.corners(offset[images, :, rows], rows)
                weights = _bilinear_weights(corners, geometry.per_sample(mask, images, rows))
                columns = 0
                for shift, weight in zip(geometry.shifts, weights):
                    columns = _gather(source, shift, corners.index).mul_(weight).add_(columns)
                tile = out[images, :, rows]
                tile.copy_(torch.matmul(matrix, geometry.as_columns(columns)).view(tile.shape))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        input, offset, mask, weight = ctx.saved_tensors
        geometry, matrix = ctx.geometry, weight.flatten(1)
        grad_input = torch.empty_like(input) if ctx.needs_input_grad[0] else None
        grad_offset = torch.empty_like(offset)
        grad_mask = None if mask is None else torch.empty_like(mask)
        grad_matrix = torch.zeros_like(matrix)
        with torch.autocast(grad.device.type, enabled=False):
            for images in geometry.image_tiles():
                source = geometry.bordered(input[images])
                target = None if grad_input is None else torch.zeros_like(source)
                for rows in geometry.row_tiles():
                    corners = geometry.corners(offset[images, :, rows], rows)
                    tile_mask = geometry.per_sample(mask, images, rows)
                    tile_grad = grad[images, :, rows].flatten(2)
                    grad_columns = geometry.as_samples(torch.matmul(matrix.t(), tile_grad))
                    columns, dots = torch.zeros_like(grad_columns), []
                    for shift, weight_ in zip(geometry.shifts, _bilinear_weights(corners, tile_mask)):
                        neighbour = _gather(source, shift, corners.index)
                        columns.addcmul_(neighbour, weight_)
                        dots.append(_sum_channels(neighbour.mul_(grad_columns)))
                        if target is not None:
                            _scatter_add(target, shift, corners.index, grad_columns * weight_)
                    grad_matrix += torch.matmul(tile_grad, geometry.as_columns(columns).transpose(1, 2)).sum(0)
                    dy, dx, dmask = _position_grads(dots, corners)
                    if tile_mask is not None:
                        dy, dx = dy.mul_(tile_mask), dx.mul_(tile_mask)
                        geometry.store(grad_mask[images, :, rows], dmask)
                    tile = grad_offset[images, :, rows]
                    geometry.store(tile[:, 0::2], dy)
                    geometry.store(tile[:, 1::2], dx)
                if target is not None:
                    grad_input[images] = geometry.unbordered(target)
        return grad_input, grad_offset, grad_mask, grad_matrix.view_as(weight), None, None, None


class _Corners(NamedTuple):
    """Where to sample, each [n, G, 1, S]: S = k*k*rows*Wo samples."""

    index: Tensor  # of the upper left neighbour in the flattened, bordered map
    fy: Tensor  # fractions of a pixel below and right of it
    fx: Tensor


class _Geometry(NamedTuple):
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

    @classmethod
    def of(cls, input: Tensor, offset: Tensor, weight: Tensor, stride: int, padding: int, wrap: bool) -> "_Geometry":
        kernel = weight.shape[-1]
        groups = offset.shape[1] // (2 * kernel * kernel)
        return cls(*input.shape, *offset.shape[2:], groups, kernel, stride, padding, wrap)

    @property
    def shifts(self) -> tuple[int, int, int, int]:
        """How far each neighbour lies behind the upper left one in a flattened, bordered map."""
        row = self.width + 2 * BORDER
        return 0, 1, row, row + 1

    @property
    def tile_positions(self) -> int:
        return max(TILE_POSITIONS, TILE_SAMPLES // (self.channels * self.kernel**2))

    def image_tiles(self) -> Iterator[slice]:
        step = max(1, self.tile_positions // (self.out_height * self.out_width))
        return (slice(i, i + step) for i in range(0, self.batch, step))

    def row_tiles(self) -> Iterator[slice]:
        step = max(1, self.tile_positions // self.out_width)
        return (slice(i, min(i + step, self.out_height)) for i in range(0, self.out_height, step))

    def per_sample(self, mask: Tensor | None, images: slice, rows: slice) -> Tensor | None:
        return None if mask is None else self.as_samples(mask[images, :, rows], 1)

    def as_samples(self, x: Tensor, channels: int | None = None) -> Tensor:
        """[n, G*channels*k*k, ...] -> [n, G, channels, S]."""
        return x.reshape(len(x), self.groups, channels or self.channels // self.groups, -1)

    def as_columns(self, x: Tensor) -> Tensor:
        """[n, G, C/G, S] -> [n, C*k*k, rows*Wo]."""
        return x.view(len(x), self.channels * self.kernel**2, -1)

    def store(self, tile: Tensor, value: Tensor) -> None:
        tile.copy_(value.view(tile.shape))

    def bordered(self, x: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, G, C/G, (H+4)*(W+4)], zeros around; a wrapped map goes on sideways."""
        if self.wrap:
            x = F.pad(x[..., self.wrapped_columns(x.device)], (0, 0, BORDER, BORDER))
        else:
            x = F.pad(x, [BORDER] * 4)
        return self.as_samples(x)

    def unbordered(self, x: Tensor) -> Tensor:
        """The gradient of `bordered`."""
        x = x.view(len(x), self.channels, self.height + 2 * BORDER, -1)[:, :, BORDER:-BORDER]
        if not self.wrap:
            return x[..., BORDER:-BORDER]
        return x.new_zeros(*x.shape[:3], self.width).index_add_(3, self.wrapped_columns(x.device), x)

    def wrapped_columns(self, device: torch.device) -> Tensor:
        return torch.arange(-BORDER, self.width + BORDER, device=device) % self.width

    def corners(self, offset: Tensor, rows: slice) -> _Corners:
        like = {"device": offset.device, "dtype": offset.dtype}
        tap = torch.arange(self.kernel, **like) - self.padding
        row = torch.arange(rows.start, rows.stop, **like) * self.stride
        col = torch.arange(self.out_width, **like) * self.stride
        # [n, G*k*k*2, rows, Wo] -> [n, G, k, k, 2, rows, Wo]
        offset = offset.unflatten(1, (self.groups, self.kernel, self.kernel, 2))
        y = offset[:, :, :, :, 0] + (tap[:, None, None] + row[:, None])[:, None]
        x = offset[:, :, :, :, 1] + (tap[:, None, None] + col)
        y = y.clamp_(-BORDER, self.height)
        x = x.remainder_(self.width) if self.wrap else x.clamp_(-BORDER, self.width)
        top, left = y.floor(), x.floor()
        width = self.width + 2 * BORDER
        index = left.int().add_(top.int(), alpha=width).add_(BORDER * width + BORDER)
        # A NaN position has an arbitrary index; its fractions, and so its samples, are NaN.
        index = index.clamp_(0, (self.height + BORDER) * width + self.width + BORDER).long()
        return _Corners(*(self.as_samples(t, 1) for t in (index, y.sub_(top), x.sub_(left))))


def _bilinear_weights(corners: _Corners, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of the upper left, upper right, lower left and lower right neighbours, times the mask."""
    lower = corners.fy if mask is None else corners.fy * mask
    upper = 1 - corners.fy if mask is None else mask - lower
    upper_right, lower_right = upper * corners.fx, lower * corners.fx
    return upper.sub_(upper_right), upper_right, lower - lower_right, lower_right


def _gather(source: Tensor, shift: int, index: Tensor) -> Tensor:
    """One neighbour of every sample, [n, G, C/G, S]."""
    return source[..., shift:].gather(3, index.expand(-1, -1, source.shape[2], -1))


def _scatter_add(target: Tensor, shift: int, index: Tensor, value: Tensor) -> None:
    target[..., shift:].scatter_add_(3, index.expand(-1, -1, target.shape[2], -1), value)


def _sum_channels(x: Tensor) -> Tensor:
    return x if x.shape[2] == 1 else x.sum(2, keepdim=True)


def _position_grads(dots: list[Tensor], corners: _Corners) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y, x (both still without the mask) and the mask.

    From the dot products over channels of the samples' gradient with each neighbour.
    """
    a, b, c, d = dots
    upper, lower = torch.lerp(a, b, corners.fx), torch.lerp(c, d, corners.fx)
    dx = torch.lerp(b.sub_(a), d.sub_(c), corners.fy)
    return lower - upper, dx, torch.lerp(upper, lower, corners.fy)
