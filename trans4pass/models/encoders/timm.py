"""Any encoder of timm, whatever its maps look like, as four maps of strides 4 to 32.

Feature pyramids lose their maps of stride 2; maps with channels last are turned; a plain vision transformer's one map
becomes a simple feature pyramid (ViTDet, arXiv 2203.16527), patches of another size than 16 are resampled to it; images
are padded to a multiple of 32 inside, and the maps cut back.
"""

import math
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from trans4pass.errors import ConfigError
from trans4pass.settings import Share, nearest

MULTIPLE = 32  # pixels
PROBE = (96, 160)  # an image's height and width, multiples of 32 and not of 14
# What lets a transformer take images of any size, by timm's names; the first that works is taken.
ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False},
    {"dynamic_img_size": True},
    {"dynamic_img_size": True, "patch_size": 16},
    {},
)


class SimplePyramid(nn.Module):
    """A map of stride 16 [B, C, h, w] as four maps of strides 4, 8, 16 and 32, of C/4, C/2, C and C channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.channels = (dim // 4, dim // 2, dim, dim)
        self.to_stride4 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 2, 2, 2), LayerNorm2d(dim // 2), nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, 2, 2),
        )  # fmt: skip
        self.to_stride8 = nn.ConvTranspose2d(dim, dim // 2, 2, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.to_stride4(x), self.to_stride8(x), x, F.max_pool2d(x, 2)]


class TimmEncoder(nn.Module):
    """Encode a normalised image [B, 3, H, W] into four maps [B, channels[s], H / strides[s], W / strides[s]].

    Map sizes round up where the image does not divide.

    Args:
        encoder: a name that timm knows, e.g. convnext_tiny or vit_small_patch16_dinov3.
        pretrained: download timm's weights of that name.
        output_stride: 8 or 16: the last stages dilate instead of striding, where the architecture can. None: 32.
        drop_path: stochastic depth, where the architecture has it. None: timm's own rate.
    Raises:
        ConfigError: an unknown name, or an architecture without four such maps, or of a fixed input size.
    """

    def __init__(
        self, encoder: str, pretrained: bool = False, output_stride: int | None = None, drop_path: Share | None = None
    ) -> None:
        super().__init__()
        if not timm.is_model(encoder):
            raise ConfigError(f"timm knows no model {encoder!r}.{nearest(encoder, timm.list_models())}")
        self.name = encoder
        options = {"features_only": True, "output_stride": output_stride, "drop_path_rate": drop_path}
        options |= probe(encoder, options)
        strides = options.pop("strides")
        self.body = timm.create_model(encoder, pretrained=pretrained, **options)
        info = self.body.feature_info
        self.channels_last = "NHWC" in str(getattr(self.body, "output_fmt", ""))
        self.pyramid = SimplePyramid(info.channels()[-1]) if len(strides) == 1 else None
        self.channels = tuple(info.channels()) if self.pyramid is None else self.pyramid.channels
        self.strides = strides if self.pyramid is None else (4, 8, 16, 32)
        self.mean, self.std = (tuple(timm.get_pretrained_cfg(encoder).to_dict()[key]) for key in ("mean", "std"))

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        maps = self.body(padded)
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]  # [B, h, w, C] -> [B, C, h, w]
        if self.pyramid is not None:
            maps = self.pyramid(maps[-1])
        sizes = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in self.strides]
        return [m[..., :h, :w] for m, (h, w) in zip(maps, sizes, strict=True)]

    def set_grad_checkpointing(self) -> None:
        """Keep no activations inside blocks: the backward pass computes them again."""
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.body.modules()):
            raise ConfigError(f"recompute_activations=true: {self.name}'s BatchNorm would count every batch twice")
        self.body.set_grad_checkpointing(True)


def probe(encoder: str, options: dict[str, Any]) -> dict[str, Any]:
    """The further options with which timm builds four maps of strides 4 to 32, or one of 16, and their `strides`.

    Nothing is computed: the architecture is built and called without memory.
    """
    problem = ""
    for more in ANY_SIZE:
        try:
            with torch.device("meta"):
                body = timm.create_model(encoder, pretrained=False, **options, **more).eval()
                maps = body(torch.zeros(1, 3, *PROBE))
        except Exception as error:  # an architecture may refuse an option, or a size, in any way
            problem = f"{type(error).__name__}: {error}"
            continue
        last = "NHWC" in str(getattr(body, "output_fmt", ""))
        strides = [PROBE[0] / m.shape[1 if last else 2] for m in maps]
        if strides[0] == strides[-1] == 16:
            return {**more, "out_indices": (len(maps) - 1,), "strides": (16,)}
        chosen = [i for i, stride in enumerate(strides) if stride >= 4][-4:]
        if len(chosen) == 4 and strides[chosen[0]] == 4:
            return {**more, "out_indices": tuple(chosen), "strides": tuple(int(strides[i]) for i in chosen)}
        problem = f"its maps have the strides {strides}; four from 4 to 32 are needed, or 16 alone"
    raise ConfigError(f"timm's {encoder} cannot be an encoder of images of any size: {problem}")
