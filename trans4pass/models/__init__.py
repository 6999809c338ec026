"""Models: encoders, heads, the `Segmentor` that joins them, and every checkpoint format."""

from .circular import make_circular, resize
from .output import EDGE, HeadOutput, SegOutput
from .registry import ENCODERS, HEADS, MODELS, create_model
from .segmentor import Segmentor, input_size
from .weights import identify, load_weights, read_state_dict

__all__ = [
    "EDGE", "ENCODERS", "HEADS", "MODELS", "HeadOutput", "SegOutput", "Segmentor", "create_model", "identify",
    "input_size", "load_weights", "make_circular", "read_state_dict", "resize",
]  # fmt: skip
