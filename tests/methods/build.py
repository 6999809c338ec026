"""What the tests of methods stand on: the only place that knows how a method is built and where its parts are."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import slow
from trans4pass.losses import CrossEntropy
from trans4pass.methods import Adversarial, PrototypeBank, PrototypeDistillation, Segmentation, SumOfTerms, Term
from trans4pass.models import SegOutput

K, E = 3, 4  # classes, feature channels
GRAY_VALUES = 24  # one for each pixel of `BATCH`


class Lookup(nn.Module):
    """A network of tables: each output has at a pixel of gray value v the row v of a parameter.

    So an output's gradient at a pixel is that of a row, and is known by hand.

    Args:
        stride: of the features.
        aux: whether it has auxiliary class maps, at half the size.
        edges: whether it has edge maps, at full and at half the size.
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
        self.num_classes, self.feature_dim = classes, E

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
        self.num_classes, self.feature_dim = K, E

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


def supervised(network: Any = None, loss: Any = None, **settings: Any) -> SumOfTerms:
    """Supervision of the source by its labels."""
    network = network or Lookup()
    return SumOfTerms(network, {"supervised": Segmentation(network, loss or CrossEntropy(), **settings)})


DISTILLATION = ("flavour", "momentum", "update_every", "temperature", "alpha", "bank_scales")


def adaptation(
    network: Any = None,
    loss: Any = None,
    real_discriminator: bool = False,
    adversarial: float = 0,
    self_training: float = 0,
    prototypes: float = 0,
    **settings: Any,
) -> SumOfTerms:
    """Terms of these weights, as the stages' YAML files have them, beside `supervised`; in float64.

    Its bank knows all classes but 1. Its discriminator looks at single pixels, unless it is to be the real one, which
    needs 32 x 32. `settings` are those of the distillation, and of whatever learns labels.
    """
    network = network or Lookup()
    distillation = {name: settings.pop(name) for name in DISTILLATION if name in settings}
    terms: dict[str, Term] = {"supervised": Segmentation(network, loss or CrossEntropy(), **settings)}
    if self_training:
        terms["self_training"] = Segmentation(network, CrossEntropy(), "target", self_training, **settings)
    if adversarial:
        terms["adversarial"] = Adversarial(network, adversarial)
    if prototypes:
        terms["prototypes"] = PrototypeDistillation(network, prototypes, **distillation)
    method = SumOfTerms(network, terms).double()
    if adversarial and not real_discriminator:
        torch.manual_seed(1)
        method.terms["adversarial"].discriminator = nn.Conv2d(K, 1, 1, dtype=torch.float64)
    if prototypes:
        bank(method).prototypes.copy_(PROTOTYPES[: network.num_classes])
    return method


def bank(method: SumOfTerms) -> PrototypeBank:
    return method.terms["prototypes"].bank


def discriminator(method: SumOfTerms) -> nn.Module:
    return method.terms["adversarial"].discriminator


def parameters(method: SumOfTerms) -> dict[str, nn.Parameter]:
    """All of them, as `network.logits` or `discriminator.weight`."""
    named = {name.removeprefix("terms.adversarial."): value for name, value in method.named_parameters()}
    assert len(named) == len(list(method.parameters()))
    return named


def losses(method: SumOfTerms, phase: str, batch: Mapping = BATCH) -> dict[str, Tensor]:
    return method(phase, batch, method.normalisers(phase, batch)).losses


def values(method: SumOfTerms, phase: str, batch: Mapping = BATCH) -> dict[str, Tensor]:
    return method(phase, batch, method.normalisers(phase, batch)).values


Numbers = dict[str, Tensor]  # parameters' values by name
Formula = Callable[[Numbers, Numbers], float]


def assert_term(method: SumOfTerms, phase: str, term: str, formula: Formula, batch: Mapping = BATCH) -> None:
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
