import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.pyramids import CHANNELS, DILATED, ODD, pyramid
from trans4pass.errors import ConfigError
from trans4pass.models.heads.coarse_to_fine import CoarseToFineHead, ReverseEdgeAttention, ReverseEdgeHead


def correlate(x: Tensor, weight: Tensor) -> Tensor:
    """One-channel convolution of [C, H, W] without bias, pixel by pixel."""
    reach = weight.shape[-1] // 2
    padded = F.pad(x, (reach,) * 4)
    rows = [
        [(padded[:, i : i + 2 * reach + 1, j : j + 2 * reach + 1] * weight).sum() for j in range(x.shape[2])]
        for i in range(x.shape[1])
    ]
    return torch.stack([torch.stack(row) for row in rows])


def test_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    module = ReverseEdgeAttention(6).double()
    fused, level = torch.randn(2, 6, 5, 7).double(), torch.randn(2, 4, 5, 7).double()
    logits = module(fused, level)
    assert logits.shape == (2, 1, 5, 7)
    for n in range(2):
        summary = torch.stack((sum(level[n]) / 4, torch.stack([*level[n]]).max(0).values))
        a = 1 - 1 / (1 + torch.exp(-correlate(summary, module.attend.weight[0])))
        assert (logits[n, 0] - correlate(fused[n] * a, module.pred.weight[0])).abs().max() < 1e-10
    assert module.attend.bias is None and module.pred.bias is None


def normalised(layer: nn.Module, x: Tensor) -> Tensor:
    """A convolution without bias and GroupNorm with 32 groups, of which the module only lends its weights."""
    conv, norm = layer
    assert conv.bias is None
    x = F.conv2d(x, conv.weight, padding=conv.weight.shape[-1] // 2)
    groups = x.view(len(x), 32, -1)
    centred = groups - groups.mean(2, keepdim=True)
    groups = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
    return groups.view_as(x) * norm.weight[:, None, None] + norm.bias[:, None, None]


def fused(head: ReverseEdgeHead, maps: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The finest map behind its convolution; the sums and the levels' convolved maps, finest first."""
    levels = [normalised(layer, x) for layer, x in zip(head.laterals, maps)]
    x, sums = levels[-1], []
    for s in (2, 1, 0):
        up = F.interpolate(x, levels[s].shape[-2:], mode="bilinear", align_corners=False)
        sums.insert(0, F.relu(up + levels[s]))
        x = sums[0] if isinstance(head.sums[s], nn.Identity) else normalised(head.sums[s], sums[0])
    return F.relu(x), sums, levels


def random_weights(head: nn.Module) -> nn.Module:
    """In float64, with GroupNorm's scale and shift away from 1 and 0."""
    torch.manual_seed(0)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return head.double()


@pytest.mark.parametrize("sizes", [ODD, DILATED], ids=["pyramid", "dilated"])
def test_head_goes_from_coarse_to_fine(sizes) -> None:
    """Each edge head reads a sum and its level's convolved map, not the encoder's."""
    head, maps = random_weights(CoarseToFineHead(CHANNELS, 5, width=64)), pyramid(*sizes)
    finest, sums, levels = fused(head, maps)
    expected = F.relu(normalised(head.out[:2], finest))
    edges = {f"edge{s + 1}": head.edges[s](sums[s], levels[s]) for s in range(3)}

    features, logits, aux = head(maps)
    assert (features - expected).abs().max() < 1e-10
    assert (logits - head.pred(expected)).abs().max() < 1e-10
    assert aux.keys() == edges.keys()
    assert max((aux[name] - edges[name]).abs().max() for name in edges) < 1e-10
    assert (head.num_classes, head.feature_dim) == (5, 64)


@pytest.mark.parametrize("make", [ReverseEdgeHead, lambda *args, **settings: CoarseToFineHead(*args, 5, **settings)])
def test_a_single_edge_head_reads_the_finest_map_behind_its_convolution(make) -> None:
    head, maps = random_weights(make(CHANNELS, width=64, levels=1)), pyramid(*ODD)
    finest, sums, levels = fused(head, maps)
    assert (finest - sums[0]).abs().max() > 0.1
    _, found = head.fuse(maps)
    assert found.keys() == {"edge1"}
    assert (found["edge1"] - head.edges[0](finest, levels[0])).abs().max() < 1e-10


def test_edges_beside_another_head_read_the_same_sums() -> None:
    head, maps = random_weights(ReverseEdgeHead(CHANNELS, width=64, levels=2)), pyramid(*ODD)
    _, sums, levels = fused(head, maps)
    found = head(maps)
    assert found.keys() == {"edge1", "edge2"}
    for s in range(2):
        assert (found[f"edge{s + 1}"] - head.edges[s](sums[s], levels[s])).abs().max() < 1e-10


@pytest.mark.parametrize("levels", [1, 3])
def test_gradient_reaches_every_parameter(levels: int) -> None:
    head = CoarseToFineHead(CHANNELS, 5, width=64, levels=levels).double()
    _, logits, aux = head(pyramid(*ODD))
    sum(x.square().sum() for x in (logits, *aux.values())).backward()
    assert all(parameter.grad.any() for parameter in head.parameters())

    beside = ReverseEdgeHead(CHANNELS, width=64, levels=levels).double()
    sum(x.square().sum() for x in beside(pyramid(*ODD)).values()).backward()
    assert all(parameter.grad.any() for parameter in beside.parameters())


@pytest.mark.parametrize("width", [32, 40])
def test_bad_settings_are_refused(width: int) -> None:
    with pytest.raises(ConfigError, match="1 to 3"):
        ReverseEdgeHead(CHANNELS, levels=4)
    # With 32 channels each is a group of its own, and one of a single pixel cannot be normalised.
    with pytest.raises(ConfigError, match=f"{width}"):
        ReverseEdgeHead(CHANNELS, width=width)
    with pytest.raises(ConfigError, match=f"{width}"):
        CoarseToFineHead(CHANNELS, 5, width=width)


def test_a_coarsest_map_of_one_pixel_trains() -> None:
    maps = [x[:1] for x in pyramid((8, 8), (4, 4), (2, 2), (1, 1))]
    assert CoarseToFineHead(CHANNELS, 5, width=64).double()(maps).logits.isfinite().all()
