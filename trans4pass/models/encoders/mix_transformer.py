"""The distortion-aware pyramid transformer: Trans4PASS's encoder (arXiv 2203.01452, 2207.11860).

A Mix Transformer (SegFormer, arXiv 2105.15203) whose patch embeddings may be deformable. On purpose different here:
- the embeddings' offset and modulator convolutions start at zero. The official encoder's general init overwrites those
  zeros with random values, so that its embedding does not start as the pretrained convolution;
- `micro` is new: SegFormer B0's widths, for CPUs; `b3`, `b4` and `b5` are SegFormer's, which the papers did not use.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trans4pass.settings import Share

from ..layers import DeformableProjection, depthwise_conv, zero_deformation


class MixSize(NamedTuple):
    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


MIX_SIZES = {
    "micro": MixSize((32, 64, 160, 256), (2, 2, 2, 2)),
    "tiny": MixSize((64, 128, 320, 512), (2, 2, 2, 2)),
    "small": MixSize((64, 128, 320, 512), (3, 4, 6, 3)),
    "b3": MixSize((64, 128, 320, 512), (3, 4, 18, 3)),
    "b4": MixSize((64, 128, 320, 512), (3, 8, 27, 3)),
    "b5": MixSize((64, 128, 320, 512), (3, 6, 40, 3)),
}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, N, C] to [B, C, H, W], which convolutions take as channels-last and do not copy, even if B is 1."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # [B, C, H, W] -> [B, N, C]


class PatchEmbed(DeformableProjection):
    """Overlapping patches: [B, in, H, W] to tokens [B, N, out] and their (height, width)."""

    def __init__(self, in_dim: int, dim: int, kernel: int, stride: int, deform: bool, backend: str) -> None:
        super().__init__(in_dim, dim, kernel, stride, deform, backend)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.project(x)
        *_, height, width = x.shape
        return self.norm(to_tokens(x)), (height, width)


class Attention(nn.Module):
    """Self-attention on tokens [B, N, C], with keys and values from a map reduced `reduction`-fold each way."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        context = self.norm(to_tokens(self.sr(to_map(x, size)))) if self.reduction > 1 else x
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, N, C] -> [B, heads, N, C / heads]
        kv = self.kv(context).unflatten(2, (2, self.heads, -1))  # [B, M, 2C] -> [B, M, 2, heads, C / heads]
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # -> 2 x [B, heads, M, C / heads]
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))  # [B, heads, N, C / heads] -> [B, N, C]


class MixMLP(nn.Module):
    """Linear, 3x3 depth-wise convolution, GELU, Linear, on tokens [B, N, C]."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = depthwise_conv(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.dwconv(to_map(self.fc1(x), size))
        return self.fc2(F.gelu(to_tokens(x)))


class Block(nn.Module):
    """Pre-norm attention and MLP, each a residual branch with stochastic depth."""

    def __init__(self, dim: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, reduction)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MixMLP(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x), size))


class MixTransformer(nn.Module):
    """Encode a normalised image [B, 3, H, W] into four maps [B, channels[s], H / strides[s], W / strides[s]].

    `size` is one of `MIX_SIZES`; `deform[s]` makes stage s's patch embedding deformable; `drop_path` is the
    last block's rate, rising linearly from 0 at the first. Map sizes round up where the image does not divide.
    """

    strides = (4, 8, 16, 32)
    recompute = False  # blocks keep no activations for the backward pass, which computes them again

    def __init__(
        self,
        size: str = "tiny",
        deform: tuple[bool, bool, bool, bool] = (True, False, False, False),
        deform_backend: str = "auto",
        drop_path: Share = 0.1,
    ) -> None:
        super().__init__()
        self.channels, depths = MIX_SIZES[size]
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        in_dims = (3, *self.channels[:3])
        for s, dim in enumerate(self.channels):
            kernel, stride = (7, 4) if s == 0 else (3, 2)
            embed = PatchEmbed(in_dims[s], dim, kernel, stride, deform[s], deform_backend)
            blocks = [Block(dim, HEADS[s], REDUCTIONS[s], next(rates)) for _ in range(depths[s])]
            setattr(self, f"patch_embed{s + 1}", embed)
            setattr(self, f"block{s + 1}", nn.ModuleList(blocks))
            setattr(self, f"norm{s + 1}", nn.LayerNorm(dim, eps=1e-6))
        self.apply(init_weights)
        zero_deformation(self)

    def set_grad_checkpointing(self) -> None:
        self.recompute = True

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for s in range(1, 5):
            tokens, size = getattr(self, f"patch_embed{s}")(x)
            for block in getattr(self, f"block{s}"):
                if self.recompute and torch.is_grad_enabled():
                    tokens = checkpoint(block, tokens, size, use_reentrant=False)
                else:
                    tokens = block(tokens, size)
            x = to_map(getattr(self, f"norm{s}")(tokens), size)
            maps.append(x)
        return maps


def init_weights(module: nn.Module) -> None:
    """Initialise one layer as SegFormer does: Linear trunc-normal, Conv2d normal by its fan-out, biases 0."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
