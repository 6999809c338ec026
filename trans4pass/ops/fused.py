"""Deformable convolution in Triton: one kernel samples and modulates, one goes back, and a matrix product mixes.

Values may be in half precision; positions, and all that is computed of them, are in the offset's. Not run on a GPU yet:
it is tested in Triton's interpreter (TRITON_INTERPRET=1), which computes on the CPU.

Sizes in the shapes below: N output positions, K = k*k taps, G offset groups.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.runtime.interpreter import InterpretedFunction

from trans4pass.errors import ConfigError
from trans4pass.ops.sampling import Placing

POSITIONS = 256  # of a program, which takes one tap of one offset group of one image


def deform_conv2d(
    input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, placing: Placing
) -> Tensor:
    """See `trans4pass.ops.deform_conv2d`; no samples are kept for the backward pass, and no second derivative is there.

    Raises ConfigError on a CPU, but for the interpreter, and in torch's deterministic mode.
    """
    if input.device.type == "cpu" and not isinstance(_sample, InterpretedFunction):
        raise ConfigError(
            "deform_backend 'triton' runs on GPUs, and the tensors are on the CPU: use 'auto', or set "
            "TRITON_INTERPRET=1 in the environment to try the kernels out, slowly"
        )
    if torch.are_deterministic_algorithms_enabled():
        raise ConfigError("deform_backend 'triton' adds gradients up in any order; deterministic=true needs 'auto'")
    tensors = input.contiguous(), offset.contiguous(), mask.contiguous(), weight, bias
    return _DeformConv.apply(*tensors, (weight.shape[-1], *map(int, placing)))


class _DeformConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, placing: Sequence[int]
    ) -> Tensor:
        ctx.save_for_backward(input, offset, mask, weight)
        ctx.placing = placing
        samples = sample(input, offset, mask, placing)
        matrix = weight.flatten(1).expand(len(input), -1, -1)  # [O, C, k, k] -> [B, O, C*K]
        out = torch.bmm(matrix, samples) if bias is None else torch.baddbmm(bias[:, None], matrix, samples)
        return out.unflatten(2, offset.shape[2:])  # [B, O, N] -> [B, O, Ho, Wo]

    @staticmethod
    @once_differentiable
    # torch's stub takes any number of gradients; there is one.
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        input, offset, mask, weight = ctx.saved_tensors
        grad = grad.flatten(2)  # [B, O, Ho, Wo] -> [B, O, N]
        with torch.autocast(grad.device.type, enabled=False):
            matrix = weight.flatten(1).t().expand(len(input), -1, -1)  # [O, C, k, k] -> [B, C*K, O]
            samples, grad_input, grad_offset, grad_mask = sample_backward(
                torch.bmm(matrix, grad), input, offset, mask, ctx.placing, ctx.needs_input_grad[0]
            )
            grad_matrix = torch.bmm(grad, samples.transpose(1, 2)).sum(0, dtype=offset.dtype).to(weight.dtype)
        return (
            grad_input.to(input.dtype) if ctx.needs_input_grad[0] else None,
            grad_offset,
            grad_mask,
            grad_matrix.view_as(weight),
            grad.sum((0, 2)) if ctx.needs_input_grad[4] else None,
            None,
        )


# Operators of torch's, so that compiled graphs and tensors without memory pass them by. `placing` is the kernel's size,
# the stride, the padding, and whether the map's sides meet.


@torch.library.custom_op("trans4pass::sample", mutates_args=())
def sample(input: Tensor, offset: Tensor, mask: Tensor, placing: Sequence[int]) -> Tensor:
    """Modulated samples [B, C*K, N] of `input` [B, C, H, W], of its type; all tensors are contiguous."""
    samples = _new_samples(input, offset, mask, placing)
    grid, sizes = _launch(input, offset, placing)
    with torch.cuda.device_of(input):
        _sample[grid](input, offset, mask, samples, *sizes, *placing, POSITIONS)  # pyright: ignore[reportCallIssue] constants
    return samples


@sample.register_fake
def _new_samples(input: Tensor, offset: Tensor, mask: Tensor, placing: Sequence[int]) -> Tensor:
    return input.new_empty(len(input), input.shape[1] * placing[0] ** 2, offset.shape[2] * offset.shape[3])


@torch.library.custom_op("trans4pass::sample_backward", mutates_args=())
def sample_backward(
    grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor, placing: Sequence[int], scatter: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The samples again, and the gradients of input (in the offset's type, for sums), offset and mask, from theirs.

    The input's is empty without `scatter`.
    """
    made = _new_gradients(grad, input, offset, mask, placing, scatter)
    grid, sizes = _launch(input, offset, placing)
    tensors = grad.contiguous(), input, offset, mask, *made
    with torch.cuda.device_of(input):
        _sample_backward[grid](*tensors, *sizes, *placing, scatter, POSITIONS)  # pyright: ignore[reportCallIssue] constants
    return made


