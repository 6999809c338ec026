"""Equality with the official models, from figures: nothing is downloaded."""

import re

import numpy as np
import pytest
import torch

from tests.models.golden import FOLDER, official_input, official_shapes, official_state
from trans4pass import create_model
from trans4pass.models.encoders.mix_transformer import MixTransformer

# ours, the golden arrays' number of classes, the official names
OFFICIAL = [
    ("trans4pass_tiny", 19, "keys_tiny_19.json"),
    ("trans4pass_plus_tiny", 13, "keys_plus_tiny_13.json"),
]


@pytest.mark.parametrize("backend", ["native", "torchvision"])
@pytest.mark.parametrize(("name", "classes", "keys"), OFFICIAL)
def test_every_map_equals_the_official_model(name: str, classes: int, keys: str, backend: str, tmp_path) -> None:
    torch.save(official_state(keys, classes), tmp_path / "official.pth")
    model = create_model(name, classes, tmp_path / "official.pth", deform_backend=backend).eval()
    with torch.no_grad():
        stages = model.encoder(official_input())
        features = model.head.decode(stages)
        output = model.forward_normalised(official_input())
    golden = np.load(FOLDER / f"{name}_64x128.npz")
    maps = {"logits": output.logits} | {f"stage{i}": m[:, ::8] for i, m in enumerate(stages, start=1)}
    maps |= {f"feature{i}": m[:, ::8] for i, m in enumerate(features, start=1)}
    assert maps.keys() == set(golden.files)
    for key, value in maps.items():
        assert np.abs(value.numpy() - golden[key]).max() < 1e-4, key
    assert torch.allclose(output.features, sum(features), atol=1e-4)


@pytest.mark.parametrize(("name", "classes", "keys"), OFFICIAL)
def test_names_and_shapes_are_the_official_ones(name: str, classes: int, keys: str) -> None:
    state = create_model(name, classes).state_dict()
    assert {re.sub("^head", "dede_head", key): tuple(v.shape) for key, v in state.items()} == official_shapes(keys)


# Two independent counts: encoder, whole (19 classes, 128 wide).
COUNTS = {
    "trans4pass_tiny": (13_173_180, 15_274_427),
    "trans4pass_small": (24_218_044, 26_319_291),
    "trans4pass_plus_tiny": (13_173_180, 15_217_339),
    "trans4pass_plus_small": (24_218_044, 26_262_203),
}


def test_segformers_larger_encoders_have_their_published_size() -> None:
    """In millions, table 1 of arXiv 2105.15203; without the deformable embedding."""
    with torch.device("meta"):
        encoders = {size: MixTransformer(size, deform=(False,) * 4) for size in ("b3", "b4", "b5")}
    counts = {size: sum(p.numel() for p in encoder.parameters()) / 1e6 for size, encoder in encoders.items()}
    assert counts == {
        "b3": pytest.approx(44.0, abs=0.1),
        "b4": pytest.approx(60.8, abs=0.1),
        "b5": pytest.approx(81.4, abs=0.1),
    }


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    model = create_model(name, 19)
    counts = [sum(p.numel() for p in module.parameters()) for module in (model.encoder, model)]
    assert tuple(counts) == COUNTS[name]
