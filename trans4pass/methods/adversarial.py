"""Adversarial alignment in output space (AdaptSegNet, arXiv 1802.10349), Trans4PASS's warm-up."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from trans4pass.losses import SOURCE, TARGET, domain_loss
from trans4pass.models import Segmentor

from .method import Losses
from .term import ForwardPass, Term


class Discriminator(nn.Sequential):
    """Five 4x4 convolutions of stride 2: (B,K,H,W) probabilities -> (B,1,H/32,W/32) raw scores, high = target.

    Args:
        num_classes: K, the input's channels.
        width: channels after the first convolution; they double up to 8 x width.
    """

    def __init__(self, num_classes: int, width: int = 64):
        channels = [num_classes, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for inside, outside in pairwise(channels):
            layers += [nn.Conv2d(inside, outside, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(channels[-1], 1, 4, stride=2, padding=1))


class Adversarial(Term):
    """The network is to make the target's probability maps pass as the source's; a discriminator separates them.

    Args:
        network: has as many classes as the discriminator has input channels.
        weight: of the network's attempt to deceive; the discriminator's own loss is not weighted.
        source, target: domains. Source label 0, target label 1.
    """

    def __init__(
        self, network: Segmentor, weight: PositiveFloat = 0.001, source: str = "source", target: str = "target"
    ):
        super().__init__([source, target], weight)
        self.source = source
        self.discriminator = Discriminator(network.num_classes)

    def forward(self, seen: ForwardPass, norms: Mapping[str, Tensor]) -> Losses:
        """The discriminator's half on this domain, "discriminator", and on the target the network's loss, ""."""
        # Channels last, CPUs convolve them a tenth faster.
        probabilities = seen.output.logits.softmax(1).contiguous(memory_format=torch.channels_last)
        truth = SOURCE if seen.domain == self.source else TARGET
        losses = {"discriminator": 0.5 * domain_loss(self.discriminator(probabilities.detach()), truth)}
        if seen.domain != self.source:
            # Detached parameters: the network's term gives the discriminator no gradient.
            frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
            scores = torch.func.functional_call(self.discriminator, frozen, (probabilities,))
            losses[""] = self.weight * domain_loss(scores, SOURCE)
        return Losses(losses, {})
