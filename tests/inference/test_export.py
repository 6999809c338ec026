"""Exports against the network that they are made of."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from tests.models import tiny_encoders  # noqa: F401 - timm's tiny ones
from tests.small import Strides, Sum, label_space, tiny_segmentor, various_network
from trans4pass import TTA, create_model, load_model
from trans4pass.errors import ConfigError, WeightsError
from trans4pass.inference import graph, model_card
from trans4pass.inference.export import ExportSettings, export
from trans4pass.inference.graph import export_graph
from trans4pass.inference.images import predict_images
from trans4pass.inference.onnx_network import OnnxNetwork
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.models import Segmentor, make_circular
from trans4pass.settings import parse
from trans4pass.storage import write_json
from trans4pass.toy_world import MARKER
from trans4pass.training import checkpoint

SPACE = label_space(["road", "sky", "car"])
NOISE = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
SUMMARY = {
    "name": "my_run", "seed": 7, "final": "mpa", "sides": ["source", "target"],
    "stages": {
        "source": {"source": 70.123, "target": 46.5, "steps": 400, "seconds": 1.0},
        "mpa": {"source": 68.0, "target": 55.25, "steps": 200, "seconds": 1.0, "best": {"step": 150, "target": 56.789}},
    },
}  # fmt: skip
CONFIG = {
    "data": {"source": {"dataset": {"_target_": "trans4pass.data.Cityscapes", "root": "/home/secret/cityscapes"}}},
    "model": {"name": "trans4pass_micro", "weights": "nvidia/mit-b0"},
    "stages": {
        "source": {
            "init": None, "method": {"terms": {"supervised": {"weight": 1.0}, "none": {"weight": 0}}},
            "domains": {"source": {"batch_size": 8}}, "optim": {"network": {"lr": 5e-5}},
        },
        "off": {"enabled": False, "init": "other.pth", "method": {}},
    },
}  # fmt: skip


def run_export(checkpoint_path: Path, output: Path, **settings: Any) -> None:
    values = {"checkpoint": str(checkpoint_path), "output": str(output), **settings}
    export(values, torch.device("cpu"), Interrupts())


def tiny(space: LabelSpace = SPACE) -> Segmentor:
    """Seconds instead of half a minute to export."""
    torch.manual_seed(0)
    encoder = Strides()
    network = Segmentor(encoder, Sum(encoder.channels, space.num_classes)).eval()
    with torch.no_grad():
        logits = network(NOISE).logits
        network.head.pred.bias -= logits.mean((0, 2, 3))
        network.head.pred.weight *= 1 / logits.std()
    return network


def onnx_file(folder: Path, result: graph.Result = "logits", dynamic: bool = True) -> Path:
    export_graph(folder / "model.onnx", tiny(), SPACE, result, (96, 64), dynamic, 20)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def onnx_of_any_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_file(tmp_path_factory.mktemp("onnx"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run's folder with one stage's checkpoint."""
    state = {f"network.{key}": value for key, value in various_network(3, NOISE).state_dict().items()}
    model = {"_target_": "trans4pass.create_model", "name": "trans4pass_micro", "embed_dim": 16}
    for file in ("last.pt", "best.pt"):
        content = {"method": state, "model": model, "labels": SPACE.to_dict()}
        checkpoint.save(content, tmp_path / "run" / "mpa" / file)
    write_json(tmp_path / "run" / "summary.json", SUMMARY)
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path / "run"


# ---- for the hub ----


