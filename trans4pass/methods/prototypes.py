"""Class prototypes shared by both domains, and their slow update (Trans4PASS, arXiv 2203.01452, section 3.3)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trans4pass import dist
from trans4pass.errors import ConfigError
from trans4pass.losses import class_sums

FLAVOURS = ("fixed", "official", "paper")


class PrototypeBank(nn.Module):
    """One feature vector per class, started from both domains' means and moved by what the training batches collect.

    Every `update_every` steps: prototype = momentum * prototype + (1 - momentum) * centre, where the centre of a class
    comes from the collected per-batch, per-domain class means:

    - `fixed` (default): the per-channel mean; the collection is emptied after each update; a class of which nothing was
      collected keeps its prototype.
    - `paper`: the per-channel mean of everything collected so far.
    - `official`: as the released code does it: one number, the mean over everything collected AND all channels, stands
      for all channels; a class with fewer than two collected means moves towards 0.

    A class seen in no domain has a row of NaN until something is collected of it.

    Args:
        num_classes, channels: the bank's shape (K,E).
        flavour: one of the above.
        momentum: in [0,1].
        update_every: steps.
    """

    def __init__(
        self, num_classes: int, channels: int, flavour: str = "fixed", momentum: float = 0.999, update_every: int = 100
    ):
        super().__init__()
        if flavour not in FLAVOURS:
            raise ConfigError(f"prototype flavour {flavour!r} is not one of {', '.join(FLAVOURS)}")
        if not 0 <= momentum <= 1 or update_every < 1:
            raise ConfigError(f"momentum must be in [0,1] and update_every >= 1, got {momentum} and {update_every}")
        self.flavour, self.momentum, self.update_every = flavour, momentum, update_every
        self.register_buffer("prototypes", torch.full((num_classes, channels), torch.nan))
        self.register_buffer("collected", torch.zeros(num_classes, channels))
        self.register_buffer("collections", torch.zeros(num_classes))
        # Sums within the step that is running, one entry per domain: a checkpoint never falls inside a step.
        self._step: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def start(self, per_image: dict[str, Iterable[tuple[Tensor, Tensor]]]) -> None:
        """Set the prototypes: per domain the mean over images of per-image class means, then the mean over domains.

        Args:
            per_image: domain -> (features (1,E,h,w), labels (1,h,w)) of each image of this rank; labels are 255 where
                the prediction differs from the label.
        """
        num_classes = len(self.prototypes)
        domain_sum = torch.zeros_like(self.prototypes)
        domains = self.prototypes.new_zeros(num_classes, 1)
        for images in per_image.values():
            total, count = torch.zeros_like(domain_sum), torch.zeros_like(domains)
            for features, labels in images:
                sums, pixels = class_sums(features.to(total), labels, num_classes)
                total += sums / pixels[:, None].clamp_min(1)
                count += (pixels > 0)[:, None]
            dist.sum_(total), dist.sum_(count)
            domain_sum += total / count.clamp_min(1)
            domains += count > 0
        self.prototypes.copy_(domain_sum / domains)  # 0/0 = NaN where no domain has the class

    @torch.no_grad()
    def collect(self, domain: str, features: Tensor, labels: Tensor) -> None:
        """Add a (micro-)batch: features (B,E,h,w), labels (B,h,w) with 255 = none."""
        sums, pixels = class_sums(features.detach().to(self.prototypes), labels, len(self.prototypes))
        before = self._step.get(domain, (0, 0))
        self._step[domain] = (before[0] + sums, before[1] + pixels)

    @torch.no_grad()
    def after_step(self, step: int) -> bool:
        """Close step number `step` (from 0); returns whether the prototypes were updated."""
        for sums, pixels in self._step.values():
            dist.sum_(sums), dist.sum_(pixels)
            self.collected += sums / pixels[:, None].clamp_min(1)
            self.collections += pixels > 0
        self._step.clear()
        if (step + 1) % self.update_every:
            return False
        self._update()
        return True

    def discard_step(self) -> None:
        """Forget what the running step collected."""
        self._step.clear()

    def _update(self) -> None:
        seen = self.collections > 0
        centre = self.collected / self.collections[:, None].clamp_min(1)
        if self.flavour == "official":
            centre = centre.mean(1, keepdim=True).expand_as(centre) * (self.collections > 1)[:, None]
            seen = torch.ones_like(seen)
        old = self.prototypes.where(self.prototypes.isfinite(), centre)
        moved = self.momentum * old + (1 - self.momentum) * centre
        self.prototypes.copy_(moved.where(seen[:, None], self.prototypes))
        if self.flavour == "fixed":
            self.collected.zero_()
            self.collections.zero_()
