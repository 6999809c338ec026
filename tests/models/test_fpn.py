import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.pyramids import CHANNELS, DILATED, ODD, pyramid
from trans4pass.errors import ConfigError
from trans4pass.models.heads.fpn import FPNHead


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    groups = x.view(len(x), 8, -1)
    centred = groups - groups.mean(2, keepdim=True)
    normal = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).view_as(x)
    return normal * weight[:, None, None] + bias[:, None, None]


def decode(head: FPNHead, maps: list[Tensor]) -> Tensor:
    """The text of the paper's figure, line by line."""

    def block(layer, x):
        return F.relu(group_norm(layer[0](x), layer[1].weight, layer[1].bias))

    def up(x, like):
        return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)

    x4, x8, x16, x32 = maps
    r = block(head.conv_in, up(x32, x16))
    r = block(head.convs[2], head.adapters[2](x16) + r)
    r = block(head.convs[1], head.adapters[1](x8) + up(r, x8))
    return block(head.convs[0], head.adapters[0](x4) + up(r, x4))


@pytest.mark.parametrize("sizes", [ODD, DILATED], ids=["pyramid", "dilated"])
def test_head_is_the_formula(sizes) -> None:
    torch.manual_seed(0)
    head, maps = FPNHead(CHANNELS, 5, hidden=32).double(), pyramid(*sizes)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    features, logits, aux = head(maps)
    expected = decode(head, maps)
    assert features.shape == (2, 16, 13, 19)
    assert (features - expected).abs().max() < 1e-10
    assert (logits - head.pred(expected)).abs().max() < 1e-10
    assert aux == {}
    assert (head.num_classes, head.feature_dim) == (5, 16)


def test_widths_are_aots() -> None:
    head = FPNHead(CHANNELS, 5)
    assert [conv.out_channels for conv in head.adapters] == [128, 256, 256]
    assert [layer[0].out_channels for layer in head.convs] == [128, 128, 256]
    assert {layer[1].num_groups for layer in (head.conv_in, *head.convs)} == {8}


def test_gradient_reaches_every_parameter() -> None:
    head = FPNHead(CHANNELS, 5, hidden=32).double()
    head(pyramid(*ODD)).logits.square().sum().backward()
    assert all(parameter.grad.any() for parameter in head.parameters())


def test_an_unfit_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="40"):
        FPNHead(CHANNELS, 5, hidden=40)
