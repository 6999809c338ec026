"""Using a model: open it, predict, score, write pictures, export."""

from . import pseudo_labels
from .metrics import Confusion, Regions, Scores
from .open import Described, open_checkpoint, read_checkpoint, submodule_state
from .pictures import Gallery, contact_sheet, write_label, write_picture
from .predictor import TTA, Predictor, evaluate, predict_all

__all__ = [
    "TTA", "Confusion", "Described", "Gallery", "Predictor", "Regions", "Scores", "contact_sheet", "evaluate",
    "open_checkpoint", "predict_all", "pseudo_labels", "read_checkpoint", "submodule_state", "write_label",
    "write_picture",
]  # fmt: skip
