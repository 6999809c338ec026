"""Modulated deformable convolution (Zhu et al., Deformable ConvNets v2, arXiv 1811.11168) behind one function."""

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from trans4pass.errors import ConfigError
from trans4pass.ops import native


def _torchvision(
    input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    return torchvision.ops.deform_conv2d(input, offset, weight, bias, stride, padding, mask=mask)


Backend = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor | None, int, int], Tensor]
# A new backend is one function of (input, offset, mask, weight, bias, stride, padding), all of one floating dtype.
BACKENDS: dict[str, Backend] = {"native": native.deform_conv2d, "torchvision": _torchvision}


def check_backend(name: str) -> str:
    """Return `name` unchanged; raises ConfigError where it is neither "auto" nor a known backend."""
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
) -> Tensor:
    """Convolve `input` [B, C, H, W], sampled bilinearly at a regular k x k grid plus `offset`, into [B, O, Ho, Wo].

    `offset` [B, 2*G*k*k, Ho, Wo] is in pixels, (y, x) interleaved tap by tap within each of the G offset groups;
    `mask` [B, G*k*k, Ho, Wo] multiplies the samples (None: ones); `weight` is [O, C, k, k], `bias` [O].
    A neighbour outside the map counts 0. Positions are kept in float32 (float64 for a float64 input), under autocast
    too; the result has the autocast dtype, or else the input's.

    `auto` takes `native` on the CPU and `torchvision` elsewhere. Raises ConfigError for an unknown backend.
    """
    device = input.device.type
    if check_backend(backend) == "auto":
        # CUDA is not measured: torchvision's fused CUDA kernel.
        backend = "native" if device == "cpu" else "torchvision"
    work = torch.promote_types(input.dtype, torch.float32)
    result = input.dtype
    if torch.is_autocast_enabled(device) and work == torch.float32:
        result = torch.get_autocast_dtype(device)
    tensors = [t if t is None else t.to(work) for t in (input, offset, mask, weight, bias)]
    with torch.autocast(device, enabled=False):
        return BACKENDS[backend](*tensors, stride, padding).to(result)
