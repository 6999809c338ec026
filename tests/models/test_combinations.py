"""The contract that every combination of encoder, head, context and edges keeps, pairwise rather than all products."""

from pathlib import Path

import pytest
import torch

from trans4pass import create_model
from trans4pass.errors import ConfigError
from trans4pass.models import Segmentor

K = 5
# Every pair of (encoder, head), (encoder, ecrm), (encoder, edges), (head, ecrm), (head, edges), (ecrm, edges) is here.
COMBINATIONS = [
    ("trans4pass_micro", "dmlp", False, True),
    ("trans4pass_micro", "dmlp_v2", True, False),
    ("trans4pass_micro", "danet", False, False),
    ("trans4pass_micro", "fpn", True, True),
    ("trans4pass_micro", "coarse_to_fine", False, False),
    ("danet_resnet50", "dmlp", True, False),
    ("danet_resnet50", "dmlp_v2", False, True),
    ("danet_resnet50", "danet", True, True),
    ("danet_resnet50", "fpn", False, False),
    ("danet_resnet50", "coarse_to_fine", True, False),
]


def make(name: str, head: str, ecrm: bool, edges: bool) -> Segmentor:
    torch.manual_seed(0)
    return create_model(name, K, head=head, ecrm=ecrm, edges=edges, embed_dim=16, **small(name))


def small(name: str) -> dict:
    return {} if "resnet" in name else {"drop_path": 0.0}


@pytest.fixture(params=COMBINATIONS, ids=lambda c: "-".join(map(str, c)))
def combination(request: pytest.FixtureRequest) -> tuple[str, str, bool, bool]:
    return request.param


def test_contract(combination: tuple[str, str, bool, bool], tmp_path: Path) -> None:
    """Shapes at odd sizes, batch 1 in eval, a gradient in every parameter, save and load."""
    model = make(*combination)
    output = model(torch.rand(2, 3, 65, 47))
    assert output.logits.shape == (2, K, 65, 47)
    assert output.features.shape[:2] == (2, model.head.feature_dim)
    assert output.features.shape[2:] == tuple(-(-side // model.feature_stride) for side in (65, 47))
    assert any(name.startswith("edge") for name in output.aux) == model.has_edges
    assert ("coarse" in output.aux) == combination[2]
    sum(map_.square().mean() for map_ in (output.logits, *output.aux.values())).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = make(*combination)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    image = torch.rand(1, 3, 33, 70)
    with torch.no_grad():
        assert torch.equal(model.eval()(image).logits, other.eval()(image).logits)


def test_a_head_that_tells_edges_takes_no_second_edges() -> None:
    with pytest.raises(ConfigError, match="edges=false"):
        make("trans4pass_micro", "coarse_to_fine", False, True)


def test_pairs_are_covered() -> None:
    heads = {head for _, head, _, _ in COMBINATIONS}
    for name in ("trans4pass_micro", "danet_resnet50"):
        assert {head for n, head, _, _ in COMBINATIONS if n == name} == heads
        assert {(n, e) for n, _, e, _ in COMBINATIONS if n == name} == {(name, True), (name, False)}
        assert {(n, e) for n, _, _, e in COMBINATIONS if n == name} == {(name, True), (name, False)}
    assert {(e, g) for _, _, e, g in COMBINATIONS} == {(a, b) for a in (True, False) for b in (True, False)}


@pytest.mark.slow
@pytest.mark.parametrize("combination", [COMBINATIONS[3], COMBINATIONS[2]], ids=["fpn-ecrm-edges", "danet"])
def test_compiled_equals_eager(combination: tuple[str, str, bool, bool]) -> None:
    model = make(*combination).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        eager = model(image)
        compiled = torch.compile(model)(image)
    assert torch.allclose(eager.logits, compiled.logits, atol=1e-4)
    assert eager.aux.keys() == compiled.aux.keys()
