"""What heads and segmentors return, and what this package's heads share."""

from typing import NamedTuple

from torch import Tensor, nn

EDGE = "edge"  # auxiliary maps whose names start so are edge logits (B,1,h,w), all others class logits (B,K,h,w)


class HeadOutput(NamedTuple):
    """What every head returns from the encoder's four maps, all at stride 4 or a head's own stride."""

    features: Tensor  # (B,E,h,w) the space prototypes live in
    logits: Tensor  # (B,K,h,w) before they are resized to the input
    aux: dict[str, Tensor]  # extra supervised maps by name, before they are resized


class Head(nn.Module):
    """What the `Segmentor` reads of a head besides its output; by default features are as fine as the finest map."""

    feature_level = 0  # the encoder's map whose size the features have
    wrap = False  # see models/circular.py

    def __init__(self, num_classes: int, feature_dim: int) -> None:
        super().__init__()
        self.num_classes, self.feature_dim = num_classes, feature_dim


class SegOutput(NamedTuple):
    """What every segmentor returns."""

    logits: Tensor  # (B,K,H,W) at the input's size
    features: Tensor  # (B,E,H/4,W/4) the space prototypes live in
    aux: dict[str, Tensor]  # extra supervised maps by name, at their head's own size
