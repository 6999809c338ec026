"""Models: encoders, heads, the `Segmentor` that joins them, and every checkpoint format."""

from .circular import MULTIPLE, make_circular, resize
from .heads.coarse_to_fine import refuse_first_release
from .output import EDGE, HeadOutput, SegOutput
from .registry import ENCODERS, HEADS, MODELS, create_model
from .segmentor import Segmentor, input_size
from .weights import (
    DESCRIPTION,
    Weights,
    as_weights,
    check_finite,
    check_weights,
    differences,
    identify,
    load_weights,
    read_file,
    read_weights,
)

__all__ = [
    "DESCRIPTION", "EDGE", "ENCODERS", "HEADS", "MODELS", "MULTIPLE", "HeadOutput", "SegOutput", "Segmentor",
    "Weights", "as_weights", "check_finite", "check_weights", "create_model", "differences", "identify",
    "input_size", "load_weights", "make_circular", "read_file", "read_weights", "refuse_first_release", "resize",
]  # fmt: skip
