"""Dilated ResNet (arXiv 1512.03385, 1705.09914): the encoder that DANet is published with, built by timm.

On purpose different from DANet's official backbone: torchvision's stem (one 7x7 convolution) and no multi-grid, so that
ImageNet weights in torchvision's or timm's format fit as they are. Nothing is ever downloaded.
"""

from collections.abc import Mapping
from os import PathLike

import timm
from torch import Tensor, nn

from trans4pass.errors import ConfigError, WeightsError
from trans4pass.models.weights import check_finite, differences, read_file

DEPTHS = (50, 101, 152)


class DilatedResNet(nn.Module):
    """Encode a normalised image [B, 3, H, W] into four maps [B, channels[s], H / strides[s], W / strides[s]].

    `depth` is 50, 101 or 152; the last two stages dilate instead of striding. `weights` is a local ImageNet checkpoint
    of torchvision or timm (`.pth` or `.safetensors`), None for timm's random initialisation. Map sizes round up where
    the image does not divide. Raises ConfigError for another depth, WeightsError for a file that does not fit or,
    unless `allow_nonfinite`, holds NaN or infinity.
    """

    channels = (256, 512, 1024, 2048)
    strides = (4, 8, 8, 8)

    def __init__(self, depth: int = 50, weights: str | PathLike | None = None, allow_nonfinite: bool = False) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ConfigError(f"a dilated ResNet's depth is one of {', '.join(map(str, DEPTHS))}, not {depth}")
        self.body = timm.create_model(
            f"resnet{depth}", pretrained=False, features_only=True, output_stride=8, out_indices=(1, 2, 3, 4)
        )
        if weights is not None:
            load_imagenet(self.body, weights, allow_nonfinite)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.body(x)


def load_imagenet(body: nn.Module, path: str | PathLike, allow_nonfinite: bool = False) -> None:
    """Load torchvision's or timm's ImageNet weights, all but the classifier `fc`; WeightsError if any do not fit."""
    content = read_file(path)
    named = content.items() if isinstance(content, Mapping) else ()
    state = {k: v for k, v in named if isinstance(v, Tensor) and not str(k).startswith("fc.")}
    wanted = body.state_dict()
    counters = [key for key in wanted if key.endswith("num_batches_tracked")]  # which old checkpoints lack
    different = differences(state, wanted, counters)
    if different:
        raise WeightsError(
            f"{path} does not fit this ResNet. {different}. Give a torchvision or timm checkpoint of the same depth"
        )
    check_finite(state, path, allow_nonfinite)
    body.load_state_dict(state, strict=False)
