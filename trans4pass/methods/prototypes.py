"""Prototypes shared by both domains, their slow update and distillation (Trans4PASS, arXiv 2203.01452, section 3.3)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import MinLen
from pydantic import PositiveFloat
from torch import Tensor, nn

from trans4pass import dist
from trans4pass.labels import IGNORE
from trans4pass.losses import (
    at_least_single,
    class_sums,
    pixel_counts,
    prototype_contrast,
    prototype_distillation,
    resize_labels,
)
from trans4pass.models import Segmentor, input_size, resize
from trans4pass.precision import any_size
from trans4pass.settings import Positive, Share

from .method import DomainBatch, Losses, Pass
from .term import ForwardPass, Term

Flavour = Literal["fixed", "official", "paper"]
PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


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
        momentum: of the prototypes.
        update_every: steps.
    """

    prototypes: Tensor
    collected: Tensor
    collections: Tensor

    def __init__(
        self,
        num_classes: int,
        channels: int,
        flavour: Flavour = "fixed",
        momentum: float = 0.999,
        update_every: int = 100,
    ):
        super().__init__()
        self.flavour, self.momentum, self.update_every = flavour, momentum, update_every
        self.register_buffer("prototypes", torch.full((num_classes, channels), torch.nan))
        self.register_buffer("collected", torch.zeros(num_classes, channels))
        self.register_buffer("collections", torch.zeros(num_classes))
        # Sums within the step that is running, one entry per domain: a checkpoint never falls inside a step.
        self._step: dict[str, Tensor] = {}  # (K,E+1): sums of features, and in the last column numbers of pixels
        self._unshared: list[Tensor] = []  # such sums (domains,K,E+1) of the steps that other ranks have not seen

    @torch.no_grad()
    def start(self, domains: Iterable[Tensor]) -> None:
        """Set the prototypes: per domain the mean over images of per-image class means, then the mean over domains.

        Args:
            domains: what `added` has made of each domain's images, of this rank's share.
        """
        means, known = torch.zeros_like(self.prototypes), torch.zeros_like(self.prototypes[:, :1])
        for sums in domains:
            total, count = dist.sum_(sums).split((sums.shape[1] - 1, 1), 1)
            means += total / count.clamp_min(1)
            known += count > 0
        self.prototypes.copy_(means / known)  # 0/0 = NaN where no domain has the class

    @torch.no_grad()
    def added(self, sums: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """`sums` (K,E+1), zeros at first, and images' class means and, in the last column, 1 where they have the class.

        Args:
            features, labels: (B,E,h,w), (B,h,w); labels are 255 where the prediction differs from the label.
        """
        for image, label in zip(features.to(sums).split(1), labels.split(1), strict=True):
            total, pixels = class_sums(image, label, len(sums))
            sums = sums + torch.cat((total / pixels[:, None].clamp_min(1), (pixels > 0)[:, None].to(total)), 1)
        return sums

    @torch.no_grad()
    def collect(self, domain: str, features: Tensor, labels: Tensor) -> None:
        """Add a (micro-)batch: features (B,E,h,w), labels (B,h,w) with 255 = none."""
        sums, pixels = class_sums(features.detach().to(self.prototypes), labels, len(self.prototypes))
        self._step[domain] = torch.cat((sums, pixels[:, None]), 1) + self._step.get(domain, 0)

    @torch.no_grad()
    def after_step(self, step: int) -> bool:
        """Close step number `step` (from 0); returns whether the prototypes were updated."""
        if self._step:
            self._unshared.append(torch.stack([*self._step.values()]))  # all ranks have the domains in one order
        self._step.clear()
        if (step + 1) % self.update_every:
            return False
        self.share()
        self._update()
        return True

    @torch.no_grad()
    def share(self) -> None:
        """Add all ranks' sums to the collection: in one reduction for the steps since the last. All ranks call it."""
        if not self._unshared:
            return
        # In float64 the order in which ranks are added up, which depends on how many steps there are, changes nothing.
        shared = dist.sum_(torch.cat(self._unshared).double()).to(self.collected)
        self._unshared.clear()
        for sums in shared:
            self.collected += sums[:, :-1] / sums[:, -1:].clamp_min(1)
            self.collections += sums[:, -1] > 0

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


class PrototypeDistillation(Term):
    """Pull the features of labelled pixels towards their class's prototype, which both domains share.

    Args:
        network: has the bank's classes and channels.
        weight: in each domain.
        domains: whose labels and features make and use the prototypes.
        flavour, momentum, update_every: see `PrototypeBank`. `fixed` averages the distillation over labelled pixels,
            the others, as the released code, over all.
        temperature, alpha: see `prototype_distillation`.
        bank_scales: image scales over which features are averaged before they enter the bank, one extra forward each;
            (1.0,) uses the training forward's own features. None: the flavour's, which is (1.0,) but for `paper`.
    """

    learns_labels = True

    def __init__(
        self,
        network: Segmentor,
        weight: PositiveFloat = 0.001,
        domains: Sequence[str] = ("source", "target"),
        flavour: Flavour = "fixed",
        momentum: Share = 0.999,
        update_every: Positive = 100,
        temperature: PositiveFloat = 20.0,
        alpha: Share = 0.9,
        bank_scales: Annotated[Sequence[PositiveFloat], MinLen(1)] | None = None,
    ):
        super().__init__(domains, weight)
        self.bank = PrototypeBank(network.num_classes, network.feature_dim, flavour, momentum, update_every)
        self.temperature, self.alpha = temperature, alpha
        self.bank_scales = tuple(bank_scales or (PAPER_SCALES if flavour == "paper" else (1.0,)))
        self.over = "labelled" if flavour == "fixed" else "all"

    def prepare(self, network: Segmentor, passes: Mapping[str, Pass]) -> None:
        """Start the prototypes from one pass over each domain, unless they came along from another stage."""
        if self.bank.prototypes.isfinite().any():
            return

        def add(sums: Tensor, batch: DomainBatch) -> Tensor:
            """With labels where the prediction is the label."""
            output = network(batch["image"])
            features = self._bank_features(network, batch["image"], output.features)
            labels = batch["label"].where(output.logits.argmax(1) == batch["label"], IGNORE)
            return self.bank.added(sums, features, resize_labels(labels, features.shape[2:]))

        zeros = nn.functional.pad(torch.zeros_like(self.bank.prototypes), (0, 1))
        self.bank.start(passes[domain].fold(add, zeros) for domain in self.domains)

    @torch.no_grad()
    def _bank_features(self, network: Segmentor, images: Tensor, features: Tensor) -> Tensor:
        """Features (B,E,h,w) for the bank: `features`, or the mean over `bank_scales` in eval mode."""
        if self.bank_scales == (1.0,):
            return features
        was_training = network.training
        network.eval()
        total = torch.zeros_like(features)
        with any_size():
            for scale in self.bank_scales:
                size = input_size(network, images.shape[2:], scale)
                scaled = resize(images.float() / 255, size, network.wrap, align_corners=False)
                total += resize(network(scaled).features, features.shape[2:], network.wrap)
        network.train(was_training)
        return total / len(self.bank_scales)

    def normalisers(self, batch: DomainBatch, network: Segmentor) -> dict[str, Tensor]:
        """The number of labelled pixels whose class has a prototype, at the features' size."""
        labels = batch["label"]
        # The features' size is that of a strided convolution's output: rounded up.
        labels = resize_labels(labels, [-(-side // network.feature_stride) for side in labels.shape[1:]])
        known = self.bank.prototypes.isfinite().all(1)
        return {"pixels": pixel_counts(labels.where(known[labels.where(labels != IGNORE, 0)], IGNORE))}

    def forward(self, seen: ForwardPass, norms: Mapping[str, Tensor]) -> Losses:
        """The weighted distillation, ""; its unweighted summands are values."""
        features = seen.output.features
        labels, weights = resize_labels(seen.labels, features.shape[2:]), seen.weights
        if weights is not None:
            weights = nn.functional.interpolate(weights[:, None], features.shape[2:])[:, 0]
        self.bank.collect(seen.domain, self._bank_features(seen.network, seen.batch["image"], features), labels)
        return self.pull(at_least_single(features), labels, norms["pixels"], weights)

    def pull(self, features: Tensor, labels: Tensor, pixels: Tensor, weights: Tensor | None) -> Losses:
        """What `forward` returns, of features (B,E,h,w), labels and weights (B,h,w), and the number of pixels."""
        loss, values = prototype_distillation(
            features, labels, self.bank.prototypes, self.temperature, self.alpha, self.over, pixels, weights
        )
        return Losses({"": self.weight * loss}, values)

    def after_step(self, step: int) -> dict[str, Tensor]:
        if not self.bank.after_step(step):
            return {}
        return {"norm": self.bank.prototypes.nan_to_num().norm(dim=1).mean()}

    def before_checkpoint(self) -> None:
        self.bank.share()

    def discard_step(self) -> None:
        self.bank.discard_step()


class PrototypeContrast(PrototypeDistillation):
    """InfoNCE between a pixel and all prototypes: near its class's, far from the others' (arXiv 2111.12903's form).

    Cross-entropy of the cosine similarities with the prototypes over `temperature`; the mean over labelled pixels.

    Args:
        network, weight, domains, momentum, update_every: see `PrototypeDistillation`; the bank is `fixed`.
        temperature: > 0; small ones look at the nearest prototypes only.
    """

    def __init__(
        self,
        network: Segmentor,
        weight: PositiveFloat = 0.1,
        domains: Sequence[str] = ("source", "target"),
        momentum: Share = 0.999,
        update_every: Positive = 1,
        temperature: PositiveFloat = 0.1,
    ):
        super().__init__(network, weight, domains, "fixed", momentum, update_every, temperature)

    def pull(self, features: Tensor, labels: Tensor, pixels: Tensor, weights: Tensor | None) -> Losses:
        loss = prototype_contrast(features, labels, self.bank.prototypes, self.temperature, pixels, weights)
        return Losses({"": self.weight * loss}, {})
