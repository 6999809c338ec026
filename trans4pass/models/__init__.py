from trans4pass.models.dmlp import DMLPHead
from trans4pass.models.dmlp_v2 import DMLPv2Head
from trans4pass.models.output import HeadOutput, SegOutput
from trans4pass.models.pyramid import PyramidTransformer
from trans4pass.models.registry import MODELS, create_model
from trans4pass.models.segmentor import Segmentor, input_size
from trans4pass.models.sideways import resize, wrap_sideways
from trans4pass.models.weights import LoadReport, Variant, identify, load_weights, read_state_dict

__all__ = [
    "MODELS",
    "DMLPHead",
    "DMLPv2Head",
    "HeadOutput",
    "LoadReport",
    "PyramidTransformer",
    "SegOutput",
    "Segmentor",
    "Variant",
    "create_model",
    "identify",
    "input_size",
    "load_weights",
    "read_state_dict",
    "resize",
    "wrap_sideways",
]
