"""Circular padding: layers for which a full panorama's left and right edge are neighbours.

Rows are padded and resized as ever; only columns go round. Resizing is circular with half-pixel centres, where pixel i
covers [i, i + 1): with align_corners=True the first and the last column would be one and the same place.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 32  # pixels: the coarsest stride; only so do a panorama's maps close in on themselves


def pad_circular(x: Tensor, columns: int) -> Tensor:
    """[..., w] -> [..., w + 2*columns], going on at the other side."""
    if columns == 0:
        return x
    if columns > x.shape[-1]:  # more than once round
        ring = torch.arange(-columns, x.shape[-1] + columns, device=x.device) % x.shape[-1]
        return x[..., ring]
    return torch.cat((x[..., -columns:], x, x[..., :columns]), -1)


def resize(x: Tensor, size: Sequence[int], wrap: bool, align_corners: bool = True) -> Tensor:
    """Bilinear [B, C, h, w] -> `[B, C, *size]`; `wrap` makes columns circular, `align_corners` is for what is not."""
    slow = is_slow(x.device)
    if not wrap and not slow:
        return F.interpolate(x, list(size), mode="bilinear", align_corners=align_corners)
    if slow:
        x = resize_along(x, -2, size[0], False, align_corners)
    else:
        x = F.interpolate(x, (size[0], x.shape[-1]), mode="bilinear", align_corners=align_corners)
    return resize_along(x, -1, size[1], wrap, align_corners)


def is_slow(device: torch.device) -> bool:
    """Whether torch's resizing is made of some thirty kernels: on a GPU in deterministic mode."""
    return device.type == "cuda" and torch.are_deterministic_algorithms_enabled()


def resize_along(x: Tensor, dim: int, size: int, wrap: bool, align_corners: bool) -> Tensor:
    """`resize` of one dimension, which is counted from the last: -1 or -2."""
    old = x.shape[dim]
    if size == old:
        return x
    # Where pixel i lies in the old map, in whole numbers of 1 / unit: exact on any device.
    if align_corners and not wrap:  # i * (old - 1) / (size - 1)
        unit, start, step = max(size - 1, 1), 0, max(old - 1, 1)
    else:  # (i + 1/2) * old / size - 1/2
        unit, start, step = 2 * size, old - size, 2 * old
    place = torch.arange(start, start + step * size, step, device=x.device)
    if not wrap:
        place = place.clamp(0, unit * (old - 1))  # on the last pixel the next one, at the other side, weighs nothing
    left, fraction = place.div(unit, rounding_mode="floor"), place.remainder(unit).to(x) / unit
    inner = [slice(None)] * (-1 - dim)
    fraction = fraction.view(-1, *[1] * len(inner))
    return torch.lerp(x[(..., left % old, *inner)], x[(..., (left + 1) % old, *inner)], fraction)


class CircularConv2d(nn.Conv2d):
    """A convolution for which the left and right borders of a map meet."""

    def forward(self, input: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)  # numbers, not "same"
        rows, columns = self.padding
        x = pad_circular(input, columns)
        return F.conv2d(x, self.weight, self.bias, self.stride, (rows, 0), self.dilation, self.groups)


class CircularMaxPool2d(nn.MaxPool2d):
    """Max pooling for which the left and right borders of a map meet; the padding is the same on all sides."""

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self.padding, int)
        x = pad_circular(input, self.padding)
        return F.max_pool2d(x, self.kernel_size, self.stride, (self.padding, 0), self.dilation, self.ceil_mode)


LAYERS = {nn.Conv2d: CircularConv2d, nn.MaxPool2d: CircularMaxPool2d}


@torch.no_grad()
def is_circular(encoder: nn.Module) -> bool:
    """Whether rolling an image rolls the encoder's maps, once `make_circular` was called: tried, with other weights."""
    trial = copy.deepcopy(encoder).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in trial.parameters():  # gates and scales start at 0 in many, and would hide what is behind them
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    image = torch.randn(1, 3, 2 * MULTIPLE, 4 * MULTIPLE, generator=generator, dtype=torch.float64)
    maps, rolled = trial(image), trial(image.roll(MULTIPLE, -1))
    pairs = [(moved, m.roll(m.shape[-1] // 4, -1)) for moved, m in zip(rolled, maps, strict=True)]
    return all(torch.allclose(a, b, rtol=1e-6, atol=1e-9 * float(b.abs().max())) for a, b in pairs)


def make_circular(model: nn.Module) -> None:
    """Make every layer of `model` circular; names and shapes of its weights stay.

    Convolutions and poolings change their class; a module that samples or resizes by itself has an attribute `wrap`.
    Of the deformable convolutions' backends mmcv's cannot wrap: `auto` takes its place.
    """
    for module in model.modules():
        if hasattr(module, "wrap"):
            module.wrap = True  # pyright: ignore[reportArgumentType] a setting
        if getattr(module, "backend", None) == "mmcv":
            module.backend = "auto"  # pyright: ignore[reportArgumentType] a setting
        module.__class__ = LAYERS.get(type(module), type(module))
