"""The segmentation model that every encoder and head is put together in."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from trans4pass.errors import ConfigError

from .alignment import Alignment
from .circular import MULTIPLE, resize
from .output import SegOutput
from .tuning import rest_frozen

SMALLEST = 32


class Segmentor(nn.Module):
    """Normalise, encode, decode, and resize the logits to the image.

    `encoder` maps a normalised image to a list of four maps, finest first, and exposes their widths and strides as
    `channels` and `strides`, and, where it was trained on other images than ImageNet's, `mean` and `std` of R, G and B
    in [0,1]. `head` maps that list to a `HeadOutput`; it is built from `encoder.channels` and exposes
    `num_classes`, `feature_dim` (E) and `feature_level`, the map whose size its features have. Any pair that keeps to
    this fits.

    `context` (ECRM) stands between the two: it maps the encoder's maps to others and auxiliary maps, and the head is
    built from its `channels`. `edges` (reverse edge supervision) stands beside the head: from the encoder's maps to
    edge logits by name, `edge1` the finest.

    `alignment` gives images the source's channel statistics before anything else.

    `wrap`: images are full panoramas whose sides are neighbours (see models/circular.py).

    Attributes:
        num_classes: K.
        feature_dim: E, the features' channels.
        feature_stride: pixels of the image per pixel of the features, along each side.
        has_edges: whether there are auxiliary maps of edges.
    """

    wrap = False
    has_frozen = False  # whether what is not trained stays in evaluation mode

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Any,  # any modules that keep to the above
        head: Any,
        context: nn.Module | None = None,
        edges: nn.Module | None = None,
        alignment: Alignment | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.context = context
        self.head = head
        self.edges = edges
        self.alignment = alignment
        self.num_classes: int = head.num_classes
        self.feature_dim: int = head.feature_dim
        self.feature_stride: int = encoder.strides[head.feature_level]
        self.has_edges: bool = edges is not None or getattr(head, "predicts_edges", False)
        if edges is None and getattr(head, "reads_last_only", False):
            unread = getattr(encoder, "finer_maps", None)  # what would never get a gradient
            if unread is not None:
                unread.requires_grad_(False)
        mean, std = getattr(encoder, "mean", IMAGENET_DEFAULT_MEAN), getattr(encoder, "std", IMAGENET_DEFAULT_STD)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def recompute_activations(self) -> None:
        """Compute the encoder's blocks again in the backward pass, instead of keeping what they computed."""
        if not hasattr(self.encoder, "set_grad_checkpointing"):
            raise ConfigError(
                f"recompute_activations: the encoder {type(self.encoder).__name__} has no set_grad_checkpointing(); "
                "give it one, or leave the setting out"
            )
        self.encoder.set_grad_checkpointing()

    def train(self, mode: bool = True) -> "Segmentor":
        super().train(mode)
        if mode and self.has_frozen:
            rest_frozen(self)
        return self

    def forward(self, image: Tensor) -> SegOutput:
        """Segment RGB images [B, 3, H, W]: uint8, or floating in [0, 1]; ConfigError for sizes that cannot work."""
        if image.ndim != 4 or image.shape[1] != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise ConfigError(
                f"images must be [B, 3, H, W], uint8 or floating in [0, 1], got {list(image.shape)} {image.dtype}"
            )
        if min(image.shape[-2:]) < SMALLEST:
            height, width = image.shape[-2:]
            raise ConfigError(
                f"an image is {width}x{height} (W x H); both sides must be at least {SMALLEST}: enlarge it"
            )
        if self.wrap and image.shape[-1] % MULTIPLE:
            raise ConfigError(
                f"an image is {image.shape[-1]} pixels wide; a model with wrap=true takes full panoramas whose width "
                f"is a multiple of {MULTIPLE}: resize it, or set wrap=false"
            )
        if image.dtype == torch.uint8:
            image = image.to(self.mean.dtype) / 255
        elif image.dtype == torch.float64:  # numpy's default; narrower types are widened by the mean
            image = image.to(self.mean.dtype)
        if self.alignment is not None:
            image = self.alignment(image)
        return self.forward_normalised((image - self.mean) / self.std)

    def forward_normalised(self, x: Tensor) -> SegOutput:
        """Segment [B, 3, H, W] that has the encoder's mean and deviation already taken out."""
        maps = self.encoder(x)
        aux = {} if self.edges is None else self.edges(maps)
        if self.context is not None:
            maps, coarse = self.context(maps)
            aux = {**aux, **coarse}
        features, logits, branches = self.head(maps)
        # What reads the classes of large maps, softmax above all, would copy channels-last ones each time.
        logits = resize(logits.contiguous(), x.shape[-2:], self.wrap)
        return SegOutput(logits, features, {**aux, **branches})


def input_size(network: nn.Module, size: Sequence[int], scale: float) -> tuple[int, int]:
    """(height, width) `size` of an image at `scale`, rounded to what `network` can take."""
    height, width = (max(SMALLEST, round(side * scale)) for side in size)
    return height, round(width / MULTIPLE) * MULTIPLE if getattr(network, "wrap", False) else width


def as_float(image: Tensor) -> Tensor:
    """Images in [0,1]: uint8 becomes float32, floating stays."""
    return image.float() / 255 if image.dtype == torch.uint8 else image
