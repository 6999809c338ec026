import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trans4pass.errors import ConfigError
from trans4pass.models.heads.coarse_to_fine import CoarseToFineHead, ReverseEdgeAttention, ReverseEdgeHead

CHANNELS = (8, 12, 20, 24)


def pyramid(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, dim, *size, generator=generator, dtype=torch.float64) for dim, size in zip(CHANNELS, sizes)]


ODD = ((13, 19), (7, 10), (4, 5), (2, 3))
DILATED = ((13, 19), (7, 10), (7, 10), (7, 10))


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


@pytest.mark.parametrize("sizes", [ODD, DILATED], ids=["pyramid", "dilated"])
def test_head_goes_from_coarse_to_fine(sizes) -> None:
    torch.manual_seed(0)
    head, (x4, x8, x16, x32) = CoarseToFineHead(CHANNELS, 5, width=32).double(), pyramid(*sizes)

    def up(x, like):
        return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)

    f16 = F.relu(up(head.laterals[3](x32), x16) + head.laterals[2](x16))
    f8 = F.relu(up(head.between[1](f16), x8) + head.laterals[1](x8))
    f4 = F.relu(up(head.between[0](f8), x4) + head.laterals[0](x4))
    edges = {"edge1": head.edges[0](f4, x4), "edge2": head.edges[1](f8, x8), "edge3": head.edges[2](f16, x16)}
    expected = F.relu(F.group_norm(head.out[0](f4), 32, head.out[1].weight, head.out[1].bias))

    features, logits, aux = head([x4, x8, x16, x32])
    assert (features - expected).abs().max() < 1e-10
    assert (logits - head.pred(expected)).abs().max() < 1e-10
    assert aux.keys() == edges.keys()
    assert max((aux[name] - edges[name]).abs().max() for name in edges) < 1e-10
    assert (head.num_classes, head.feature_dim) == (5, 32)


def test_a_single_head_is_on_the_finest_level() -> None:
    aux = ReverseEdgeHead(CHANNELS, width=16, levels=1).double()(pyramid(*ODD))
    assert {name: tuple(x.shape) for name, x in aux.items()} == {"edge1": (2, 1, 13, 19)}


@pytest.mark.parametrize("levels", [1, 3])
def test_gradient_reaches_every_parameter(levels: int) -> None:
    head = CoarseToFineHead(CHANNELS, 5, width=64, levels=levels).double()
    _, logits, aux = head(pyramid(*ODD))
    sum(x.square().sum() for x in (logits, *aux.values())).backward()
    assert all(parameter.grad.any() for parameter in head.parameters())

    beside = ReverseEdgeHead(CHANNELS, width=16, levels=levels).double()
    sum(x.square().sum() for x in beside(pyramid(*ODD)).values()).backward()
    assert all(parameter.grad.any() for parameter in beside.parameters())


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 to 3"):
        ReverseEdgeHead(CHANNELS, levels=4)
    with pytest.raises(ConfigError, match="40"):
        CoarseToFineHead(CHANNELS, 5, width=40)
