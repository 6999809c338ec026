"""Deformable convolution in plain PyTorch, with a hand-written backward.

Positions stay in pixels, so that whole-number positions (all of them at zero offset) are exact; the normalised
coordinates of `grid_sample` are not.

Memory: on a CPU the samples, [B, C*k*k, Ho, Wo], are never held at once; nowhere are they kept for the backward pass.
Both passes go block by block (elsewhere than on a CPU, where each block costs launches, there is one) and sample anew.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trans4pass.ops.sampling import Placing, Sampler, choose_layout


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    placing: Placing,
    forward: Callable[[], Tensor] | None = None,
) -> Tensor:
    """See `trans4pass.ops.deform_conv2d`; all tensors share one floating dtype, and there is no second derivative.

    `forward` gives the result [B, O, Ho, Wo] in another way; the backward pass is that of here all the same.
    """
    kernel, (ho, wo) = weight.shape[-1], offset.shape[2:]
    groups = offset.shape[1] // (2 * kernel**2)
    sampler = choose_layout(input.shape[1], groups)(input, offset, kernel, groups, placing, is_tiled(input.device))
    offset = offset.contiguous().view(-1, groups, kernel**2, 2, ho * wo)  # [B, 2*G*k*k, Ho, Wo] -> [B, G, K, 2, N]
    mask = mask.contiguous().view(-1, groups, kernel**2, ho * wo)  # [B, G*k*k, Ho, Wo] -> [B, G, K, N]
    return _DeformConv.apply(input, offset, mask, weight, bias, sampler, forward).unflatten(2, (ho, wo))


def is_tiled(device: torch.device) -> bool:
    """Whether temporaries should fit a cache: each tile is a dozen launches, which only a CPU has for nothing."""
    return device.type == "cpu"


class _DeformConv(torch.autograd.Function):
    """[B, O, N] from an offset [B, G, K, 2, N] and a mask [B, G, K, N]; N output positions, K = k*k taps."""

    @staticmethod
    def forward(
        ctx,
        input: Tensor,
        offset: Tensor,
        mask: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sampler: Sampler,
        forward: Callable[[], Tensor] | None,
    ) -> Tensor:
        ctx.save_for_backward(input, offset, mask, weight)
        ctx.sampler = sampler
        if forward is not None:
            return forward().flatten(2)  # [B, O, Ho, Wo] -> [B, O, N]
        matrix = sampler.matrix(weight)
        out, maps = input.new_empty(len(input), len(weight), offset.shape[-1]), sampler.new_maps(input)
        for images, parts in sampler.blocks():
            source = sampler.fill_maps(maps, input[images])
            for positions in parts:
                block, grid = out[images, :, positions], sampler.grid(positions, offset)
                tile = images, ..., positions
                samples = sampler.sample_block(block, source, offset[tile], mask[tile], grid)
                torch.bmm(matrix.expand(len(block), -1, -1), sampler.columns(samples, block), out=block)
                if bias is not None:
                    block += bias[:, None]
        return out

    @staticmethod
    @once_differentiable
    # torch's stub takes any number of gradients; there is one.
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        input, offset, mask, weight = ctx.saved_tensors
        sampler: Sampler = ctx.sampler
        matrix = sampler.matrix(weight)
        grad_input = torch.empty_like(input) if ctx.needs_input_grad[0] else None
        grad_offset, grad_mask = torch.empty_like(offset), torch.empty_like(mask)
        grad_matrix, grad_bias = torch.zeros_like(matrix), grad.sum((0, 2)) if ctx.needs_input_grad[4] else None
        maps, grad_maps = sampler.new_maps(input), None if grad_input is None else sampler.new_maps(input)
        with torch.autocast(grad.device.type, enabled=False):
            for images, parts in sampler.blocks():
                source = sampler.fill_maps(maps, input[images])
                target = None if grad_maps is None else grad_maps[: len(source)].zero_()
                for positions in parts:
                    block = grad[images, :, positions]
                    samples, grid = sampler.new_samples(block), sampler.grid(positions, offset)
                    grad_samples = sampler.grad_samples(matrix, block)
                    for groups in sampler.tiles(block):
                        tile = images, groups, ..., positions
                        corners = sampler.corners(offset[tile], mask[tile], grid)
                        laid = source[:, groups], samples[:, groups], grad_samples[:, groups]
                        onto = None if target is None else target[:, groups]
                        sampler.sample_backward(corners, *laid, onto, (grad_offset[tile], grad_mask[tile]))
                    grad_matrix += torch.bmm(block, sampler.columns(samples, block).transpose(1, 2)).sum(0)
                if grad_input is not None and target is not None:
                    grad_input[images] = sampler.unbordered(target)
        return grad_input, grad_offset, grad_mask, sampler.unmatrix(grad_matrix), grad_bias, None, None
