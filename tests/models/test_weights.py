"""Every checkpoint format in circulation, written here from a model's own weights; and what must not load."""

import logging
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trans4pass import create_model
from trans4pass.errors import WeightsError
from trans4pass.models import identify, load_weights, read_weights
from trans4pass.models.encoders import mix_transformer
from trans4pass.models.encoders.mix_transformer import MIX_SIZES, MixSize
from trans4pass.models.weights import Variant, Weights

State = dict[str, Tensor]
CLASSES = 13


def random_state(name: str = "trans4pass_micro", num_classes: int = CLASSES, **settings) -> State:
    """A state dict in which every tensor differs from its initial value."""
    state = create_model(name, num_classes, **settings).state_dict()
    return {k: torch.rand_like(v) if v.is_floating_point() else torch.tensor(7) for k, v in state.items()}


def official(state: State) -> State:
    return {re.sub("^head", "dede_head", key): value for key, value in state.items()}


def older(state: State) -> State:
    return {re.sub("^head", "decode_head", re.sub("^encoder", "backbone", key)): v for key, v in state.items()}


def parallel(state: State) -> State:
    return {f"module.{key}": value for key, value in state.items()}


def training(state: State) -> dict:
    method = {f"network.{key}": value for key, value in state.items()} | {"discriminator.0.weight": torch.rand(3)}
    return {"method": method, "model": {"name": "trans4pass_micro"}, "labels": {"name": "x"}, "step": 3}


WHOLE = {
    "ours": lambda state: state,
    "ours, in training": training,
    "official": official,
    "official, nested": lambda state: {"state_dict": official(state), "epoch": 3},
    "official, parallel": lambda state: parallel(official(state)),
    "official, both": lambda state: {"model": parallel(official(state))},
    "official, parallel outside": lambda state: parallel({"state_dict": official(state)}),
    "older": older,
    "network": lambda state: {"network": state},
}


def segformer(state: State) -> State:
    """SegFormer's names, with the classifier of its ImageNet training, and without what only Trans4PASS has."""
    keep = {key: v for key, v in state.items() if key.startswith("encoder.") and not re.search("offset|modulator", key)}
    head = {"head.weight": torch.rand(1000, 256), "head.bias": torch.rand(1000)}
    return {key.removeprefix("encoder."): value for key, value in keep.items()} | head


def transformers(state: State) -> State:
    """The same under the names of the transformers library."""
    names = {
        "attn.q": "attention.self.query",
        "attn.sr": "attention.self.sr",
        "attn.norm": "attention.self.layer_norm",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "mlp.dense1",
        "mlp.fc2": "mlp.dense2",
        "norm1": "layer_norm_1",
        "norm2": "layer_norm_2",
    }
    result = {"classifier.weight": torch.rand(1000, 256)}
    for key, value in segformer(state).items():
        if key.startswith("head."):
            continue
        stem, stage, rest = re.fullmatch(r"([a-z_]+)(\d)\.(.*)", key).groups()
        stem = {"patch_embed": "patch_embeddings", "norm": "layer_norm"}.get(stem, stem)
        rest = re.sub(r"^norm\.", "layer_norm.", rest) if stem == "patch_embeddings" else rest
        for ours, theirs in names.items() if stem == "block" else ():
            rest = re.sub(rf"(?<=\.){re.escape(ours)}(?=\.)", theirs, rest)
        key = f"segformer.encoder.{stem}.{int(stage) - 1}.{rest}"
        if "attn.kv" in key:
            for half, part in zip(("key", "value"), value.chunk(2), strict=True):
                result[key.replace("attn.kv", f"attention.self.{half}")] = part
        else:
            result[key] = value
    return result


