"""Models by name."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from os import PathLike
from typing import Any

from torch import nn

from trans4pass.arguments import check_arguments
from trans4pass.errors import ConfigError, whole_number
from trans4pass.models.danet import DANetHead
from trans4pass.models.dmlp import DMLPHead
from trans4pass.models.dmlp_v2 import DMLPv2Head
from trans4pass.models.ecrm import ECRM
from trans4pass.models.fpn import FPNHead
from trans4pass.models.pyramid import PYRAMID_SIZES, PyramidTransformer
from trans4pass.models.resnet import DEPTHS, DilatedResNet
from trans4pass.models.reverse_edge import CoarseToFineHead, ReverseEdgeHead
from trans4pass.models.segmentor import Segmentor
from trans4pass.models.sideways import wrap_sideways
from trans4pass.models.weights import load_weights

HEADS: dict[str, type[nn.Module]] = {
    "dmlp": DMLPHead,
    "dmlp_v2": DMLPv2Head,
    "danet": DANetHead,
    "fpn": FPNHead,
    "coarse_to_fine": CoarseToFineHead,
}
RESNETS = {f"resnet{depth}": depth for depth in DEPTHS}
FAMILIES = {"trans4pass": "dmlp", "trans4pass_plus": "dmlp_v2"}
# name -> encoder's size and default head
MODELS = {
    **{f"{family}_{size}": (size, head) for family, head in FAMILIES.items() for size in PYRAMID_SIZES},
    **{f"danet_{size}": (size, "danet") for size in ("micro", *RESNETS)},
}


def create_model(
    name: str,
    num_classes: int,
    weights: str | PathLike | None = None,
    *,
    embed_dim: int = 128,
    deform: Sequence[bool] = (True, False, False, False),
    deform_backend: str = "auto",
    drop_path: float = 0.1,
    head: str | Mapping[str, Any] | None = None,
    ecrm: bool | Mapping[str, Any] = False,
    edges: bool | Mapping[str, Any] = False,
    wrap: bool = False,
    encoder_weights: str | PathLike | None = None,
    allow_nonfinite: bool = False,
) -> Segmentor:
    """Build a model by name: trans4pass[_plus]_{micro,tiny,small}, danet_{micro,resnet50,resnet101,resnet152}.

    Args:
        weights: a checkpoint in any format that `load_weights` reads.
        embed_dim: the DMLP decoders' width, and the prototypes'.
        deform: which of the pyramid's four patch embeddings are deformable; without effect on a ResNet.
        deform_backend: auto | native | torchvision | mmcv (optional); without effect where nothing deforms.
        drop_path: the pyramid's last block's rate of stochastic depth; without effect on a ResNet.
        head: another head than the name's: dmlp | dmlp_v2 | danet | fpn | coarse_to_fine; with its own settings
            {"name": "fpn", "hidden": 128} or {"name": "coarse_to_fine", "width": 64, "levels": 1}.
        ecrm: put the Exterior Contextual-Relation Module between encoder and head; True, or the settings that differ
            from its own, {"bank_size": 40}.
        edges: put reverse edge supervision beside the head; True, or the settings that differ, {"levels": 1}.
        wrap: images are full panoramas: their left and right edges are neighbours for every layer. Widths must be
            multiples of 32; the published weights were trained without it.
        encoder_weights: ImageNet weights of a ResNet, a local file.
        allow_nonfinite: load weights that are NaN or infinite all the same.
    Raises:
        ConfigError: an unknown name, head, setting or backend, or a combination that cannot work.
        WeightsError: a checkpoint that does not fit.
    """
    whole_number("num_classes", num_classes, 1)
    whole_number("embed_dim", embed_dim, 1)
    size, default_head = look_up(name, MODELS, "model")
    head_settings = {"name": default_head, **({"name": head} if isinstance(head, str) else head or {})}
    head_class = look_up(str(head_settings.pop("name")), HEADS, "head")
    if size in RESNETS:
        encoder = DilatedResNet(RESNETS[size], encoder_weights, allow_nonfinite)
    elif encoder_weights is not None:
        raise ConfigError(f"encoder_weights is for ResNets; {name} takes its encoder's weights through weights")
    else:
        encoder = PyramidTransformer(size, deform, deform_backend, drop_path)
    ecrm_settings, edge_settings = ({} if option is True else option for option in (ecrm, edges))
    if edge_settings is not False and head_class is CoarseToFineHead:
        raise ConfigError("head=coarse_to_fine tells edges by itself: leave edges=false")
    if wrap and deform_backend in ("torchvision", "mmcv"):
        raise ConfigError(f"wrap=true needs deform_backend native or auto: {deform_backend}'s cannot wrap around")
    context = None if ecrm_settings is False else assemble(ECRM, "ecrm", ecrm_settings, encoder.channels, num_classes)
    edge_head = None if edge_settings is False else assemble(ReverseEdgeHead, "edges", edge_settings, encoder.channels)
    channels = encoder.channels if context is None else context.channels
    shared = (embed_dim, deform_backend) if issubclass(head_class, DMLPHead | DMLPv2Head) else ()
    decoder = assemble(head_class, "head", head_settings, channels, num_classes, *shared)
    model = Segmentor(encoder, decoder, context, edge_head)
    if wrap:
        wrap_sideways(model)
    if weights is not None:
        load_weights(model, weights, allow_nonfinite)
    return model


def assemble(part: type[nn.Module], option: str, settings: Mapping[str, Any], *given: Any) -> nn.Module:
    """`part(*given, **settings)`; ConfigError for a setting that it does not take."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{option} is true, false or a mapping of settings, not {settings!r}")
    check_arguments(part, settings, range(len(given)), option)
    return part(*given, **settings)


def look_up(name: str, table: Mapping[str, Any], kind: str) -> Any:
    """The entry of that name; ConfigError with the nearest one where there is none."""
    if name not in table:
        near = get_close_matches(name, table, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(f"{kind} {name!r} is not known{hint} There are {', '.join(table)}")
    return table[name]