@sample_backward.register_fake
def _new_gradients(
    grad: Tensor, input: Tensor, offset: Tensor, mask: Tensor, placing: Sequence[int], scatter: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_input = offset.new_zeros(input.shape if scatter else 0)
    return _new_samples(input, offset, mask, placing), grad_input, torch.empty_like(offset), torch.empty_like(mask)


def _launch(input: Tensor, offset: Tensor, placing: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The grid: programs along positions, taps of offset groups, images; the arguments from `height` to `depth`."""
    (batch, channels, height, width), (planes, rows, columns) = input.shape, offset.shape[1:]
    count, depth = rows * columns, channels * 2 * placing[0] ** 2 // planes
    return (-(-count // POSITIONS), planes // 2, batch), (height, width, columns, count, depth)


@triton.jit
def _corners(
    offset, height, width, columns, count, kernel, stride, padding, WRAP: tl.constexpr, POSITIONS: tl.constexpr
):
    """The program's tap, output positions and which of these there are; of each sample's four neighbours the place in
    a plane, then whether they are there, then how far below and right of the upper left one the sample lies, as a
    fraction of a pixel.

    The tap counts those of all images and groups before its own.
    """
    tap = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    place = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    inside = place < count
    number = (tap % (kernel * kernel)).to(tl.int32)
    start = offset + 2 * tap * count
    y = tl.load(start + place, mask=inside, other=0) + (place // columns * stride + number // kernel - padding)
    x = tl.load(start + count + place, mask=inside, other=0) + (place % columns * stride + number % kernel - padding)
    # Comparisons leave NaN as it is, so that the sample becomes NaN, and it alone.
    y = tl.where(y < -2, -2, tl.where(y > height, height, y))
    if WRAP:
        x -= tl.floor(x / width) * width
    else:
        x = tl.where(x < -2, -2, tl.where(x > width, width, x))
    top, left = tl.floor(y), tl.floor(x)
    row, column = top.to(tl.int32), left.to(tl.int32)
    right = column + 1
    if WRAP:
        # Rounding may have led to either side.
        column = tl.where(column < 0, column + width, tl.where(column >= width, column - width, column))
        right = tl.where(column == width - 1, 0, column + 1)
    upper, lower = inside & (row >= 0) & (row < height), inside & (row >= -1) & (row < height - 1)
    there, there_right = (column >= 0) & (column < width), (right >= 0) & (right < width)
    above, below = row * width, (row + 1) * width
    return (
        tap, place, inside,
        above + column, above + right, below + column, below + right,
        upper & there, upper & there_right, lower & there, lower & there_right,
        y - top, x - left,
    )  # fmt: skip


@triton.jit
def _sample(
    input, offset, mask, samples, height, width, columns, count, depth, kernel, stride, padding,
    WRAP: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    # Triton's type says that kernels are never called by each other.
    tap, place, inside, i00, i01, i10, i11, is00, is01, is10, is11, fy, fx = _corners(  # pyright: ignore[reportGeneralTypeIssues]
        offset, height, width, columns, count, kernel, stride, padding, WRAP, POSITIONS
    )
    taps = kernel * kernel
    factor = tl.load(mask + tap * count + place, mask=inside, other=0).to(fy.dtype)
    for number in range(depth):
        channel = tap // taps * depth + number
        plane = input + channel * height * width
        v00 = tl.load(plane + i00, mask=is00, other=0).to(fy.dtype)
        v01 = tl.load(plane + i01, mask=is01, other=0).to(fy.dtype)
        v10 = tl.load(plane + i10, mask=is10, other=0).to(fy.dtype)
        v11 = tl.load(plane + i11, mask=is11, other=0).to(fy.dtype)
        upper, lower = v00 + fx * (v01 - v00), v10 + fx * (v11 - v10)
        value = upper + fy * (lower - upper)
        tl.store(samples + (channel * taps + tap % taps) * count + place, value * factor, mask=inside)


@triton.jit
def _sample_backward(
    grad, input, offset, mask, samples, grad_input, grad_offset, grad_mask,
    height, width, columns, count, depth, kernel, stride, padding,
    WRAP: tl.constexpr, SCATTER: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    # Triton's type says that kernels are never called by each other.
    tap, place, inside, i00, i01, i10, i11, is00, is01, is10, is11, fy, fx = _corners(  # pyright: ignore[reportGeneralTypeIssues]
        offset, height, width, columns, count, kernel, stride, padding, WRAP, POSITIONS
    )
    taps = kernel * kernel
    dy, dx, dm = fy * 0, fy * 0, fy * 0
    factor = tl.load(mask + tap * count + place, mask=inside, other=0).to(fy.dtype)
    for number in range(depth):
        channel = tap // taps * depth + number
        at = (channel * taps + tap % taps) * count + place
        plane = input + channel * height * width
        v00 = tl.load(plane + i00, mask=is00, other=0).to(fy.dtype)
        v01 = tl.load(plane + i01, mask=is01, other=0).to(fy.dtype)
        v10 = tl.load(plane + i10, mask=is10, other=0).to(fy.dtype)
        v11 = tl.load(plane + i11, mask=is11, other=0).to(fy.dtype)
        upper, lower = v00 + fx * (v01 - v00), v10 + fx * (v11 - v10)
        value = upper + fy * (lower - upper)
        tl.store(samples + at, value * factor, mask=inside)
        g = tl.load(grad + at, mask=inside, other=0).to(fy.dtype)
        dm += g * value
        g *= factor
        dy += g * (lower - upper)
        dx += g * (v01 - v00 + fy * (v11 - v10 - (v01 - v00)))
        if SCATTER:
            target = grad_input + channel * height * width
            g1 = g * fy
            g0 = g - g1
            tl.atomic_add(target + i00, g0 - g0 * fx, mask=is00, sem="relaxed")
            tl.atomic_add(target + i01, g0 * fx, mask=is01, sem="relaxed")
            tl.atomic_add(target + i10, g1 - g1 * fx, mask=is10, sem="relaxed")
            tl.atomic_add(target + i11, g1 * fx, mask=is11, sem="relaxed")
    start = grad_offset + 2 * tap * count + place
    tl.store(start, dy, mask=inside)
    tl.store(start + count, dx, mask=inside)
    tl.store(grad_mask + tap * count + place, dm, mask=inside)
