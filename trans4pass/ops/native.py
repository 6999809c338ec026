"""Deformable convolution in plain PyTorch, with a hand-written backward.

Positions stay in pixels, so that whole-number positions (all of them at zero offset) are exact; the normalised
coordinates of `grid_sample` are not. The map gets a border of two zeros: positions are clamped to [-2, size], where all
four neighbours exist and those outside the map count 0, in values and in every gradient.

Memory: the samples, [B, C*k*k, Ho, Wo], are never kept for the backward pass. Both passes go through the batch in
chunks and compute them anew, so that temporaries stay in the processor's cache.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BORDER = 2
CHUNK = 1 << 19  # samples at a time: 2 MiB for each temporary


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
    """See `trans4pass.ops.deform_conv2d`; all tensors share one floating dtype. Twice differentiable it is not."""
    out = _DeformConv.apply(input, offset, mask, weight, stride, padding, wrap)
    return out if bias is None else out + bias[:, None, None]


class _Geometry(NamedTuple):
    stride: int
    padding: int
    wrap: bool
    kernel: int
    groups: int
    chunk: int  # images at a time


class _Corners(NamedTuple):
    """Where to sample: all [n, G, 1, k*k*Ho*Wo]."""

    index: Tensor  # of the upper left neighbour in the flattened, bordered map
    fy: Tensor  # fractions of a pixel below and right of it
    fx: Tensor


class _DeformConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, offset, mask, weight, stride, padding, wrap):
        b, c, _, _ = input.shape
        kernel, positions = weight.shape[-1], offset.shape[-2] * offset.shape[-1]
        groups = offset.shape[1] // (2 * kernel * kernel)
        chunk = max(1, CHUNK // max(1, c * kernel * kernel * positions))
        ctx.geometry = geometry = _Geometry(stride, padding, wrap, kernel, groups, chunk)
        ctx.save_for_backward(input, offset, mask, weight)
        out = input.new_empty(b, weight.shape[0], *offset.shape[-2:])
        for part in _parts(b, chunk):
            corners = _corners(offset[part], input.shape, geometry)
            weights = _weights(corners, _flat_mask(mask, part, groups))
            neighbours = _gather(_bordered(input[part], geometry), corners.index, input.shape[-1])
            columns = _combine(neighbours, weights).view(-1, c * kernel * kernel, positions)
            out[part] = torch.matmul(weight.flatten(1), columns).view_as(out[part])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        input, offset, mask, weight = ctx.saved_tensors
        geometry, flat_weight = ctx.geometry, weight.flatten(1)
        groups, width = geometry.groups, input.shape[-1]
        grad_input = torch.empty_like(input) if ctx.needs_input_grad[0] else None
        grad_offset = torch.empty_like(offset)
        grad_mask = None if mask is None else torch.empty_like(mask)
        grad_weight = torch.zeros_like(flat_weight)
        with torch.autocast(grad.device.type, enabled=False):
            for part in _parts(len(input), geometry.chunk):
                corners = _corners(offset[part], input.shape, geometry)
                part_mask = _flat_mask(mask, part, groups)
                weights = _weights(corners, part_mask)
                bordered = _bordered(input[part], geometry)
                neighbours = _gather(bordered, corners.index, width)
                columns = _combine(neighbours, weights)
                part_grad = grad[part].flatten(2)
                columns_2d = columns.view(len(part_grad), flat_weight.shape[1], -1)
                grad_weight += torch.matmul(part_grad, columns_2d.transpose(1, 2)).sum(0)
                grad_columns = torch.matmul(flat_weight.t(), part_grad).view_as(columns)
                if grad_input is not None:
                    scattered = _scatter(grad_columns, weights, corners.index, bordered, width)
                    grad_input[part] = _unbordered(scattered, geometry, input.shape)
                moved, modulated = _position_grad(grad_columns, neighbours, corners, part_mask, geometry.kernel**2)
                grad_offset[part] = moved.view_as(grad_offset[part])
                if grad_mask is not None:
                    grad_mask[part] = modulated.view_as(grad_mask[part])
        return grad_input, grad_offset, grad_mask, grad_weight.view_as(weight), None, None, None


def _parts(batch: int, chunk: int) -> list[slice]:
    return [slice(i, i + chunk) for i in range(0, batch, chunk)]


def _flat_mask(mask: Tensor | None, part: slice, groups: int) -> Tensor | None:
    return None if mask is None else mask[part].reshape(-1, groups, 1, mask[0].numel() // groups)


def _corners(offset: Tensor, input_shape: torch.Size, geometry: _Geometry) -> _Corners:
    height, width = input_shape[-2:]
    (ho, wo), kernel = offset.shape[-2:], geometry.kernel
    like = {"device": offset.device, "dtype": offset.dtype}
    tap = torch.arange(kernel, **like) - geometry.padding
    row, col = torch.arange(ho, **like) * geometry.stride, torch.arange(wo, **like) * geometry.stride
    # [n, G*k*k*2, Ho, Wo] -> [n, G, k, k, 2, Ho, Wo]
    offset = offset.unflatten(1, (geometry.groups, kernel, kernel, 2))
    y = offset[:, :, :, :, 0] + (tap[:, None, None] + row[:, None])[:, None]
    x = offset[:, :, :, :, 1] + (tap[:, None, None] + col)
    y = y.clamp_(-BORDER, height)
    x = x.remainder_(width) if geometry.wrap else x.clamp_(-BORDER, width)
    top, left = y.floor(), x.floor()
    index = (top.int() + BORDER) * (width + 2 * BORDER) + (left.int() + BORDER)
    # A NaN position has an arbitrary index; its fractions, and so its samples, are NaN.
    index = index.clamp_(0, (height + BORDER) * (width + 2 * BORDER) + width + BORDER).long()
    # [n, G, k, k, Ho, Wo] -> [n, G, 1, k*k*Ho*Wo]
    return _Corners(*(t.flatten(2).unsqueeze(2) for t in (index, y.sub_(top), x.sub_(left))))


def _weights(corners: _Corners, mask: Tensor | None) -> list[Tensor]:
    """Weights of the upper left, upper right, lower left and lower right neighbours, times the mask."""
    lower = corners.fy if mask is None else corners.fy * mask
    upper = 1 - corners.fy if mask is None else mask - lower
    upper_right, lower_right = upper * corners.fx, lower * corners.fx
    return [upper - upper_right, upper_right, lower - lower_right, lower_right]


def _bordered(input: Tensor, geometry: _Geometry) -> Tensor:
    """[n, C, H, W] -> [n, G, C/G, (H+4)*(W+4)], zeros around; a wrapped map continues sideways."""
    if geometry.wrap:
        padded = F.pad(input[..., _wrapped_columns(input)], (0, 0, BORDER, BORDER))
    else:
        padded = F.pad(input, [BORDER] * 4)
    return padded.reshape(len(input), geometry.groups, -1, padded.shape[-2] * padded.shape[-1])


def _unbordered(padded: Tensor, geometry: _Geometry, input_shape: torch.Size) -> Tensor:
    """The gradient of `_bordered`."""
    _, c, h, w = input_shape
    inner = padded.view(-1, c, h + 2 * BORDER, w + 2 * BORDER)[:, :, BORDER:-BORDER]
    if not geometry.wrap:
        return inner[..., BORDER:-BORDER]
    result = inner.new_zeros(len(inner), c, h, w)
    return result.index_add_(3, _wrapped_columns(result), inner)


def _wrapped_columns(x: Tensor) -> Tensor:
    return torch.arange(-BORDER, x.shape[-1] + BORDER, device=x.device) % x.shape[-1]


def _shifts(width: int) -> tuple[int, int, int, int]:
    """How far each neighbour lies behind the upper left one in a flattened, bordered map."""
    row = width + 2 * BORDER
    return 0, 1, row, row + 1


def _gather(bordered: Tensor, index: Tensor, width: int) -> list[Tensor]:
    """The four neighbours of every sample, each [n, G, C/G, k*k*Ho*Wo]."""
    index = index.expand(-1, -1, bordered.shape[2], -1)
    return [bordered[..., shift:].gather(3, index) for shift in _shifts(width)]


def _scatter(grad: Tensor, weights: list[Tensor], index: Tensor, bordered: Tensor, width: int) -> Tensor:
    index = index.expand(-1, -1, bordered.shape[2], -1)
    result = torch.zeros_like(bordered)
    for shift, weight in zip(_shifts(width), weights):
        result[..., shift:].scatter_add_(3, index, grad * weight)
    return result


def _combine(neighbours: list[Tensor], weights: list[Tensor]) -> Tensor:
    total = neighbours[0] * weights[0]
    for neighbour, weight in zip(neighbours[1:], weights[1:]):
        total.addcmul_(neighbour, weight)
    return total


def _position_grad(
    grad: Tensor, neighbours: list[Tensor], corners: _Corners, mask: Tensor | None, taps: int
) -> tuple[Tensor, Tensor]:
    """Gradients of the offsets [n, G, k*k, 2, Ho*Wo] and of the mask [n, G, 1, k*k*Ho*Wo]."""
    # The gradient's dot products with the neighbours are all that both need: channels drop out.
    a, b, c, d = ((grad * v).sum(2, keepdim=True) for v in neighbours)
    upper, lower = torch.lerp(a, b, corners.fx), torch.lerp(c, d, corners.fx)
    dy, dx = lower - upper, torch.lerp(b - a, d - c, corners.fy)
    if mask is not None:
        dy, dx = dy * mask, dx * mask
    # 2 x [n, G, 1, k*k*Ho*Wo] -> [n, G, k*k, 2, Ho*Wo]
    moved = torch.stack([t.unflatten(3, (taps, -1)).squeeze(2) for t in (dy, dx)], 3)
    return moved, torch.lerp(upper, lower, corners.fy)
