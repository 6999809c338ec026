"""Dilated ResNet (arXiv 1512.03385, 1705.09914): the encoder that DANet is published with, built by timm.

On purpose different from DANet's official backbone: torchvision's stem (one 7x7 convolution) and no multi-grid, so that
ImageNet weights in torchvision's or timm's format fit as they are. Nothing is ever downloaded.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trans4pass.errors import ConfigError, WeightsError

DEPTHS = (50, 101, 152)


class DilatedResNet(nn.Module):
    """Encode a normalised image [B, 3, H, W] into four maps [B, channels[s], H / strides[s], W / strides[s]].

    `depth` is 50, 101 or 152; the last two stages dilate instead of striding. `weights` is a local ImageNet checkpoint
    of torchvision or timm (`.pth` or `.safetensors`), None for timm's random initialisation. Map sizes round up where
    the image does not divide. Raises ConfigError for another depth, WeightsError for a file that does not fit.
    """

    channels = (256, 512, 1024, 2048)
    strides = (4, 8, 8, 8)

    def __init__(self, depth: int = 50, weights: str | PathLike | None = None) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ConfigError(f"a dilated ResNet's depth is one of {', '.join(map(str, DEPTHS))}, not {depth}")
        self.body = timm.create_model(
            f"resnet{depth}", pretrained=False, features_only=True, output_stride=8, out_indices=(1, 2, 3, 4)
        )
        if weights is not None:
            load_imagenet(self.body, Path(weights))

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.body(x)


def load_imagenet(body: nn.Module, path: Path) -> None:
    """Load torchvision's or timm's ImageNet weights, all but the classifier `fc`; WeightsError if any do not fit."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        given = backbone_shapes(state)
    except Exception as error:
        raise WeightsError(f"{path} cannot be read as a state dict of tensors: {error}") from error
    wanted = backbone_shapes(body.state_dict())
    wrong = sorted(name for name in given.keys() | wanted.keys() if given.get(name) != wanted.get(name))
    if wrong:
        raise WeightsError(
            f"{path} does not fit this ResNet: {len(wrong)} tensors are missing, unknown or of another shape "
            f"({', '.join(wrong[:3])}, ...); give a torchvision or timm checkpoint of the same depth"
        )
    body.load_state_dict({name: state[name] for name in given}, strict=False)


def backbone_shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Shapes by name, without the classifier and without BatchNorm's counters, which old checkpoints lack."""
    return {
        name: value.shape
        for name, value in state.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }
