"""Models by name."""

from collections.abc import Sequence
from difflib import get_close_matches
from os import PathLike

from torch import nn

from trans4pass.errors import ConfigError
from trans4pass.models.dmlp import DMLPHead
from trans4pass.models.dmlp_v2 import DMLPv2Head
from trans4pass.models.pyramid import PYRAMID_SIZES, PyramidTransformer
from trans4pass.models.segmentor import Segmentor
from trans4pass.models.weights import load_weights

HEADS: dict[str, type[nn.Module]] = {"trans4pass": DMLPHead, "trans4pass_plus": DMLPv2Head}
MODELS = {f"{family}_{size}": (size, head) for family, head in HEADS.items() for size in PYRAMID_SIZES}


def create_model(
    name: str,
    num_classes: int,
    weights: str | PathLike | None = None,
    *,
    embed_dim: int = 128,
    deform: Sequence[bool] = (True, False, False, False),
    deform_backend: str = "auto",
    drop_path: float = 0.1,
) -> Segmentor:
    """Build a Trans4PASS model by name: trans4pass[_plus]_{micro,tiny,small}.

    `embed_dim` is the decoder's width, `deform[s]` makes stage s's patch embedding deformable, `drop_path` is the last
    encoder block's rate. `weights` is a checkpoint in any format that `load_weights` reads.
    Raises ConfigError for an unknown name or backend, WeightsError for a checkpoint that does not fit.
    """
    if name not in MODELS:
        near = get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(f"model {name!r} is not known{hint} There are {', '.join(MODELS)}")
    size, head = MODELS[name]
    encoder = PyramidTransformer(size, deform, deform_backend, drop_path)
    model = Segmentor(encoder, head(encoder.channels, num_classes, embed_dim, deform_backend))
    if weights is not None:
        load_weights(model, weights)
    return model
