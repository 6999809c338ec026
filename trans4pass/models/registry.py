"""Models by name: an encoder and a head, and what else a setting puts between or beside them."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence, Set
from os import PathLike
from typing import Any, TypeVar

from torch import nn

from trans4pass.errors import ConfigError
from trans4pass.settings import OTHERS, Positive, checked, converted, look_up, nearest, parameters

from . import tuning
from .alignment import Alignment
from .circular import is_circular, make_circular
from .ecrm import ECRM
from .encoders.mix_transformer import MIX_SIZES, MixTransformer
from .encoders.timm import TimmEncoder
from .heads.coarse_to_fine import CoarseToFineHead, ReverseEdgeHead
from .heads.danet import DANetHead
from .heads.dmlp import DMLPHead
from .heads.dmlp_v2 import DMLPv2Head
from .heads.fpn import FPNHead
from .heads.linear import LinearHead
from .heads.segformer import SegFormerHead
from .heads.upernet import UPerNetHead
from .segmentor import Segmentor
from .weights import FAMILIES, RESNETS, load_weights, pretrained_weights

T = TypeVar("T")

# A package of your own adds its encoders and heads to these tables when it is imported. An encoder is called with its
# settings, a head with the encoder's `channels`, the number of classes and its settings; see `Segmentor`.
ENCODERS: dict[str, Callable[..., nn.Module]] = {
    **{size: functools.partial(MixTransformer, size) for size in MIX_SIZES},
    # DANet's: dilated, with torchvision's stem, so that its weights and timm's fit as they are; no multi-grid.
    **{name: functools.partial(TimmEncoder, name, output_stride=8, drop_path=None) for name in RESNETS.values()},
    "timm": TimmEncoder,
}
HEADS: dict[str, Callable[..., nn.Module]] = {
    "dmlp": DMLPHead,
    "dmlp_v2": DMLPv2Head,
    "danet": DANetHead,
    "fpn": FPNHead,
    "coarse_to_fine": CoarseToFineHead,
    "linear": LinearHead,
    "segformer": SegFormerHead,
    "upernet": UPerNetHead,
}
# Settings about what a training starts from: whoever has a checkpoint needs them no more.
STARTS = ("weights", "pretrained", "allow_nonfinite")
# name -> encoder and head
MODELS: dict[str, tuple[str, str]] = {
    **{f"{family}_{size}": (size, head) for head, family in FAMILIES.items() for size in MIX_SIZES},
    **{f"danet_{size}": (size, "danet") for size in ("micro", *RESNETS.values())},
}


def create_model(
    name: str,
    num_classes: int,
    weights: str | PathLike[str] | None = None,
    *,
    pretrained: bool = False,
    head: str | Mapping[str, Any] | None = None,
    ecrm: bool | Mapping[str, Any] = False,
    edges: bool | Mapping[str, Any] = False,
    wrap: bool = False,
    align: float = 0.0,
    statistics: Mapping[str, Sequence[float]] | None = None,
    allow_nonfinite: bool = False,
    freeze: Sequence[tuning.Frozen] = (),
    lora: bool | Mapping[str, Any] = False,
    **settings: Any,
) -> Segmentor:
    """Build a model by name: trans4pass[_plus]_{micro,tiny,small,b3,b4,b5}, danet_{micro,resnet50,resnet101,resnet152}.

    Args:
        name: of a model, or of an encoder, which needs `head`.
        weights: a checkpoint in any format that `load_weights` reads.
        pretrained: start from the weights that timm has of its encoder, which are downloaded once.
        head: another head than the name's: dmlp | dmlp_v2 | danet | fpn | coarse_to_fine | linear | segformer |
            upernet; with settings of its own {"name": "fpn", "hidden": 128}.
        ecrm: put the Exterior Contextual-Relation Module between encoder and head; True, or the settings that differ
            from its own, {"bank_size": 40}.
        edges: put reverse edge supervision beside the head; True, or the settings that differ, {"levels": 1}.
        wrap: images are full panoramas: their left and right edges are neighbours for every layer. Widths must be
            multiples of 32; the published weights were trained without it.
        align: how far each image's channel mean and deviation are moved towards the source's, 0 (off) to 1.
        statistics: the source's {"mean": [r, g, b], "std": [r, g, b]}, of values in [0,1]; `align` needs them.
        allow_nonfinite: load weights that are NaN or infinite all the same.
        freeze: what is not trained: "encoder", "norms" (the encoder's), or a number n, the first n of its four stages;
            of a plain transformer each quarter of the blocks is one. Frozen BatchNorm keeps its statistics.
        lora: train low-rank adapters of the encoder's attention, and no other part of the encoder; True, or the
            settings that differ from {"rank": 8, "alpha": 16}.
        settings: of the encoder and of the head, each of which takes those that it has: `embed_dim` (the DMLP
            decoders' width, and the prototypes', 128), `deform` (which of the pyramid's four patch embeddings are
            deformable), `deform_backend` (auto | native | torchvision | mmcv | triton), `drop_path` (stochastic depth
            of the pyramid's last block, 0.1).
    Raises:
        ConfigError: an unknown name, head, setting or backend, or a combination that cannot work.
        WeightsError: a checkpoint that does not fit.
    """
    if name.startswith("timm/"):
        name, settings = "timm", {"encoder": name.removeprefix("timm/"), **settings}
    num_classes = converted(Positive, num_classes, "num_classes")
    encoder_name, default_head = MODELS.get(name, (name, None))
    chosen: dict[str, Any] = {"name": default_head, **({"name": head} if isinstance(head, str) else head or {})}
    make_encoder = look_up(encoder_name, ENCODERS, "model", {**MODELS, **ENCODERS})
    if chosen["name"] is None:
        raise ConfigError(f"{name} is an encoder: add head=..., one of {', '.join(HEADS)}")
    make_head = look_up(chosen.pop("name"), HEADS, "head")
    of_encoders = {key for make in ENCODERS.values() for key in parameters(make)}
    of_heads = {key for make in HEADS.values() for key in parameters(make)}
    known = (of_encoders | of_heads) - {"channels", "num_classes", OTHERS}
    open_ended = any(OTHERS in parameters(make) for make in (make_encoder, make_head))
    for setting in () if open_ended else settings.keys() - known:
        raise ConfigError(f"model.{setting} has no effect: no encoder and no head takes it.{nearest(setting, known)}")
    if wrap and settings.get("deform_backend") == "mmcv":
        raise ConfigError("wrap=true needs another deform_backend than mmcv, which cannot wrap around: auto")
    if edges is not False and make_head is CoarseToFineHead:
        raise ConfigError("head=coarse_to_fine predicts edges by itself: leave edges=false")
    if align and not statistics:
        raise ConfigError(
            f"align={align} needs the source's channel statistics, which a stage counts on its domain `source` and "
            "keeps in its checkpoints: start from one of those, or give statistics={mean: [r, g, b], std: [r, g, b]}"
        )
    alignment = Alignment(align, **statistics) if align and statistics else None
    encoder: Any = assemble(make_encoder, "model", accepted(make_encoder, settings, of_heads - of_encoders))
    context = None if ecrm is False else assemble(ECRM, "model.ecrm", ecrm, encoder.channels, num_classes)
    edge_head = None if edges is False else assemble(ReverseEdgeHead, "model.edges", edges, encoder.channels)
    channels = encoder.channels if context is None else context.channels
    of_head = {**accepted(make_head, settings, of_encoders - of_heads), **chosen}
    decoder = assemble(make_head, "model.head", of_head, channels, num_classes)
    model = Segmentor(encoder, decoder, context, edge_head, alignment)
    if freeze and lora is not False:
        raise ConfigError("model.lora freezes the encoder by itself: leave model.freeze empty, or lora=false")
    if freeze:
        tuning.freeze(encoder, freeze)
    if lora is not False:
        assemble(tuning.add_adapters, "model.lora", lora, encoder)
    model.has_frozen = bool(freeze) or lora is not False
    model.train()
    if wrap:
        join_sides(model)
    start = pretrained_weights(model, weights) if pretrained else weights
    if start is not None:
        load_weights(model, start, allow_nonfinite)
    return model


def join_sides(model: Segmentor) -> None:
    """Make every layer of a model circular (see `make_circular`).

    Raises:
        ConfigError: a layer knows left from right, or pools over cells, so that no border can be taken away.
    """
    make_circular(model)
    if not getattr(model.head, "circular", True):
        raise ConfigError(f"wrap=true: {type(model.head).__name__} pools over cells with fixed borders; choose another")
    # Without numbers nothing can be tried.
    if isinstance(model.encoder, TimmEncoder) and not model.mean.is_meta and not is_circular(model.encoder):
        raise ConfigError(
            f"wrap=true: {model.encoder.name} has layers that cannot be circular, such as windows, position embeddings "
            "or paddings of one side; choose a convolutional encoder or a Mix Transformer"
        )


def circular_twin(model: Segmentor) -> Segmentor:
    """The layers of `model` made circular, in eval mode and without weights, for `torch.func.functional_call`."""
    twin = copy.deepcopy(model).requires_grad_(False).eval()
    join_sides(twin)
    return twin.to("meta")


def accepted(make: Callable[..., Any], settings: Mapping[str, Any], foreign: Set[str]) -> dict[str, Any]:
    """Those of the settings that `make` takes, and that it has not been given yet.

    One that takes any, as a function of `**settings` does, gets all but the `foreign` ones.
    """
    preset = make.keywords if isinstance(make, functools.partial) else {}
    takes = parameters(make)
    more = settings.keys() - foreign if OTHERS in takes else set()
    wanted = (takes.keys() | more) - preset.keys()
    return {key: value for key, value in settings.items() if key in wanted}


def assemble(make: Callable[..., T], where: str, settings: bool | Mapping[str, Any], *positional: Any) -> T:
    """`make(*positional, **settings)`, the settings checked; True stands for none."""
    values = converted(Mapping[str, Any], {} if settings is True else settings, where)
    return make(*positional, **checked(make, values, where, positional=len(positional)))
