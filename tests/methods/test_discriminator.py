from itertools import product

import torch
from torch import Tensor, nn

from tests import slow
from trans4pass.methods import Discriminator

from .build import Convolution, K, adaptation, discriminator


def convolved(x: Tensor, layer: nn.Conv2d, leak: float) -> Tensor:
    """A 4x4 convolution of stride 2 and padding 1, and a leaky ReLU, number by number."""
    x, weight = torch.nn.functional.pad(x, (1, 1, 1, 1)), layer.weight
    result = torch.zeros(len(x), len(weight), x.shape[2] // 2 - 1, x.shape[3] // 2 - 1, dtype=torch.float64)
    for n, out, i, j in product(*map(range, result.shape)):
        window = x[n, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
        value = (window * weight[out]).sum().item() + layer.bias[out].item()
        result[n, out, i, j] = value if value > 0 else leak * value
    return result


def test_five_convolutions_with_leaks_between_them() -> None:
    torch.manual_seed(0)
    score = Discriminator(2, width=1).double()
    for parameter in score.parameters():
        parameter.data.normal_()
    x = torch.rand(1, 2, 32, 64, dtype=torch.float64)
    convolutions = [layer for layer in score if isinstance(layer, nn.Conv2d)]
    expected = x
    with torch.no_grad():
        for number, layer in enumerate(convolutions):
            expected = convolved(expected, layer, 0.2 if number < 4 else 1.0)
    actual = score(x)
    assert actual.shape == (1, 1, 1, 2)
    assert [value.item() for value in actual.flatten()] == [slow.approx(value) for value in expected.flatten()]


def test_it_has_the_published_widths() -> None:
    layers = [layer for layer in Discriminator(K) if isinstance(layer, nn.Conv2d)]
    assert [layer.in_channels for layer in layers] == [K, 64, 128, 256, 512]
    assert [layer.out_channels for layer in layers] == [64, 128, 256, 512, 1]


def test_a_panoramas_discriminator_goes_round() -> None:
    torch.manual_seed(0)
    maps = torch.rand(1, K, 32, 96, dtype=torch.float64)
    for wrap in (False, True):
        score = discriminator(adaptation(Convolution(wrap), real_discriminator=True, adversarial=1.0))
        rolled = score(maps.roll(32, 3)).roll(-1, 3)
        assert torch.allclose(rolled, score(maps)) == wrap
