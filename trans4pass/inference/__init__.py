"""Using a model: open it, predict, score, write pictures, export."""

from . import pseudo_labels
from .api import LoadedModel, Prediction, load_model
from .metrics import Confusion, Regions, Scores
from .open import Described, build_network, open_checkpoint, read_checkpoint, submodule_state
from .pictures import Gallery, contact_sheet, write_label, write_picture
from .predictor import TTA, Predictor, evaluate, predict_all

__all__ = [
    "TTA", "Confusion", "Described", "Gallery", "LoadedModel", "Prediction", "Predictor", "Regions", "Scores",
    "build_network", "contact_sheet", "evaluate", "load_model", "open_checkpoint", "predict_all", "pseudo_labels",
    "read_checkpoint", "submodule_state", "write_label", "write_picture",
]  # fmt: skip
