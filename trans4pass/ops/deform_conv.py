"""Modulated deformable convolution (Deformable ConvNets v2, arXiv 1811.11168) behind one function."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from trans4pass.errors import ConfigError
from trans4pass.ops import native
from trans4pass.ops.sampling import Placing


def _torchvision(
    input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, placing: Placing
) -> Tensor:
    stride, padding, wrap = placing
    sides = (stride, stride), (padding, padding)
    if not wrap:
        return torchvision.ops.deform_conv2d(input, offset, weight, bias, *sides, mask=mask)
    width = offset.shape[-1]
    more = -(-2 // stride)  # columns of output that come of the two or more of input, and are cut off again
    offset = F.pad(round_the_map(offset, input.shape[-1], weight.shape[-1], placing), (0, more))
    input = torch.cat((input[..., -1:], input, input[..., : more * stride - 1]), -1)
    return torchvision.ops.deform_conv2d(input, offset, weight, bias, *sides, mask=F.pad(mask, (0, more)))[..., :width]


def round_the_map(offset: Tensor, map_width: int, kernel: int, placing: Placing) -> Tensor:
    """Offsets that bring every sample between the sides of a map that has got one more column on the left."""
    y, x = offset.unflatten(1, (-1, kernel, kernel, 2)).unbind(4)  # [B, G, k, k, Ho, Wo]
    tap = torch.arange(kernel, dtype=offset.dtype, device=offset.device) - placing.padding
    grid = torch.arange(0, placing.stride * x.shape[-1], placing.stride, dtype=offset.dtype, device=offset.device)
    grid = grid + tap[:, None, None]  # [k, 1, Wo]
    x = (x + grid).remainder(map_width) - (grid - 1)
    return torch.stack((y, x), 4).flatten(1, 4)


def _deterministic(*arguments: Any) -> Tensor:
    """torchvision's forward pass, whose backward pass adds up in any order, and the backward pass of native."""
    return native.deform_conv2d(*arguments, forward=lambda: _torchvision(*arguments))


def _mmcv(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, placing: Placing) -> Tensor:
    # Optional, and slow to import.
    from mmcv.ops import modulated_deform_conv2d  # pyright: ignore[reportMissingImports]

    if placing.wrap:
        raise ConfigError("deform_backend 'mmcv' cannot wrap around the map's sides; use 'auto'")
    # At -1 exactly (zero offset, in the padding) the offset's gradient is 0 here, and not so in the other backends.
    groups = offset.shape[1] // (2 * weight.shape[-1] ** 2)
    # It reads memory as if it were contiguous, whatever the strides.
    tensors = [x.contiguous() for x in (input, offset, mask, weight)]
    # The last three: dilation, groups of the weight, offset groups.
    return modulated_deform_conv2d(*tensors, bias, placing.stride, placing.padding, 1, 1, groups)


def _triton(*arguments: Any) -> Tensor:
    from trans4pass.ops import fused  # not everywhere there

    return fused.deform_conv2d(*arguments)


# A new backend is one function like these: it gets tensors of one floating dtype, with autocast off.
BACKENDS: dict[str, Callable[..., Tensor]] = {
    "native": native.deform_conv2d, "torchvision": _torchvision, "deterministic": _deterministic, "mmcv": _mmcv,
    "triton": _triton,
}  # fmt: skip
HALF_VALUES = ("triton",)  # these take all but the offset in half precision, too
NEEDED = {
    "mmcv": "mmcv's operators, which are not installed: make setup-mmcv",
    "triton": "the package triton, which comes with torch for GPUs on Linux: use auto",
}


@torch.compiler.assume_constant_result  # a compiled graph cannot look for packages
def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def check_backend(name: str) -> str:
    """Return `name` unchanged; raises ConfigError where it is neither "auto" nor a backend that is there."""
    if name in NEEDED and not _is_installed(name):
        raise ConfigError(f"deform_backend {name!r} needs {NEEDED[name]}")
    if name != "auto" and name not in BACKENDS:
        raise ConfigError(f"deform_backend {name!r} is not known; choose one of {', '.join(['auto', *BACKENDS])}")
    return name


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    backend: str = "auto",
    wrap: bool = False,
) -> Tensor:
    """Convolve `input` [B, C, H, W], sampled bilinearly at a regular k x k grid plus `offset`, into [B, O, Ho, Wo].

    `offset` [B, 2*G*k*k, Ho, Wo] is in pixels, (y, x) interleaved tap by tap within each of the G offset groups;
    `mask` [B, G*k*k, Ho, Wo] multiplies the samples (None: ones); `weight` is [O, C, k, k], `bias` [O].
    A neighbour outside the map counts 0; with `wrap` the map's left and right borders meet, as a full panorama's do.
    Positions are kept in float32 (float64 for a float64 input), under autocast too; the result has the autocast dtype,
    or else the input's.

    `auto` takes `native` on the CPU, and elsewhere `torchvision` or, in torch's deterministic mode, `deterministic`.
    `native` keeps no samples for the backward pass; `torchvision` and `triton` hold all of them, B*C*k*k*Ho*Wo numbers,
    for a moment, `triton` in the result's type.
    Raises ConfigError for an unknown backend, ValueError for shapes that do not fit together.
    """
    _check_shapes(input, offset, mask, weight, stride, padding)
    if mask is None:
        mask = offset.new_ones(len(offset), offset.shape[1] // 2, *offset.shape[2:])
    device, result = input.device.type, input.dtype
    if check_backend(backend) == "auto":
        # On CUDA they are not measured against each other: torchvision's is one launch, where native's is dozens.
        fused = "deterministic" if torch.are_deterministic_algorithms_enabled() else "torchvision"
        backend = "native" if device == "cpu" else fused
    work = torch.promote_types(result, torch.float32)
    if torch.is_autocast_enabled(device) and work == torch.float32:
        result = torch.get_autocast_dtype(device)
    values = result if backend in HALF_VALUES else work
    bias = None if bias is None else bias.to(values)
    with torch.autocast(device, enabled=False):
        tensors = input.to(values), offset.to(work), mask.to(values), weight.to(values), bias
        return BACKENDS[backend](*tensors, Placing(stride, padding, wrap)).to(result)


def _check_shapes(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, stride: int, padding: int
) -> None:
    batch, channels, kernel = len(input), weight.shape[1], weight.shape[-1]
    size = tuple((side + 2 * padding - kernel) // stride + 1 for side in input.shape[2:])
    groups = offset.shape[1] // (2 * kernel**2)
    fits = input.shape[1] == channels and weight.shape[2] == kernel and groups > 0 and channels % groups == 0
    fits = fits and offset.shape == (batch, 2 * groups * kernel**2, *size)
    fits = fits and (mask is None or mask.shape == (batch, groups * kernel**2, *size))
    if not fits:
        shapes = ", ".join(str(None if t is None else list(t.shape)) for t in (input, offset, mask, weight))
        raise ValueError(
            f"input, offset, mask and weight are {shapes}; expected [B, C, H, W], [B, 2*G*k*k, {size[0]}, {size[1]}], "
            f"[B, G*k*k, {size[0]}, {size[1]}] or None, and [O, C, k, k] with G dividing C"
        )