def save(content: dict, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("format", WHOLE)
def test_a_whole_checkpoint_round_trips(format: str, tmp_path: Path) -> None:
    state = random_state()
    path = save(WHOLE[format](state), tmp_path / "weights.pth")
    loaded = create_model("trans4pass_micro", CLASSES, path).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    expected = Variant("trans4pass_micro", CLASSES, embed_dim=128, deform=(True, False, False, False))
    assert identify(read_weights(path).state) == expected


@pytest.mark.parametrize("format", [segformer, transformers])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_encoder_alone_round_trips(format, suffix: str, tmp_path: Path, caplog) -> None:
    state, model = random_state(), create_model("trans4pass_micro", CLASSES)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = save(format(state), tmp_path / f"mit_b0{suffix}")
    with caplog.at_level(logging.INFO):
        report = load_weights(model, path)
    after = model.state_dict()
    for key, value in after.items():
        assert torch.equal(value, before[key] if key in report.missing else state[key]), key
    assert all(key.startswith("head.") or re.search("offset|modulator", key) for key in report.missing)
    assert report.matched == len(after) - len(report.missing)
    assert sorted(report.dropped) == (["head.bias", "head.weight"] if format is segformer else ["classifier.weight"])
    assert f"{report.matched} tensors loaded" in caplog.text
    assert identify(read_weights(path).state) is None


def test_the_training_state_around_the_network_is_dropped(tmp_path: Path) -> None:
    path = save(training(random_state()), tmp_path / "last.pt")
    report = load_weights(create_model("trans4pass_micro", CLASSES), path)
    assert report.missing == []
    assert report.dropped == ["discriminator.0.weight"]


def mit(depths: tuple[int, ...], names: str) -> State:
    """A MiT's ImageNet file, written by hand from the releases' names: widths 2, 4, 6, 8, one value per tensor."""
    official, state = names == "official", {}

    def put(name: str, *shape: int) -> None:
        state[name] = torch.full(shape, float(len(state) % 97))

    for s, depth in enumerate(depths):
        dim, into, kernel, reduction = 2 * s + 2, 2 * s or 3, 7 if s == 0 else 3, (8, 4, 2, 1)[s]
        embed = f"patch_embed{s + 1}." if official else f"segformer.encoder.patch_embeddings.{s}."
        put(f"{embed}proj.weight", dim, into, kernel, kernel)
        put(f"{embed}proj.bias", dim)
        norms = [f"{embed}{'norm' if official else 'layer_norm'}"]
        norms += [f"norm{s + 1}" if official else f"segformer.encoder.layer_norm.{s}"]
        for b in range(depth):
            block = f"block{s + 1}.{b}." if official else f"segformer.encoder.block.{s}.{b}."
            attention = f"{block}attn." if official else f"{block}attention.self."
            norms += [f"{block}norm{i}" if official else f"{block}layer_norm_{i}" for i in (1, 2)]
            linears = {"q": dim, "kv": 2 * dim} if official else {"query": dim, "key": dim, "value": dim}
            for name, out in linears.items():
                put(f"{attention}{name}.weight", out, dim)
                put(f"{attention}{name}.bias", out)
            mlp = ("fc1", "fc2") if official else ("dense1", "dense2")
            shapes = {
                f"{block}attn.proj" if official else f"{block}attention.output.dense": (dim, dim),
                f"{block}mlp.{mlp[0]}": (4 * dim, dim),
                f"{block}mlp.dwconv.dwconv": (4 * dim, 1, 3, 3),
                f"{block}mlp.{mlp[1]}": (dim, 4 * dim),
            }
            if reduction > 1:
                shapes[f"{attention}sr"] = (dim, dim, reduction, reduction)
                norms.append(f"{attention}{'norm' if official else 'layer_norm'}")
            for name, shape in shapes.items():
                put(f"{name}.weight", *shape)
                put(f"{name}.bias", shape[0])
        for name in norms:
            put(f"{name}.weight", dim)
            put(f"{name}.bias", dim)
    classifier = "head" if official else "classifier"
    put(f"{classifier}.weight", 5, dim)
    put(f"{classifier}.bias", 5)
    return state


@pytest.mark.parametrize("names", ["official", "transformers"])
@pytest.mark.parametrize(("size", "depths"), [("b3", (3, 4, 18, 3)), ("b4", (3, 8, 27, 3)), ("b5", (3, 6, 40, 3))])
def test_larger_encoders_take_their_released_files(names: str, size: str, depths, tmp_path: Path, monkeypatch) -> None:
    """With the releases' depths, and widths that fit into a test."""
    monkeypatch.setattr(mix_transformer, "HEADS", (1, 1, 1, 1))
    for known in ("b3", "b4", "b5"):
        monkeypatch.setitem(MIX_SIZES, known, MixSize((2, 4, 6, 8), MIX_SIZES[known].depths))
    state, other = mit(depths, names), {"b3": "b4", "b4": "b5", "b5": "b3"}[size]
    path = save(state, tmp_path / f"mit_{size}.safetensors")
    for family in ("trans4pass", "trans4pass_plus"):
        model = create_model(f"{family}_{size}", CLASSES)
        report = load_weights(model, path)
        assert sorted(report.dropped) == sorted(key for key in state if key.startswith(("head.", "classifier.")))
        assert all(key.startswith("head.") or re.search("offset|modulator", key) for key in report.missing)
        last = state[
            "block3.17.mlp.fc2.weight" if names == "official" else "segformer.encoder.block.2.17.mlp.dense2.weight"
        ]
        assert torch.equal(model.encoder.block3[17].mlp.fc2.weight, last) and len(model.encoder.block3) == depths[2]
    with pytest.raises(
        WeightsError, match=f"encoder of size {size}; the model's is {other}.*model=trans4pass_{size} or"
    ):
        create_model(f"trans4pass_{other}", CLASSES, path)


REFUSED = {
    "another head": (
        ("trans4pass_plus_micro", 13),
        {},
        "holds trans4pass_plus_micro.*Use model=trans4pass_plus_micro, or",
    ),
    "another size": (
        ("trans4pass_tiny", 13),
        {},
        "holds trans4pass_tiny.*is trans4pass_micro.*Use model=trans4pass_tiny, or",
    ),
    "other classes": (("trans4pass_micro", 19), {}, "with 19 classes.*with 13 classes.*Use labels with 19 classes, or"),
    "all of them": (
        ("trans4pass_plus_tiny", 19),
        {},
        "Use model=trans4pass_plus_tiny and labels with 19 classes, or",
    ),
    "another width": (("trans4pass_micro", 13), {"embed_dim": 64}, "Use model.embed_dim=64, or"),
    "other stages": (
        ("trans4pass_micro", 13),
        {"deform": (True, True, False, False)},
        r"Use model.deform=\[true,true,false,false\], or",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_model_is_refused_and_named(case: str, tmp_path: Path) -> None:
    (name, classes), settings, message = REFUSED[case]
    path = save(official(random_state(name, classes, **settings)), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=f"other.pth.*{message}"):
        create_model("trans4pass_micro", 13, path)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("danet_resnet101", {}),
        ("danet_resnet152", {"ecrm": True}),
        ("danet_resnet50", {"head": "dmlp", "embed_dim": 32, "ecrm": True}),
        ("danet_micro", {}),
        ("trans4pass_plus_tiny", {"deform": (True, True, False, False), "edges": True}),
        ("trans4pass_micro", {"head": "fpn", "ecrm": True, "edges": True}),
        ("trans4pass_micro", {"head": "coarse_to_fine"}),
        ("trans4pass_b4", {"head": "segformer", "embed_dim": 64}),
        ("trans4pass_micro", {"head": "linear", "edges": True}),
        ("danet_resnet50", {"head": "upernet"}),
    ],
)
def test_every_model_is_known_by_its_weights(name: str, settings: dict) -> None:
    with torch.device("meta"):
        state = create_model(name, 7, **settings).state_dict()
        variant = identify(state)
        again = create_model(variant.name, variant.num_classes, **variant.options()).state_dict()
    assert {key: value.shape for key, value in again.items()} == {key: value.shape for key, value in state.items()}
    assert identify(again) == variant


@pytest.mark.parametrize(
    ("asked", "held", "message"),
    [
        ({}, {"edges": True}, "Use model.edges=true, or"),
        ({"ecrm": True}, {}, "Use model.ecrm=false, or"),
        ({}, {"head": "fpn"}, "Use model.head=fpn, or"),
        ({"head": "fpn"}, {}, "Use model.embed_dim=128 and .*model.head=null, or"),
        ({"head": {"name": "fpn", "hidden": 64}}, {"head": "fpn"}, "lacks|Shapes differ.*other settings of head"),
    ],
)
def test_the_fitting_options_are_named(asked: dict, held: dict, message: str, tmp_path: Path) -> None:
    path = save(random_state(**held), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=message):
        create_model("trans4pass_micro", CLASSES, path, **asked)


def first_release(state: State) -> State:
    """A reverse edge head of release 0.1.0: plain convolutions with biases, and one less behind the sums."""
    old = {"head.out.0.bias": torch.rand(128)} if "head.out.0.weight" in state else {}
    for key, value in state.items():
        place = re.fullmatch(r"(head|edges)\.(laterals|sums)\.(\d)\.(\d)\.(?:weight|bias)", key)
        if place is None:
            old[key] = value
            continue
        part, list_, number, index = place.groups()
        list_, number = (list_, int(number)) if list_ == "laterals" else ("between", int(number) - 1)
        if number >= 0:
            old[f"{part}.{list_}.{number}.{'weight' if index == '0' else 'bias'}"] = value
    return old


OLD = r"release 0\.1\.0.*head=coarse_to_fine or model\.edges.*changed since.*train that model again"


@pytest.mark.parametrize("settings", [{"head": "coarse_to_fine"}, {"edges": True}], ids=["head", "edges"])
def test_reverse_edge_heads_of_the_first_release_are_refused_by_name(settings: dict, tmp_path: Path) -> None:
    state = first_release(random_state(**settings))
    for name, content in {"bare.pth": state, "last.pt": training(state), "bare.safetensors": state}.items():
        path = save(content, tmp_path / name)
        for read in (read_weights, lambda path: create_model("trans4pass_micro", CLASSES, path, **settings)):
            with pytest.raises(WeightsError, match=f"{name}.*{OLD}"):
                read(path)
    handed_on = Weights("warmup/last.pt", "Trans4PASS", state, [])  # as one stage of a run gives them to the next
    with pytest.raises(WeightsError, match=f"warmup/last.pt.*{OLD}"):
        load_weights(create_model("trans4pass_micro", CLASSES, **settings), handed_on)


def test_a_resnets_weights_are_sent_to_their_place(tmp_path: Path) -> None:
    path = save({"layer1.0.conv1.weight": torch.rand(64, 64, 1, 1)}, tmp_path / "resnet50.pth")
    with pytest.raises(WeightsError, match="a ResNet's ImageNet weights, for model=danet_resnet50, 101 or 152"):
        create_model("trans4pass_micro", CLASSES, path)


def test_a_timm_model_is_sent_to_its_own_weights(tmp_path: Path) -> None:
    path = save(segformer(random_state()), tmp_path / "mit_b0.pth")
    with pytest.raises(WeightsError, match="for another encoder than the model's, which is timm's: pretrained=true"):
        create_model("timm/resnet18", CLASSES, path, head="linear")


def test_small_is_distinguished_from_tiny(tmp_path: Path) -> None:
    path = save(random_state("trans4pass_small"), tmp_path / "small.pth")
    with pytest.raises(WeightsError, match="Use model=trans4pass_small, or"):
        create_model("trans4pass_tiny", CLASSES, path)


def test_another_encoder_is_refused_and_named(tmp_path: Path) -> None:
    path = save(segformer(random_state("trans4pass_tiny")), tmp_path / "mit_b1.pth")
    with pytest.raises(WeightsError, match=r"encoder of size tiny; the model's is micro.*trans4pass_plus_tiny"):
        create_model("trans4pass_micro", CLASSES, path)


def test_nothing_is_loaded_from_a_refused_file(tmp_path: Path) -> None:
    model = create_model("trans4pass_micro", CLASSES)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError):
        load_weights(model, save(random_state("trans4pass_plus_micro"), tmp_path / "other.pth"))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("encoder.norm1.weight"), "It lacks encoder.norm1.weight. "),
        (lambda state: state.update({"encoder.extra": torch.rand(1)}), "It has unknown encoder.extra. "),
        (lambda state: state.update({"encoder.norm1.bias": torch.rand(3)}), r"Shapes differ: encoder.norm1.bias \[3\]"),
    ],
)
def test_a_damaged_state_is_refused_and_explained(change, message: str, tmp_path: Path) -> None:
    state = random_state()
    change(state)
    with pytest.raises(WeightsError, match=message):
        create_model("trans4pass_micro", CLASSES, save(state, tmp_path / "damaged.pth"))


