"""What the tests of methods stand on: the only place that knows how a method is built and where its parts are."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import slow
from trans4pass.losses import CrossEntropy
from trans4pass.methods import Adaptation, Method, PrototypeBank, Supervised
from trans4pass.models import SegOutput

K, E = 3, 4  # classes, feature channels
GRAY_VALUES = 24  # one for each pixel of `BATCH`


class Lookup(nn.Module):
    """A network of tables: each output has at a pixel of gray value v the row v of a parameter.

    So an output's gradient at a pixel is that of a row, and is known by hand.

    Args:
        stride: of the features.
        aux: whether it has auxiliary class maps, at half the size.
        edges: whether it tells edges, at full and at half the size.
        wrap: whether its images are full panoramas.
        classes: of the logits.
    """

    def __init__(self, stride: int = 1, aux: bool = False, edges: bool = False, wrap: bool = False, classes: int = K):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        widths = {"logits": classes, "features": E}
        widths |= {"aux": classes} if aux else {}
        widths |= {"fine": 1, "coarse": 1} if edges else {}
        for name, width in widths.items():
            table = 2 * torch.randn(GRAY_VALUES, width, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(table))
        self.feature_stride, self.has_edges, self.wrap = stride, edges, wrap
        self.head = SimpleNamespace(num_classes=classes, feature_dim=E)

    def forward(self, images: Tensor) -> SegOutput:
        aux = {"pixels": seen(self.aux, images, 2)} if hasattr(self, "aux") else {}
        if self.has_edges:
            aux = {"edge1": seen(self.fine, images), "edge2": seen(self.coarse, images, 2)} | aux
        return SegOutput(seen(self.logits, images), seen(self.features, images, self.feature_stride), aux)


class Convolution(nn.Module):
    """A network that has to see the whole image, and gives twice the features in training."""

    def __init__(self, wrap: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, E, 3, stride=4, padding=1, dtype=torch.float64)
        self.classify = nn.Conv2d(E, K, 1, dtype=torch.float64)
        self.feature_stride, self.has_edges, self.wrap = 4, False, wrap
        self.head = SimpleNamespace(num_classes=K, feature_dim=E)

    def forward(self, images: Tensor) -> SegOutput:
        images = images.double() / 255 if images.dtype == torch.uint8 else images.double()
        features = self.body(images)
        logits = F.interpolate(self.classify(features), images.shape[2:], mode="bilinear")
        return SegOutput(logits, (2 if self.training else 1) * features, {})


def seen(table: Tensor, images: Tensor, stride: int = 1) -> Tensor:
    """The table's rows as a map (B,C,h,w): that of a pixel's gray value, at every `stride`th pixel."""
    return table[images[:, 0, ::stride, ::stride].long()].permute(0, 3, 1, 2)


def images(first: int) -> Tensor:
    """Two gray images (2,3,2,3), each pixel of a value of its own."""
    return torch.arange(first, first + 12, dtype=torch.uint8).view(2, 1, 2, 3).expand(-1, 3, -1, -1)


BATCH = {
    "source": {
        "image": images(0),
        "label": torch.tensor([[[0, 1, 255], [2, 2, 0]], [[1, 1, 1], [255, 0, 2]]]),
        "name": ["a", "b"],
    },
    "target": {
        "image": images(12),
        "label": torch.tensor([[[255, 255, 1], [0, 255, 0]], [[1, 2, 255], [0, 0, 1]]]),
        "name": ["c", "d"],
    },
}  # fmt: skip
PROTOTYPES = torch.tensor([[1.0, -2.0, 0.5, 3.0], [torch.nan] * E, [-1.0, 2.5, 0.0, 1.0]], dtype=torch.float64)


def random_batch() -> dict[str, dict[str, Any]]:
    """Two images and labels of each domain for `Convolution`."""
    generator = torch.Generator().manual_seed(3)
    return {
        domain: {
            "image": torch.randint(0, 256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8),
            "label": torch.randint(0, K, (2, 64, 64), generator=generator),
            "name": ["a", "b"],
        }
        for domain in ("source", "target")
    }


def supervised(network: nn.Module | None = None, loss: nn.Module | None = None, **settings: Any) -> Method:
    return Supervised(network or Lookup(), loss or CrossEntropy(), **settings)


def adaptation(
    network: nn.Module | None = None, loss: nn.Module | None = None, real_discriminator: bool = False, **settings: Any
) -> Method:
    """An adaptation in float64 whose bank knows all classes but 1.

    Its discriminator looks at single pixels, unless it is to be the real one, which needs 32 x 32.
    """
    method = Adaptation(network or Lookup(), loss or CrossEntropy(), **settings).double()
    if method.discriminator is not None and not real_discriminator:
        torch.manual_seed(1)
        method.discriminator = nn.Conv2d(K, 1, 1, dtype=torch.float64)
    if method.bank is not None:
        method.bank.prototypes.copy_(PROTOTYPES[: len(method.bank.prototypes)])
    return method


def bank(method: Method) -> PrototypeBank:
    return method.bank


def discriminator(method: Method) -> nn.Module | None:
    return method.discriminator


def parameters(method: Method) -> dict[str, nn.Parameter]:
    """All of them, as `network.logits` or `discriminator.weight`."""
    parts = {"network": method.network, "discriminator": getattr(method, "discriminator", None)}
    named = {f"{part}.{k}": v for part, module in parts.items() if module for k, v in module.named_parameters()}
    assert {id(parameter) for parameter in named.values()} == {id(parameter) for parameter in method.parameters()}
    return named


def losses(method: Method, phase: str, batch: Mapping = BATCH) -> dict[str, Tensor]:
    return method(phase, batch, method.normalisers(phase, batch))[0]


def values(method: Method, phase: str, batch: Mapping = BATCH) -> dict[str, Tensor]:
    return method(phase, batch, method.normalisers(phase, batch))[1]


Numbers = dict[str, Tensor]  # parameters' values by name
Formula = Callable[[Numbers, Numbers], float]


def assert_term(method: Method, phase: str, term: str, formula: Formula, batch: Mapping = BATCH) -> None:
    """The term has the formula's value, and its derivative by every number of every parameter of the method.

    `formula` gets the method's parameters by name twice: those that the derivative is taken by, and the same as they
    stand, for whatever must not pass a gradient on.
    """
    named = parameters(method)
    still = {name: parameter.detach().clone() for name, parameter in named.items()}
    loss = losses(method, phase, batch)[term]
    assert loss.item() == slow.approx(formula(still, still))
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    for name, gradient in zip(named, gradients, strict=True):
        expected = slow.gradient(lambda x, name=name: formula({**still, name: x}, still), still[name])
        actual = torch.zeros_like(expected) if gradient is None else gradient
        assert (actual - expected).abs().max() < 1e-7, name
