"""Building blocks that the encoder and the heads share."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trans4pass.ops import check_backend, deform_conv2d

from .circular import pad_circular


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that uses its running statistics, unchanged, where a batch has one value per channel.

    One value has no variance, and the library raises; the coarsest map of a 32 x 32 image at batch 1 is such a case.
    `SyncBatchNorm.convert_sync_batchnorm` replaces it like any other BatchNorm.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def depthwise_conv(dim: int) -> nn.Sequential:
    """A 3x3 depth-wise convolution under the name that the official checkpoints use."""
    return nn.Sequential(OrderedDict(dwconv=nn.Conv2d(dim, dim, 3, padding=1, groups=dim)))


class DeformableProjection(nn.Module):
    """A k x k convolution that learns where to sample, and how much each sample counts.

    Maps [B, in, H, W] to [B, out, Ho, Wo]. Offsets are in pixels, clamped to +-(min(H, W) // 4) of the input;
    modulators are 2*sigmoid, in (0, 2). Both convolutions start at zero (see `zero_deformation`), so that the layer
    starts as the plain convolution `proj`. With `deform=False` it is that plain convolution.
    """

    wrap = False  # see models/circular.py

    def __init__(
        self, in_dim: int, out_dim: int, kernel: int, stride: int, deform: bool = True, backend: str = "auto"
    ) -> None:
        super().__init__()
        shape = kernel, stride, kernel // 2
        self.stride, self.padding = shape[1:]
        self.proj = nn.Conv2d(in_dim, out_dim, *shape)
        self.deform, self.backend = deform, check_backend(backend)
        if deform:
            self.offset_conv = nn.Conv2d(in_dim, 2 * kernel * kernel, *shape)
            self.modulator_conv = nn.Conv2d(in_dim, kernel * kernel, *shape)

    def project(self, x: Tensor) -> Tensor:
        if not self.deform:
            return self.proj(x)
        convs, limit = (self.offset_conv, self.modulator_conv), min(x.shape[-2:]) // 4
        # One convolution for both: the input is unfolded once.
        weight = torch.cat([conv.weight for conv in convs])
        bias = torch.cat([conv.bias for conv in convs if conv.bias is not None])  # both have one
        padded, columns = (pad_circular(x, self.padding), 0) if self.wrap else (x, self.padding)
        both = F.conv2d(padded, weight, bias, self.stride, (self.padding, columns))
        offset, modulator = both.split([conv.out_channels for conv in convs], dim=1)
        offset, modulator = offset.clamp(-limit, limit), 2 * torch.sigmoid(modulator)
        how = self.stride, self.padding, self.backend, self.wrap
        return deform_conv2d(x, offset, modulator, self.proj.weight, self.proj.bias, *how)


def zero_deformation(module: nn.Module) -> None:
    """Set the offset and modulator convolutions of every `DeformableProjection` in `module` to zero; call it last."""
    for child in module.modules():
        if isinstance(child, DeformableProjection) and child.deform:
            for parameter in (*child.offset_conv.parameters(), *child.modulator_conv.parameters()):
                nn.init.zeros_(parameter)
