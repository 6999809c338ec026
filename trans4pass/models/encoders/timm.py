"""Any encoder of timm, whatever its maps look like, as four maps of strides 4 to 32.

Feature pyramids lose their maps of stride 2; maps with channels last are turned; a plain vision transformer's one map
becomes a simple feature pyramid (ViTDet, arXiv 2203.16527), patches of another size than 16 are resampled to it; images
are padded to a multiple of 32 inside, and the maps cut back.
"""

import itertools
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data.constants import IMAGENET_DEFAULT_STD as IMAGENET_STD
from timm.layers.norm import LayerNorm2d
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from trans4pass import hub
from trans4pass.errors import ConfigError
from trans4pass.settings import Share, nearest

from ..circular import MULTIPLE

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
        output_stride: 8 or 16: the last stages dilate instead of striding, where the architecture can. None: 32.
        drop_path: stochastic depth, where the architecture has it. None: timm's own rate.
    Raises:
        ConfigError: an unknown name, or an architecture without four such maps, or of a fixed input size.
    """

    def __init__(self, encoder: str, output_stride: int | None = None, drop_path: Share | None = None) -> None:
        super().__init__()
        if not timm.is_model(encoder):
            raise ConfigError(f"timm knows no model {encoder!r}.{nearest(encoder, timm.list_models())}")
        self.name = encoder
        options = {"output_stride": output_stride, "drop_path_rate": drop_path}
        self.levels, self.strides, self.options = probe(encoder, options)
        self.body: Any = self.make_body()
        channels = self.body.feature_info.channels()
        self.channels_last = is_channels_last(self.body)
        self.pyramid = None if self.levels else SimplePyramid(channels[-1])
        self.channels = tuple(channels) if self.pyramid is None else self.pyramid.channels
        trained = timm.get_pretrained_cfg(encoder)
        self.mean, self.std = (IMAGENET_MEAN, IMAGENET_STD) if trained is None else (trained.mean, trained.std)
        self.licence = trained and trained.license  # of timm's weights

    def make_body(self, weights: dict[str, Any] | None = None) -> nn.Module:
        """Timm's network, cut behind its maps `levels`; without any, behind its last map, which is normalised.

        A plain transformer's features are meant to be read behind its last norm. `weights` says where pretrained ones
        are, in timm's words.
        """
        options = {"pretrained": weights is not None, "pretrained_cfg_overlay": weights, **self.options}
        if self.levels:
            return timm.create_model(self.name, features_only=True, out_indices=tuple(self.levels), **options)
        return FeatureGetterNet(timm.create_model(self.name, num_classes=0, **options), (-1,), norm=True)

    @property
    def finer_maps(self) -> nn.Module | None:
        """What computes all maps but the last, and is not needed for that; None where there is no such part."""
        return self.pyramid

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        maps = self.body(padded)
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]  # [B, h, w, C] -> [B, C, h, w]
        if self.pyramid is not None:
            maps = self.pyramid(maps[-1])
        sizes = [((height + s - 1) // s, (width + s - 1) // s) for s in self.strides]  # ceil, which exporters lack
        return [cut(m, h, w) for m, (h, w) in zip(maps, sizes, strict=True)]

    def pretrained_state(self) -> dict[str, Tensor]:
        """Timm's weights of this name, which are downloaded once, as tensors of this encoder; also on the meta device.

        Raises:
            ConfigError: timm has none.
            WeightsError: see `hub.fetched`.
        """
        trained = timm.get_pretrained_cfg(self.name)
        if trained is None or not trained.hf_hub_id:
            fit = ", ".join(timm.list_pretrained(f"{self.name.split('_')[0]}*")[:4])
            raise ConfigError(
                f"pretrained=true: timm has no weights of {self.name} on the hub. Set it to false"
                + (f", or choose another encoder: {fit}, ..." if fit else "")
            )
        address = "/".join(filter(None, ("hf:/", trained.hf_hub_id, trained.hf_hub_filename)))
        file = hub.fetched(address, trained.license)
        body = self.make_body({"file": str(file), "custom_load": False})
        return {f"body.{name}": value for name, value in body.state_dict().items()}

    def set_grad_checkpointing(self) -> None:
        """Keep no activations inside blocks: the backward pass computes them again."""
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.body.modules()):
            raise ConfigError(f"recompute_activations=true: {self.name}'s BatchNorm would count every batch twice")
        body: Any = self.body.model if isinstance(self.body, FeatureGetterNet) else self.body
        body.set_grad_checkpointing(True)


def cut(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left part of maps [B, C, H, W].

    By indices in an export: whether a slice is the whole would be decided by the size that is traced.
    """
    if torch.compiler.is_compiling():  # an export, too
        rows, columns = (torch.arange(side, device=x.device) for side in (height, width))
        return x.index_select(2, rows).index_select(3, columns)
    return x[..., :height, :width]


def is_channels_last(body: nn.Module) -> bool:
    return "NHWC" in str(getattr(body, "output_fmt", ""))


def probe(encoder: str, options: dict[str, Any]) -> tuple[list[int], tuple[int, ...], dict[str, Any]]:
    """How timm builds four maps of strides 4 to 32: these maps' numbers, their strides, and the options for it.

    No numbers for a transformer with one scale, which `SimplePyramid` makes four maps of. Nothing is computed: the
    architecture is built and called without memory.
    """
    problem = ""
    shallow = {key: value for key, value in options.items() if key != "drop_path_rate"}  # not every architecture has it
    for more in itertools.product((options, shallow), ANY_SIZE):
        chosen = more[0] | more[1]
        try:
            with torch.device("meta"):
                body = timm.create_model(encoder, features_only=True, **chosen).eval()
                maps = body(torch.zeros(1, 3, *PROBE))
        except Exception as error:  # an architecture may refuse an option, or a size, in any way
            problem = f"{type(error).__name__}: {error}"
            continue
        strides = [PROBE[0] / m.shape[1 if is_channels_last(body) else 2] for m in maps]
        if strides[0] == strides[-1] == 16 and isinstance(body, FeatureGetterNet):
            return [], (4, 8, 16, 32), chosen
        levels = [i for i, stride in enumerate(strides) if stride >= 4][-4:]
        if len(levels) == 4 and strides[levels[0]] == 4:
            return levels, tuple(int(strides[i]) for i in levels), chosen
        problem = f"its maps have the strides {strides}; four from 4 to 32 are needed, or one of a plain transformer"
    reason = problem.splitlines()[0]
    raise ConfigError(f"timm's {encoder} cannot be an encoder of images of any size: {reason}. Choose another")
