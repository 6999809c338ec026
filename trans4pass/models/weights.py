"""Weights from files: this project's, the official releases', and SegFormer's ImageNet encoders.

The ImageNet encoders (`IMAGENET`) come under NVIDIA's non-commercial licence; none is shipped here.
"""

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from trans4pass.errors import ConfigError, WeightsError, first_line
from trans4pass.hub import fetched

from .encoders.mix_transformer import MIX_SIZES
from .heads.coarse_to_fine import refuse_first_release
from .tuning import ADAPTER, NEW, adapted

log = logging.getLogger(__name__)

State = dict[str, Tensor]


class Variant(NamedTuple):
    """The model that a state dict belongs to, as `create_model` would be asked for it."""

    name: str
    num_classes: int
    embed_dim: int | None = None  # None where the head has no such width
    deform: tuple[bool, ...] | None = None  # None where the encoder does not deform
    head: str | None = None  # None: the name's own
    ecrm: bool = False
    edges: bool = False

    def __str__(self) -> str:
        options = {key: value for key, value in self.options().items() if key != "deform"}
        listed = f" ({', '.join(f'{key} {value}'.lower() for key, value in options.items())})" if options else ""
        return f"{self.name} with {self.num_classes} classes{listed}"

    def options(self) -> dict[str, Any]:
        """What `create_model` takes beside name and classes, where it is known."""
        return {key: value for key, value in self._asdict().items() if value and key not in ("name", "num_classes")}


class Weights(NamedTuple):
    """A network's tensors from a file, under this project's names."""

    path: str | PathLike[str]
    format: str
    state: State
    dropped: list[str]  # tensors of the file that no model needs


def pretrained_weights(model: Any, weights: str | PathLike[str] | None = None) -> Weights:
    """The weights that timm has of the encoder of `model`, a `Segmentor`, also on the meta device.

    Raises:
        ConfigError: it has none, or there is another start, `weights`.
        WeightsError: they cannot be downloaded.
    """
    encoder = model.encoder
    if weights is not None:
        raise ConfigError(f"pretrained=true and weights={weights} are two starts: set pretrained=false or weights=null")
    if not hasattr(encoder, "pretrained_state"):
        size = _encoder_size(model.state_dict())
        named = f"model.weights=nvidia/{IMAGENET[size]}" if size else "model.weights=<file, or name on the hub>"
        raise ConfigError(
            f"pretrained=true takes timm's weights, and this encoder ({type(encoder).__name__}) is none of timm's: "
            f"{named} takes those that fit"
        )
    state = {f"encoder.{name}": value for name, value in encoder.pretrained_state().items()}
    return Weights(f"timm's {encoder.name}", "timm", state, [])


class LoadReport(NamedTuple):
    format: str
    matched: int  # tensors taken over
    missing: list[str]  # tensors of the model that keep their initial values
    dropped: list[str]  # tensors of the file that no model needs

    def __str__(self) -> str:
        kept, dropped = len(self.missing), len(self.dropped)
        return (
            f"{self.format} weights, {self.matched} tensors loaded, {kept} keep their initial values, {dropped} dropped"
        )


def load_weights(model: nn.Module, source: str | PathLike[str] | Weights, allow_nonfinite: bool = False) -> LoadReport:
    """Load a file into `model`, strictly; what it lacks by nature is reported and logged.

    An encoder alone (SegFormer's, a ResNet's) leaves the head and the deforming patch embeddings' offset and modulator
    convolutions as they are. Raises WeightsError where the file cannot be read, holds another model, or, unless
    `allow_nonfinite`, NaN or infinity. A model with adapters takes weights without, and the other way round.
    """
    weights = source if isinstance(source, Weights) else read_weights(source)
    weights = weights._replace(state=adapted(weights.state, model.state_dict()))
    missing = check_weights(model, weights, allow_nonfinite)
    model.load_state_dict(weights.state, strict=False)
    report = LoadReport(weights.format, len(weights.state), missing, weights.dropped)
    log.info("%s: %s", weights.path, report)
    return report


def check_weights(model: nn.Module, weights: Weights, allow_nonfinite: bool = False) -> list[str]:
    """The model's tensors that a file lacks by nature; raises what `load_weights` does."""
    wanted = model.state_dict()
    state = adapted(weights.state, wanted)
    refuse_first_release(state, weights.path)
    encoder_only = not any(key.startswith("head.") for key in state)
    missing = [key for key in wanted if key not in state]
    may_lack = [key for key in missing if ADAPTER in key or (encoder_only and _may_be_missing(key))]
    different = differences(state, wanted, may_lack)
    if different:
        raise WeightsError(f"{weights.path} does not fit the model. {_explain(state, wanted, different)}")
    check_finite(state, weights.path, allow_nonfinite)
    return missing