def test_a_folder_for_the_hub_is_the_runs_model_to_the_bit(run: Path, tmp_path: Path) -> None:
    run_export(run, tmp_path / "hub", format="hub")
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    first, second = (load_model(source, device="cpu") for source in (run, tmp_path / "hub"))
    states = [model.network.state_dict() for model in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    results = [model.predict(NOISE[0]) for model in (first, second)]
    assert np.array_equal(results[0].confidence, results[1].confidence)
    assert second.labels == first.labels
    held = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert LabelSpace.from_dict(held["labels"]) == SPACE
    assert held["model"]["name"] == "trans4pass_micro"


def test_adapters_are_merged(tmp_path: Path) -> None:
    """What is exported has plain names, needs no adapters to be opened, and computes the same."""
    model = {"_target_": "trans4pass.create_model", "name": "trans4pass_micro", "embed_dim": 16, "lora": {"rank": 2}}
    network = create_model("trans4pass_micro", 3, embed_dim=16, lora={"rank": 2}).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    checkpoint.save({"method": state, "model": model, "labels": SPACE.to_dict()}, tmp_path / "last.pt")
    run_export(tmp_path / "last.pt", tmp_path / "out.safetensors")
    opened = load_model(tmp_path / "out.safetensors", device="cpu").network
    assert not [key for key in opened.state_dict() if "parametrizations" in key]
    with torch.no_grad():
        assert torch.equal(opened(NOISE).logits, network(NOISE).logits)


def test_the_model_card_says_what_the_run_was(run: Path, tmp_path: Path) -> None:
    run_export(run / "mpa" / "best.pt", tmp_path / "hub", format="hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "trans4pass"
    for line in (
        "# my_run", "| source | 70.12 | 46.50 |", "| mpa | 68.00 | 55.25 |", "road, sky, car", "seed 7",
        "of step 150, picked by validation labels: target 56.79", "| source | Cityscapes (cityscapes) |",
        "| source | 400 | source 8 | network 5e-05 | supervised 1 |", "huggingface.co/nvidia/mit-b0",
    ):  # fmt: skip
        assert line in card, line
    assert "secret" not in card and "other.pth" not in card and "none 0" not in card


def test_the_toy_world_is_never_called_a_real_data_set(tmp_path: Path) -> None:
    dataset = {"_target_": "trans4pass.data.DensePASS", "root": str(tmp_path / "toy/DensePASS")}
    prepared = {"_target_": "trans4pass.toy_world.ensure", "root": str(tmp_path / "toy")}
    toy = "rendered toy world (trans4pass.toy_world), laid out as DensePASS"
    assert model_card.data_set(dataset, prepared) == toy
    assert model_card.data_set(dataset, {**prepared, "root": str(tmp_path / "other")}) == "DensePASS (DensePASS)"
    assert model_card.data_set(dataset, {"_target_": "mine.ensure", "root": "a"}) == "DensePASS (DensePASS)"
    write_json(tmp_path / "toy" / MARKER, {})
    assert model_card.data_set(dataset, {}) == toy
    assert model_card.data_set({"_target_": "mine.Streets"}, {}) == "Streets"


def test_the_licence_of_timms_weights_is_on_the_card() -> None:
    for licence, said in (("mit", "licence: mit."), (None, "licence: to be looked up.")):
        encoder = SimpleNamespace(name="resnet18", licence=licence)
        assert f"timm's weights of `resnet18`, {said}" in model_card.licence({"model": {"pretrained": True}}, encoder)


def test_a_checkpoint_without_its_run_has_a_card_without_figures(run: Path, tmp_path: Path) -> None:
    (run / "summary.json").unlink()
    run_export(run / "mpa", tmp_path / "hub", format="hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "road, sky, car" in card and "Figures" not in card and "{" not in card


# ---- the whole computation ----


def test_onnx_takes_bytes_of_any_size_and_says_what_it_is(onnx_of_any_size: Path) -> None:
    session, network = onnxruntime.InferenceSession(onnx_of_any_size), tiny()
    for height, width in ((64, 96), (33, 65), (70, 40)):
        image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
        (got,) = session.run(None, {"image": image.numpy()})
        with torch.no_grad():
            expected = network(image).logits.numpy()
        assert np.abs(got - expected).max() < 1e-4
    assert session.get_outputs()[0].name == "logits"
    said = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert said["classes"] == ["road", "sky", "car"]
    assert LabelSpace.from_dict(said["labels"]) == SPACE
    assert (said["size"], said["wrap"], said["result"]) == (None, False, "logits")
    versions = {entry.domain: entry.version for entry in onnx.load(onnx_of_any_size).opset_import}
    assert versions[""] == 20


def test_an_onnx_file_predicts_as_its_model_does(onnx_of_any_size: Path, tmp_path: Path) -> None:
    picture, network = NOISE[0].permute(1, 2, 0).numpy(), tiny()
    model = load_model(onnx_of_any_size, device="cpu")
    with torch.no_grad():
        expected = network(NOISE).logits.argmax(1)[0].numpy()
    assert len(np.unique(expected)) == 3
    assert (model.predict(picture).labels == expected).mean() > 0.999
    assert model.predict(picture, TTA((0.5, 1.0), flip=True)).labels.shape == (64, 96)
    Image.fromarray(picture).save(tmp_path / "a.png")
    settings = {"checkpoint": str(onnx_of_any_size), "input": str(tmp_path), "output": str(tmp_path / "out")}
    predict_images(settings, torch.device("cpu"), Interrupts())
    assert (np.asarray(Image.open(tmp_path / "out/labels/a.png")) == expected).mean() > 0.999
    with pytest.raises(ConfigError, match="export it with wrap=true"):
        load_model(onnx_of_any_size, wrap=True)
    with pytest.raises(ConfigError, match="align"):
        load_model(onnx_of_any_size, align=0.5)
    with pytest.raises(ConfigError, match="leave"):
        load_model(onnx_of_any_size, labels=label_space(["a", "b", "c"]))


def test_a_file_of_one_size_resizes_what_it_predicts(tmp_path: Path) -> None:
    path = onnx_file(tmp_path, dynamic=False)
    model = load_model(path, device="cpu")
    assert model.predict(np.zeros((100, 200, 3), np.uint8)).labels.shape == (100, 200)
    with pytest.raises(ConfigError, match=r"96x64 only: size=\[96,64\]"):
        OnnxNetwork(path)(torch.zeros(1, 3, 64, 128, dtype=torch.uint8))


def test_labels_are_the_classes_of_the_logits(tmp_path: Path) -> None:
    path = onnx_file(tmp_path, "labels")
    (got,) = onnxruntime.InferenceSession(path).run(None, {"image": NOISE.numpy()})
    assert (got.dtype, got.shape) == (np.uint8, (1, 64, 96))
    with torch.no_grad():
        assert (got == tiny()(NOISE).logits.argmax(1).numpy()).mean() > 0.999
    with pytest.raises(ConfigError, match="result=logits"):
        load_model(path)


def test_torch_export_is_exact(tmp_path: Path) -> None:
    export_graph(tmp_path / "model.pt2", tiny(), SPACE, "logits", (96, 64), True, None)
    extra = {"metadata.json": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    image = torch.randint(0, 256, (1, 3, 50, 77), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(program.module()(image), tiny()(image).logits)
    assert json.loads(extra["metadata.json"])["classes"] == ["road", "sky", "car"]


class Wrong(nn.Module):
    """Another result wherever it is traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.01 if torch.compiler.is_compiling() else x


@pytest.mark.parametrize("opset", [None, 20])
def test_an_export_that_computes_something_else_is_not_written(opset: int | None, tmp_path: Path) -> None:
    network = tiny()
    network.head.pred = nn.Sequential(network.head.pred, Wrong())
    with pytest.raises(WeightsError, match=r"is not written: on 96x64 and 129x81, .* 0\.001 is allowed"):
        export_graph(tmp_path / "model.x", network, SPACE, "logits", (96, 64), True, opset)
    assert not (tmp_path / "model.x").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"format": "onnx", "opset": 18}, "opset is 18: input should be greater than or equal to 19"),
        ({"format": "onnx"}, r"must end in \.onnx"),
        ({"format": "torch_export"}, r"must end in \.pt2"),
        ({"format": "safetensors"}, r"must end in \.safetensors"),
        ({"format": "hub"}, "must be a folder"),
        ({"format": "tflite"}, "format"),
        ({"format": "onnx", "result": "probabilities"}, "result"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], said: str, run: Path, tmp_path: Path) -> None:
    output = tmp_path / ("out.onnx" if settings["format"] == "hub" else "out")
    with pytest.raises(ConfigError, match=said):
        run_export(run, output, **settings)


def test_what_is_not_installed_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ConfigError, match=r"needs onnxscript: pip install 'trans4pass\[export\]'"):
        run_export(run, tmp_path / "a.onnx", format="onnx")


def test_the_configuration_has_the_defaults_of_the_settings() -> None:
    path = Path(__file__).parents[2] / "configs" / "export.yaml"
    config = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k not in ("defaults", "hydra", "device")}
    required = {"checkpoint": "a", "output": "b"}
    assert parse(ExportSettings, {**config, **required}, "") == parse(ExportSettings, required, "")


def test_damaged_and_foreign_onnx_files_are_named(tmp_path: Path, onnx_of_any_size: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(WeightsError, match=r"bad\.onnx cannot be read as ONNX"):
        load_model(tmp_path / "bad.onnx")
    foreign = onnx.load(onnx_of_any_size)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(WeightsError, match="does not say what its classes are"):
        load_model(tmp_path / "foreign.onnx")


# ---- real models ----


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_a_real_model(format: str, wrap: bool, run: Path, tmp_path: Path) -> None:
    """With `wrap` the deformable convolution is plain PyTorch's, traced operator by operator."""
    path = tmp_path / ("a.onnx" if format == "onnx" else "a.pt2")
    run_export(run, path, format=format, wrap=wrap, size=[96, 64])
    network = various_network(3, NOISE)
    if wrap:
        make_circular(network)
    with torch.no_grad():
        expected = network(NOISE).logits
        got = OnnxNetwork(path)(NOISE).logits if format == "onnx" else torch.export.load(path).module()(NOISE)
    assert (got - expected).abs().max() < 1e-4
    assert format != "onnx" or (OnnxNetwork(path).size == (96, 64)) == wrap


SIZES = {
    "swin": "windows",
    "sam2_hiera": "windows",
    "efficientnet_lite": "paddings of one side",
}  # of one size, and why
OF_ANY_SIZE = ("resnet", "convnext", "vit_patch14_dinov2")


def of_timm(family: str, **options: Any) -> Segmentor:
    torch.manual_seed(0)
    return create_model(f"timm/tiny_{family}", 3, head="linear", **options).eval()


@pytest.mark.parametrize("family", [*SIZES, *OF_ANY_SIZE])
def test_encoders_of_one_size_say_why(family: str) -> None:
    reason = graph.fixed_size(of_timm(family))
    assert SIZES[family] in reason if family in SIZES else not reason


@pytest.mark.slow
@pytest.mark.parametrize("opset", [None, 20])
@pytest.mark.parametrize("family", [*SIZES, *OF_ANY_SIZE, "swinv2", "caformer", "fastvit", "vit_patch16_dinov3"])
def test_timms_encoders(family: str, opset: int | None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Which the export itself holds against the model, on two sizes where any may come."""
    network = of_timm(family)
    rotary = family == "vit_patch16_dinov3" and opset is None
    if rotary:
        with pytest.raises(ConfigError, match="try dynamic=false"):
            export_graph(tmp_path / "a", network, SPACE, "logits", (96, 64), True, opset)
    export_graph(tmp_path / "a", network, SPACE, "logits", (96, 64), not rotary, opset)
    tried = "96x64 and 129x81" if not graph.fixed_size(network) and not rotary else "96x64 and 96x64"
    assert f"tried on {tried}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.parametrize("opset", [None, 20])
def test_edges_and_ecrm_beside_a_head(opset: int | None, tmp_path: Path) -> None:
    network = of_timm("resnet", edges={"width": 64}, ecrm={"width": 16, "attention_width": 8, "bank_size": 2})
    network.train()(torch.rand(2, 3, 64, 64))  # there is something to remember
    export_graph(tmp_path / "a", network, SPACE, "logits", (96, 64), True, opset)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [None, 20])
def test_danets_attention_and_dilated_encoder(opset: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_model("danet_resnet50", 3)
    export_graph(tmp_path / "a", network, SPACE, "logits", (96, 64), True, opset)


def test_ecrm_s_memory_comes_along(tmp_path: Path) -> None:
    """How full it is decides about the shapes inside."""
    network = tiny_segmentor(3)
    network.train()(torch.rand(2, 3, 64, 64))
    with torch.no_grad():
        expected = network.eval()(NOISE).logits
        empty = tiny_segmentor(3).eval()(NOISE).logits
    export_graph(tmp_path / "a.pt2", network, SPACE, "logits", (96, 64), True, None)
    got = torch.export.load(tmp_path / "a.pt2").module()(NOISE)
    assert (got - expected).abs().max() < 1e-5
    assert (got - empty).abs().max() > 1e-3


def test_why_a_size_is_fixed_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = tiny()
    network.head.pool = nn.AdaptiveAvgPool2d(2)
    with caplog.at_level("INFO"):
        export_graph(tmp_path / "a.pt2", network, SPACE, "logits", (96, 64), True, None)
    assert "only images of 96x64: pooling over a fixed number of cells" in caplog.text
