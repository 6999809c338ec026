"""The contract that every combination of encoder, head, context and edges keeps.

Every head on every tiny encoder, with the pairs of (ecrm, edges) in turn, and all products in the slow tests; named
models from their settings, saved and loaded.
"""

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.models import tiny_encoders
from trans4pass import create_model
from trans4pass.errors import ConfigError
from trans4pass.models import HEADS, Segmentor
from trans4pass.models.ecrm import ECRM
from trans4pass.models.encoders.mix_transformer import MIX_SIZES, MixSize, MixTransformer
from trans4pass.models.encoders.timm import TimmEncoder
from trans4pass.models.heads.coarse_to_fine import ReverseEdgeHead
from trans4pass.models.heads.upernet import POOLS, CellPool

K = 5
SMALL = {"fpn": {"hidden": 16}, "upernet": {"width": 16}, "coarse_to_fine": {"width": 64}}
SMALL |= {name: {"embed_dim": 16} for name in ("dmlp", "dmlp_v2", "segformer")}
TINY = [*tiny_encoders.NAMES, "resnet_dilated", "mix_transformer"]
PAIRS = list(itertools.product((False, True), repeat=2))  # of ecrm and edges


def tiny_encoder(name: str, monkeypatch: pytest.MonkeyPatch) -> TimmEncoder | MixTransformer:
    """With weights that hide nothing: in many architectures gates and scales start at zero."""
    monkeypatch.setitem(MIX_SIZES, "nano", MixSize((8, 16, 20, 32), (1, 1, 1, 1)))
    torch.manual_seed(0)
    if name == "mix_transformer":
        encoder = MixTransformer("nano", drop_path=0.0)
    else:
        family, dilated = name.removesuffix("_dilated"), name.endswith("_dilated")
        encoder = TimmEncoder(f"tiny_{family}", output_stride=8 if dilated else None, drop_path=0.0)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return encoder


def check_contract(encoder: TimmEncoder | MixTransformer, head: str, ecrm: bool, edges: bool) -> None:
    """Shapes at an odd size, finite maps, and a gradient in every parameter that is to be trained."""
    encoder.zero_grad()
    encoder.requires_grad_(True)
    context = ECRM(encoder.channels, K, width=16, attention_width=8, bank_size=2) if ecrm else None
    edge_head = ReverseEdgeHead(encoder.channels, width=64) if edges else None
    channels = encoder.channels if context is None else context.channels
    model = Segmentor(encoder, HEADS[head](channels, K, **SMALL.get(head, {})), context, edge_head)
    output = model(torch.randint(0, 256, (2, 3, 65, 47), dtype=torch.uint8))
    assert output.logits.shape == (2, K, 65, 47) and output.logits.isfinite().all()
    assert output.features.shape[:2] == (2, model.feature_dim)
    assert output.features.shape[2:] == tuple(-(-side // model.feature_stride) for side in (65, 47))
    assert any(name.startswith("edge") for name in output.aux) == model.has_edges
    assert ("coarse" in output.aux) == ecrm
    maps = (output.logits, *output.aux.values())
    sum(map_.square().mean() for map_ in maps).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad != (p.grad is not None)]
    frozen = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.startswith("pyramid.") for name in frozen) and (not frozen or head == "danet"), frozen


@pytest.mark.parametrize("name", TINY)
def test_every_head_fits_every_encoder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny_encoder(name, monkeypatch)
    first = TINY.index(name)
    for number, head in enumerate(HEADS):
        ecrm, edges = PAIRS[(first + number) % len(PAIRS)]
        check_contract(encoder, head, ecrm, edges and head != "coarse_to_fine")


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_every_combination(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny_encoder(name, monkeypatch)
    for head, (ecrm, edges) in itertools.product(HEADS, PAIRS):
        check_contract(encoder, head, ecrm, edges and head != "coarse_to_fine")


COMBINATIONS = [
    ("trans4pass_micro", "dmlp", False, True),
    ("trans4pass_micro", "dmlp_v2", True, False),
    ("trans4pass_micro", "danet", False, False),
    ("trans4pass_micro", "fpn", True, True),
    ("trans4pass_micro", "coarse_to_fine", False, False),
    ("danet_resnet50", "danet", True, True),
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
    """As above, from settings; batch 1 in eval, save and load."""
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


@pytest.mark.parametrize("size", [(7, 11), (1, 1), (6, 4), (2, 40)])
def test_cells_are_those_of_adaptive_pooling(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    for cells in POOLS:
        assert torch.allclose(CellPool(cells)(x), nn.AdaptiveAvgPool2d(cells)(x), atol=1e-6)