def differences(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], may_lack: Collection[str] = ()) -> str:
    """How the tensors of a file differ from those that a model wants, values aside; empty where they fit.

    Floating-point numbers of any width fit one another.
    """
    both = [key for key in wanted if key in state]
    parts = {
        "It lacks": [key for key in wanted if key not in state and key not in may_lack],
        "It has unknown": [key for key in state if key not in wanted],
        "Shapes differ:": [
            f"{key} {list(state[key].shape)} instead of {list(wanted[key].shape)}"
            for key in both
            if state[key].shape != wanted[key].shape
        ],
        "Values are of another kind:": [
            f"{key} {state[key].dtype}, {state[key].layout} on {state[key].device} instead of {wanted[key].dtype}"
            for key in both
            if not _holds_numbers(state[key]) or state[key].is_floating_point() != wanted[key].is_floating_point()
        ],
    }
    more = {what: f" and {len(keys) - 4} more" if len(keys) > 4 else "" for what, keys in parts.items()}
    return ". ".join(f"{what} {', '.join(keys[:4])}{more[what]}" for what, keys in parts.items() if keys)


def check_finite(state: Mapping[str, Tensor], path: str | PathLike, allow_nonfinite: bool) -> None:
    """Raise WeightsError for the first tensor that holds NaN or infinity, unless that is allowed."""
    for key, value in state.items():
        # Not all narrow types have a test of their own.
        wrong = 0 if allow_nonfinite else int((~value.double().isfinite()).sum())
        if wrong:
            raise WeightsError(
                f"{path}: {key} is not finite, {wrong} of its {value.numel()} numbers are NaN or infinite: the file is "
                "damaged, or the training that wrote it went wrong. Take another one; allow_nonfinite=true (in "
                "training model.allow_nonfinite=true) loads it all the same"
            )


def read_weights(path: str | PathLike[str]) -> Weights:
    """The tensors in `path`, in any format that `load_weights` reads, under this project's names.

    Raises WeightsError where the file is not there, is no checkpoint, is damaged, or holds more than plain values.
    """
    return as_weights(read_file(path), path)


def identify(state: Mapping[str, Tensor]) -> Variant | None:
    """The model that a whole state dict belongs to, by names and shapes; None where there is none."""
    state = as_weights(dict(state), "the state dict").state
    head = next((head for head, key in HEADS.items() if key in state), None)
    preds = (state.get(key) for key in ("head.pred.weight", "head.pred.1.weight"))
    pred = next((pred for pred in preds if pred is not None and pred.ndim == 4), None)
    blocks = [key for key in state if re.fullmatch(r"encoder\.body\.layer3\.\d+\.conv1\.weight", key)]
    size, resnet = _encoder_size(state), RESNETS.get(len(blocks))
    if head is None or pred is None or not (size or resnet):
        return None
    is_default = head == "danet" if resnet else head in FAMILIES
    return Variant(
        name=f"danet_{resnet}" if resnet else f"{FAMILIES.get(head, 'trans4pass')}_{size}",
        num_classes=pred.shape[0],
        embed_dim=pred.shape[1] if head in (*FAMILIES, "segformer") else None,
        deform=None if resnet else tuple(f"encoder.patch_embed{stage}.offset_conv.weight" in state for stage in STAGES),
        head=None if is_default else head,
        ecrm=any(key.startswith("context.") for key in state),
        edges=any(key.startswith("edges.") for key in state),
    )


