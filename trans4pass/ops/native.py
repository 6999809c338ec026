"""Deformable convolution in plain PyTorch, with a hand-written backward.

Positions stay in pixels, so that whole-number positions (all of them at zero offset) are exact; the normalised
coordinates of `grid_sample` are not.

Memory: the samples, [B, C*k*k, Ho, Wo], are never held at once, nor kept for the backward pass. Both passes go block by
block and sample anew.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trans4pass.ops.sampling import Corners, PlaneSampler, RowSampler, Sampler

ROW_CHANNELS = 8  # from which on rows are faster than planes, measured on a CPU


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
    kernel, (ho, wo) = weight.shape[-1], offset.shape[2:]
    groups = offset.shape[1] // (2 * kernel**2)
    layout = RowSampler if groups == 1 and input.shape[1] >= ROW_CHANNELS else PlaneSampler
    sampler = layout(*input.shape, ho, wo, groups, kernel, stride, padding, wrap)
    offset = offset.contiguous().view(-1, groups, kernel**2, 2, ho * wo)  # [B, 2*G*k*k, Ho, Wo] -> [B, G, K, 2, N]
    if mask is not None:
        mask = mask.contiguous().view(-1, groups, kernel**2, ho * wo)  # [B, G*k*k, Ho, Wo] -> [B, G, K, N]
    out = _DeformConv.apply(input, offset, mask, weight, sampler).unflatten(2, (ho, wo))
    return out if bias is None else out + bias[:, None, None]


class _DeformConv(torch.autograd.Function):
    """[B, O, N] from an offset [B, G, K, 2, N] and a mask [B, G, K, N]; N output positions, K = k*k taps."""

    @staticmethod
    def forward(ctx, input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, sampler: Sampler) -> Tensor:
        ctx.save_for_backward(input, offset, mask, weight)
        ctx.sampler = sampler
        matrix, (taps, grid) = sampler.matrix(weight), sampler.grid(offset)
        out = input.new_empty(len(input), len(weight), offset.shape[-1])
        for images, parts in sampler.blocks():
            source = sampler.lay_map(sampler.bordered(input[images]))
            for positions in parts:
                block = out[images, :, positions]
                samples = sampler.new_samples(block)
                for groups in sampler.tiles(block):
                    tile = images, groups, ..., positions
                    corners = sampler.corners(offset[tile], _at(mask, tile), taps + grid[:, positions])
                    _sample(sampler, corners, sampler.part(source, groups), sampler.part(samples, groups))
                block.copy_(torch.matmul(matrix, sampler.columns(samples, block)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, offset, mask, weight = ctx.saved_tensors
        sampler: Sampler = ctx.sampler
        matrix, (taps, grid) = sampler.matrix(weight), sampler.grid(offset)
        grad_input = torch.empty_like(input) if ctx.needs_input_grad[0] else None
        grad_offset, grad_mask = torch.empty_like(offset), None if mask is None else torch.empty_like(mask)
        grad_matrix = torch.zeros_like(matrix)
        with torch.autocast(grad.device.type, enabled=False):
            for images, parts in sampler.blocks():
                source = sampler.lay_map(sampler.bordered(input[images]))
                target = None if grad_input is None else torch.zeros_like(source)
                for positions in parts:
                    block = grad[images, :, positions]
                    samples = sampler.new_samples(block)
                    grad_samples = sampler.uncolumns(torch.matmul(matrix.t(), block))
                    for groups in sampler.tiles(block):
                        tile = images, groups, ..., positions
                        corners = sampler.corners(offset[tile], _at(mask, tile), taps + grid[:, positions])
                        parted = (sampler.part(x, groups) for x in (source, samples, grad_samples, target))
                        dy, dx, modulator = _sample_backward(sampler, corners, *parted)
                        grad_offset[tile][..., 0, :], grad_offset[tile][..., 1, :] = dy, dx
                        if grad_mask is not None:
                            grad_mask[tile] = modulator
                    grad_matrix += torch.matmul(block, sampler.columns(samples, block).transpose(1, 2)).sum(0)
                if target is not None:
                    grad_input[images] = sampler.unbordered(sampler.unlay_map(target))
        return grad_input, grad_offset, grad_mask, sampler.unmatrix(grad_matrix), None


def _at(x: Tensor | None, tile: tuple) -> Tensor | None:
    return None if x is None else x[tile]


def _sample(sampler: Sampler, corners: Corners, source: Tensor, samples: Tensor) -> None:
    """Add the weighted neighbours to `samples`."""
    index = sampler.lay_index(corners.index)
    for shift, weight in zip(sampler.shifts, corners.weights()):
        samples.addcmul_(sampler.gather(source, shift, index), sampler.lay(weight))


def _sample_backward(
    sampler: Sampler, corners: Corners, source: Tensor, samples: Tensor, grad: Tensor, target: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the weighted neighbours to `samples` and, unless it is None, the map's gradient to `target`.

    `grad` is the samples' gradient; returns what `Corners.grads` does.
    """
    index, dots = sampler.lay_index(corners.index), []
    for shift, weight in zip(sampler.shifts, corners.weights()):
        neighbour, weight = sampler.gather(source, shift, index), sampler.lay(weight)
        samples.addcmul_(neighbour, weight)
        dots.append(sampler.unlay(sampler.sum_channels(neighbour.mul_(grad)), corners.index.shape))
        if target is not None:
            sampler.scatter_add(target, shift, index, grad * weight)
    return corners.grads(dots)
