"""Models: encoders, heads, the `Segmentor` that joins them, and every checkpoint format."""

from .alignment import align_channels, channel_statistics, not_black
from .circular import MULTIPLE, make_circular, resize
from .heads.coarse_to_fine import refuse_first_release
from .output import EDGE, HeadOutput, SegOutput
from .registry import ENCODERS, HEADS, MODELS, STARTS, circular_twin, create_model, join_sides
from .segmentor import Segmentor, as_float, input_size
from .tuning import distances, merge_adapters
from .weights import (
    DESCRIPTION,
    Weights,
    as_weights,
    check_finite,
    check_weights,
    differences,
    identify,
    load_weights,
    pretrained_weights,
    read_file,
    read_weights,
)

__all__ = [
    "DESCRIPTION", "EDGE", "ENCODERS", "HEADS", "MODELS", "MULTIPLE", "STARTS", "HeadOutput", "SegOutput", "Segmentor",
    "Weights", "align_channels", "as_float", "as_weights", "channel_statistics", "check_finite", "check_weights",
    "circular_twin", "create_model", "differences", "distances", "identify", "input_size", "join_sides", "load_weights",
    "make_circular", "merge_adapters", "not_black", "pretrained_weights", "read_file", "read_weights",
    "refuse_first_release", "resize",
]  # fmt: skip