DESCRIPTION = ("model", "labels")  # what our own files say about themselves
NESTS = ("method", "state_dict", "model", "network")  # "model" are settings in our own, whose "method" comes first
FOLDER = 0x10  # zip's attribute
STAGES = (1, 2, 3, 4)
IMAGENET = {"micro": "mit-b0", "tiny": "mit-b1", "small": "mit-b2", "b3": "mit-b3", "b4": "mit-b4", "b5": "mit-b5"}
HEADS = {  # a tensor that only this head has
    "dmlp": "head.head1.h_mlp.weight",
    "dmlp_v2": "head.head1.dmlp.weight",
    "danet": "head.pred_position.1.weight",
    "fpn": "head.adapters.0.weight",
    "coarse_to_fine": "head.sums.0.0.weight",
    "linear": "head.norm.weight",
    "segformer": "head.projections.0.weight",
    "upernet": "head.bottleneck.0.weight",
}
FAMILIES = {"dmlp": "trans4pass", "dmlp_v2": "trans4pass_plus"}  # heads that give a model its name
RESNETS = {6: "resnet50", 23: "resnet101", 36: "resnet152"}  # by the blocks of the third stage
PREFIXES = {"dede_head": "head", "backbone": "encoder", "decode_head": "head"}  # official -> here
ENCODERS = {  # trained on ImageNet: a tensor by which they are known, the classifier to be dropped, their place here
    "SegFormer": ("patch_embed1.proj.weight", "head.", "encoder."),
    "ImageNet ResNet": ("layer1.0.conv1.weight", "fc.", "encoder.body."),
}
TRANSFORMERS = {  # inside a stage; longer names first
    "attention.self.layer_norm": "attn.norm",
    "attention.self.query": "attn.q",
    "attention.self.sr": "attn.sr",
    "attention.output.dense": "attn.proj",
    "mlp.dense1": "mlp.fc1",
    "mlp.dense2": "mlp.fc2",
    "layer_norm_1": "norm1",
    "layer_norm_2": "norm2",
    "layer_norm": "norm",
}
TRANSFORMERS_STAGES = {"patch_embeddings": "patch_embed", "block": "block", "layer_norm": "norm"}


def read_file(path: str | PathLike) -> Any:
    """All that a checkpoint holds, on the CPU; a run's exported safetensors look like its checkpoints.

    A name on the hub (see trans4pass/hub.py) is downloaded.

    Raises WeightsError where the file is not there, is damaged (as far as its checksums show), or holds more than
    plain values.
    """
    path = fetched(path)
    if not path.is_file():
        raise WeightsError(
            f"there is no weights file {path}: give the path of a .pth, .pt or .safetensors file, or a name on the hub "
            "such as nvidia/mit-b2"
        )
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        damaged = _damaged_entry(path)
        if not damaged:
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is no PyTorch checkpoint, or holds Python objects, which could run code when read. If you trust "
            f"it, load it with weights_only=False and save its state_dict alone. ({first_line(error)})"
        ) from error
    except Exception as error:  # a damaged pickle makes its reader raise almost anything
        raise WeightsError(
            f"{path} cannot be read: it is cut off, damaged or no checkpoint; get it again. ({first_line(error)})"
        ) from error
    raise WeightsError(f"{path} is damaged at {damaged}: copy it again, or use the one before it")


