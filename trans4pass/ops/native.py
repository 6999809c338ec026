"""Deformable convolution in plain PyTorch, with a hand-written backward.

Positions stay in pixels, so that whole-number positions (all of them at zero offset) are exact; the normalised
coordinates of `grid_sample` are not.

Memory: the samples, [B, C*k*k, Ho, Wo], are never held at once, nor kept for the backward pass. Both passes go tile by
tile (some images, or some positions of one) and sample anew, so that temporaries stay in the processor's cache.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trans4pass.ops.sampling import Corners, PlaneSampler, RowSampler, Sampler

ROW_CHANNELS = 8  # channels per offset group from which on rows are faster than planes (measured on a CPU)


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
    layout = RowSampler if input.shape[1] // groups >= ROW_CHANNELS else PlaneSampler
    sampler = layout(*input.shape, ho, wo, groups, kernel, stride, padding, wrap)
    offset = offset.reshape(-1, groups, kernel**2, 2, ho * wo)  # [B, 2*G*k*k, Ho, Wo] -> [B, G, K, 2, N]
    if mask is not None:
        mask = mask.reshape(-1, groups, kernel**2, ho * wo)  # [B, G*k*k, Ho, Wo] -> [B, G, K, N]
    out = _DeformConv.apply(input, offset, mask, weight, sampler).unflatten(2, (ho, wo))
    return out if bias is None else out + bias[:, None, None]


class _DeformConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, sampler: Sampler) -> Tensor:
        ctx.save_for_backward(input, offset, mask, weight)
        ctx.sampler = sampler
        matrix = sampler.matrix(weight)
        out = input.new_empty(len(input), len(weight), offset.shape[-1])
        for images, parts in sampler.tiles():
            source = sampler.lay_map(sampler.bordered(input[images]))
            for positions in parts:
                tile = images, ..., positions
                corners = sampler.corners(offset[tile], positions)
                columns = _columns(sampler, source, corners, None if mask is None else mask[tile])
                out[tile] = torch.matmul(matrix, columns)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, offset, mask, weight = ctx.saved_tensors
        sampler: Sampler = ctx.sampler
        matrix = sampler.matrix(weight)
        grad_input = torch.empty_like(input) if ctx.needs_input_grad[0] else None
        grad_offset, grad_mask = torch.empty_like(offset), None if mask is None else torch.empty_like(mask)
        grad_matrix = torch.zeros_like(matrix)
        with torch.autocast(grad.device.type, enabled=False):
            for images, parts in sampler.tiles():
                source = sampler.lay_map(sampler.bordered(input[images]))
                target = None if grad_input is None else torch.zeros_like(source)
                for positions in parts:
                    tile = images, ..., positions
                    corners, tile_mask = sampler.corners(offset[tile], positions), None if mask is None else mask[tile]
                    grad_samples = sampler.grad_samples(matrix, grad[tile])
                    columns, dots = _columns_backward(sampler, source, target, corners, tile_mask, grad_samples)
                    grad_matrix += torch.matmul(grad[tile], columns.transpose(1, 2)).sum(0)
                    dy, dx, modulator = corners.grads(dots, tile_mask)
                    grad_offset[tile][..., 0, :], grad_offset[tile][..., 1, :] = dy, dx
                    if grad_mask is not None:
                        grad_mask[tile] = modulator
                if target is not None:
                    grad_input[images] = sampler.unbordered(sampler.unlay_map(target))
        return grad_input, grad_offset, grad_mask, sampler.unmatrix(grad_matrix), None


def _columns(sampler: Sampler, source: Tensor, corners: Corners, mask: Tensor | None) -> Tensor:
    index, samples = sampler.lay_index(corners.index), 0
    for shift, weight in zip(sampler.shifts, corners.weights(mask)):
        samples = sampler.gather(source, shift, index).mul_(sampler.lay(weight)).add_(samples)
    return sampler.columns(samples, corners.index.shape)


def _columns_backward(
    sampler: Sampler, source: Tensor, target: Tensor | None, corners: Corners, mask: Tensor | None, grad: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Compute the columns anew and add the samples' gradient `grad` to the map `target`.

    Also returns, for each neighbour, the dot products over channels of its values and `grad`, [n, G, K, P].
    """
    shape, index = corners.index.shape, sampler.lay_index(corners.index)
    samples, dots = torch.zeros_like(grad), []
    for shift, weight in zip(sampler.shifts, corners.weights(mask)):
        weight = sampler.lay(weight)
        neighbour = sampler.gather(source, shift, index)
        samples.addcmul_(neighbour, weight)
        dot = neighbour.mul_(grad) if sampler.depth == 1 else neighbour.mul_(grad).sum(1, keepdim=True)
        dots.append(sampler.unlay(dot, shape))
        if target is not None:
            sampler.scatter_add(target, shift, index, grad * weight)
    return sampler.columns(samples, shape), dots