def test_an_encoder_may_lack_nothing_else(tmp_path: Path) -> None:
    state = segformer(random_state())
    del state["block1.0.attn.q.weight"]
    with pytest.raises(WeightsError, match=r"It lacks encoder.block1.0.attn.q.weight"):
        create_model("trans4pass_micro", CLASSES, save(state, tmp_path / "mit_b0.pth"))


class Harmless:
    """An object that a checkpoint should not hold."""


def unreadable(kind: str, folder: Path) -> Path:
    whole = save({"a": torch.rand(1000)}, folder / "whole.pth").read_bytes()
    save({"a": torch.rand(1000)}, folder / "whole.safetensors")
    contents = {
        "cut_off.pth": whole[: len(whole) // 2],
        "cut_off.safetensors": (folder / "whole.safetensors").read_bytes()[:-8],
        "text.pth": b"not a checkpoint",
        "empty.pth": b"",
    }
    if kind in contents:
        (folder / kind).write_bytes(contents[kind])
    torch.save({"a": Harmless()}, folder / "object.pth")
    return folder / kind


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("none.pth", "there is no weights file"),
        ("cut_off.pth", "cannot be read"),
        ("cut_off.safetensors", "cannot be read"),
        ("text.pth", "no PyTorch checkpoint"),
        ("empty.pth", "cannot be read"),
        ("object.pth", "Python objects.*save its state_dict"),
    ],
)
def test_an_unreadable_file_is_refused_with_its_path(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"{kind}.*{message}|{message}.*{kind}"):
        read_weights(unreadable(kind, tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [({"epoch": 3}, "a dict with epoch"), ({}, "a dict with nothing"), ([1, 2], "a list"), (torch.rand(3), "a Tensor")],
)
def test_a_file_without_weights_is_refused(content, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=f"other.pt holds no weights, but {message}"):
        read_weights(tmp_path / "other.pt")