def _read_safetensors(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        description = {key: json.loads(metadata[key]) for key in (*DESCRIPTION, "plugins") if key in metadata}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if not {*DESCRIPTION} <= description.keys():
        return tensors
    return {**description, "method": {f"network.{name}": value for name, value in tensors.items()}}


def _damaged_entry(path: Path) -> str | None:
    """Where torch's zip archive is damaged, as far as its checksums show."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # torch's old format has no checksums
            return None
    with zipfile.ZipFile(path) as archive:
        # A file marked as a folder is none to torch, which would leave its numbers as the memory happens to be.
        folders = (entry.filename for entry in archive.infolist() if entry.external_attr & FOLDER)
        return archive.testzip() or next(folders, None)


def as_weights(content: Any, path: str | PathLike[str]) -> Weights:
    """The network's tensors in what `read_file` gave."""
    state, outside = _unwrap(content, path)
    if any("patch_embeddings." in key for key in state):
        encoder, dropped = _split(state, re.compile(r"(?:segformer\.)?encoder\."))
        try:
            return Weights(path, "transformers", _from_transformers(encoder), outside + dropped)
        except (KeyError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{path} has the transformers library's names, some wrong ({error!r}): get it again"
            ) from error
    for format, (mark, classifier, place) in ENCODERS.items():
        if mark in state:
            dropped = [key for key in state if key.startswith(classifier)]
            kept = {f"{place}{key}": state[key] for key in state if key not in dropped}
            return Weights(path, format, kept, outside + dropped)
    official = re.compile(rf"^({'|'.join(PREFIXES)})(?=\.)")
    renamed = {official.sub(lambda found: PREFIXES[found[1]], key): value for key, value in state.items()}
    refuse_first_release(renamed, path)
    return Weights(path, "Trans4PASS" if renamed.keys() == state.keys() else "official", renamed, outside)


def _unwrap(content: Any, path: str | PathLike) -> tuple[State, list[str]]:
    """The network's flat state dict out of whatever surrounds it, and the names of the tensors left outside."""
    while isinstance(content, Mapping):
        content = {re.sub(r"^(module\.)+", "", str(key)): value for key, value in content.items()}
        nests = [content[key] for key in NESTS if isinstance(content.get(key), Mapping)]
        if not nests:
            break
        content = nests[0]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        names = f" with {', '.join(map(str, list(content)[:5])) or 'nothing'}" if isinstance(content, Mapping) else ""
        raise WeightsError(f"{path} holds no weights, but a {type(content).__name__}{names}: give a model's checkpoint")
    if any(key.startswith("network.") for key in tensors):
        return _split(tensors, re.compile(r"network\.(?:module\.)?"))
    return tensors, []


def _split(state: State, prefix: re.Pattern) -> tuple[State, list[str]]:
    """The tensors under `prefix`, which is taken off, and the names of all others."""
    inside = {prefix.sub("", key, count=1): value for key, value in state.items() if prefix.match(key)}
    return inside, [key for key in state if not prefix.match(key)]


def _from_transformers(state: State) -> State:
    result = {}
    for key, value in state.items():
        if ".value." in key:
            continue  # joined to its key
        if ".key." in key:
            value = torch.cat((value, state[key.replace(".key.", ".value.")]))
            key = key.replace("attention.self.key", "attn.kv")
        stem, stage, rest = key.split(".", 2)
        for theirs, here in TRANSFORMERS.items():
            rest = rest.replace(theirs, here)
        result[f"encoder.{TRANSFORMERS_STAGES.get(stem, stem)}{int(stage) + 1}.{rest}"] = value
    return result


def _may_be_missing(key: str) -> bool:
    """Whether an encoder's file lacks `key` by nature."""
    by_nature = (".offset_conv.", ".modulator_conv.", "num_batches_tracked")  # the last in old torchvision's
    new = not key.startswith("encoder.") or key.startswith(f"encoder.{NEW}")
    return new or any(part in key for part in by_nature)


def _encoder_size(state: State) -> str | None:
    try:
        channels = tuple(state[f"encoder.patch_embed{stage}.proj.weight"].shape[0] for stage in STAGES)
    except (KeyError, IndexError):
        return None
    norms = [key for key in state if re.fullmatch(r"encoder\.block\d\.\d+\.norm1\.weight", key)]
    depths = tuple(sum(key.startswith(f"encoder.block{stage}.") for key in norms) for stage in STAGES)
    return next((name for name, size in MIX_SIZES.items() if size == (channels, depths)), None)


def _explain(state: State, wanted: State, different: str) -> str:
    """What the file holds instead, and the settings that would fit it."""
    held, asked = identify(state), identify(wanted)
    if held and asked and held != asked:
        return f"It holds {held}; the model is {asked}. Use {_settings(held, asked)}, or another file"
    held_size, asked_size = _encoder_size(state), _encoder_size(wanted)
    if held is None and held_size and asked_size and held_size != asked_size:
        return (
            f"It holds an encoder of size {held_size}; the model's is {asked_size}. "
            f"Use model=trans4pass_{held_size} or model=trans4pass_plus_{held_size}, or another file"
        )
    if held:
        hint = f"It is {held}, as the model is, made with other settings of head, ecrm or edges: give those"
    elif asked is None and asked_size is None:
        hint = (
            "It is for another encoder than the model's, which is timm's: pretrained=true takes that one's own weights"
        )
    elif "encoder.body.layer1.0.conv1.weight" in state:
        hint = "It holds a ResNet's ImageNet weights, for model=danet_resnet50, 101 or 152"
    else:
        hint = "Is it a Trans4PASS or SegFormer checkpoint?"
    return f"{different}. {hint}"


def _holds_numbers(tensor: Tensor) -> bool:
    """Whether a file's tensor has its real numbers side by side."""
    dense = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
    return dense and not tensor.is_complex()


def _settings(held: Variant, asked: Variant) -> str:
    """The settings of `held` that differ from `asked`, as they would be typed."""
    words = {"name": "model={}", "num_classes": "labels with {} classes"}
    differ = []
    for key, value in held._asdict().items():
        if value != getattr(asked, key) and (value is not None or key == "head"):
            shown = str(list(value) if isinstance(value, tuple) else value).lower().replace(" ", "")
            differ.append(words.get(key, f"model.{key}={{}}").format(shown.replace("none", "null")))
    return " and ".join(differ)
