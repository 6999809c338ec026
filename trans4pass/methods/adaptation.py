"""Unsupervised adaptation of a source-trained network to a target domain without labels.

One step of every stage of Trans4PASS (arXiv 2203.01452, section 3.3) is a sum of terms, so each stage is a setting:

    warm-up  source CE + adversarial
    SSL      source CE + target CE on pseudo-labels
    MPA      source CE + adversarial + target CE on pseudo-labels + prototype distillation in both domains
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from trans4pass.arguments import check_arguments
from trans4pass.errors import ConfigError
from trans4pass.labels import IGNORE
from trans4pass.losses import (
    SOURCE,
    TARGET,
    CrossEntropy,
    at_least_single,
    domain_loss,
    pixel_counts,
    prototype_distillation,
    resize_labels,
)
from trans4pass.models import input_size, resize, wrap_sideways

from .base import Batch, Method
from .discriminator import Discriminator
from .objective import Objective
from .prototypes import PrototypeBank

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


class Adaptation(Method):
    """Source supervision plus any of: adversarial alignment, self-training, prototype distillation.

    Args:
        network: returns a `SegOutput`; tells `feature_stride`, `has_edges` and `wrap`; its `head` tells its widths.
        loss: the source's pixel loss. The target's pseudo-labels always get the unweighted cross-entropy.
        aux_weight, edge_weight, edge_radius: of the auxiliary class maps and edge maps, in both domains (see
            `Objective`).
        lambda_adv: weight of the adversarial term; 0 leaves the discriminator out.
        lambda_target: weight of the cross-entropy on the target's pseudo-labels; 0 leaves it out.
        lambda_proto: weight of the prototype distillation in each domain; 0 leaves the bank out.
        prototypes: settings of the `PrototypeBank` (flavour, momentum, update_every).
        temperature, alpha: of the distillation (see `prototype_distillation`).
        bank_scales: image scales over which features are averaged before they enter the bank, one extra forward each;
            (1.0,) uses the training forward's own features. None: the flavour's, which is (1.0,) but for `paper`.
    """

    phases = ("source", "target")
    domains = ("source", "target")

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        aux_weight: float = 1.0,
        edge_weight: float = 1.0,
        edge_radius: int = 2,
        lambda_adv: float = 0.0,
        lambda_target: float = 0.0,
        lambda_proto: float = 0.0,
        prototypes: Mapping | None = None,
        temperature: float = 20.0,
        alpha: float = 0.9,
        bank_scales: Sequence[float] | None = None,
    ):
        super().__init__(network)
        if min(lambda_adv, lambda_target, lambda_proto) < 0:
            raise ConfigError(
                f"lambdas must be >= 0, got adv {lambda_adv}, target {lambda_target}, proto {lambda_proto}"
            )
        settings = (aux_weight, edge_weight, edge_radius, network.has_edges, network.wrap)
        if temperature <= 0 or not 0 <= alpha <= 1:
            raise ConfigError(f"temperature must be > 0 and alpha in [0,1], got {temperature} and {alpha}")
        if bank_scales is not None and (not bank_scales or min(bank_scales) <= 0):
            raise ConfigError(f"bank_scales must be positive factors, or null for the flavour's own, got {bank_scales}")
        self.source_objective = Objective(loss, *settings)
        self.target_objective = Objective(CrossEntropy(), *settings)
        self.lambda_adv, self.lambda_target, self.lambda_proto = lambda_adv, lambda_target, lambda_proto
        self.temperature, self.alpha = temperature, alpha
        head = network.head
        self.discriminator = Discriminator(head.num_classes) if lambda_adv else None
        if network.wrap and self.discriminator is not None:
            wrap_sideways(self.discriminator)
        check_arguments(PrototypeBank, prototypes or {}, (0, 1), "prototypes")
        self.bank = PrototypeBank(head.num_classes, head.feature_dim, **(prototypes or {})) if lambda_proto else None
        paper = self.bank is not None and self.bank.flavour == "paper"
        self.bank_scales = tuple(bank_scales or (PAPER_SCALES if paper else (1.0,)))
        # The released code averages the distillation over all pixels; the fixed flavour over labelled ones.
        self.over = "labelled" if self.bank is not None and self.bank.flavour == "fixed" else "all"

    @property
    def supervised(self) -> tuple[str, ...]:
        return ("source", "target") if self.lambda_target else ("source",)

    def prepare(self, loaders: Mapping[str, Iterable]) -> None:
        """Start the prototypes from one pass over each domain (the network in eval mode)."""
        if self.bank is None:
            return
        was_training = self.network.training
        self.network.eval()
        self.bank.start({domain: self._correct_features(loaders[domain]) for domain in self.domains})
        self.network.train(was_training)

    @torch.no_grad()
    def _correct_features(self, loader: Iterable) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            output = self.network(batch["image"])
            features = self._bank_features(batch["image"], output.features)
            correct = output.logits.argmax(1) == batch["label"]
            labels = batch["label"].where(correct, IGNORE)
            yield features, resize_labels(labels, features.shape[2:])

    @torch.no_grad()
    def _bank_features(self, images: Tensor, features: Tensor) -> Tensor:
        """Features (B,E,h,w) for the bank: the given ones, or the mean over `bank_scales` in eval mode."""
        if self.bank_scales == (1.0,):
            return features
        was_training = self.network.training
        self.network.eval()
        wrap = self.network.wrap
        total = torch.zeros_like(features)
        for scale in self.bank_scales:
            size = input_size(self.network, images.shape[2:], scale)
            scaled = resize(images.float() / 255, size, wrap, align_corners=False)
            total += resize(self.network(scaled).features, features.shape[2:], wrap)
        self.network.train(was_training)
        return total / len(self.bank_scales)

    def normalisers(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        labels = batch[phase]["label"]
        norms = (self.source_objective if phase == "source" else self.target_objective).normalisers(labels)
        if self.bank is not None:
            norms["proto"] = pixel_counts(self._prototyped(labels))
        return norms

    def _prototyped(self, labels: Tensor) -> Tensor:
        """Labels at the features' size, 255 where the class has no prototype yet."""
        # The features' size is that of a strided convolution's output: rounded up.
        labels = resize_labels(labels, tuple(-(-side // self.network.feature_stride) for side in labels.shape[1:]))
        known = self.bank.prototypes.isfinite().all(1)
        return labels.where(known[labels.where(labels != IGNORE, 0)], IGNORE)

    def forward(
        self, phase: str, batch: Batch, norms: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        images, labels = batch[phase]["image"], batch[phase]["label"]
        output = self.network(images)
        values: dict[str, Tensor] = {}
        if phase == "source":
            losses = self.source_objective(output, labels, norms)
        else:
            terms = self.target_objective(output, labels, norms)
            losses = {name: self.lambda_target * term for name, term in terms.items() if self.lambda_target}
        if self.discriminator is not None:
            losses |= self._adversarial(phase, output.logits.softmax(1))
        if self.bank is not None:
            distilled, values = self._distil(phase, images, labels, output.features, norms["proto"])
            losses["proto"] = self.lambda_proto * distilled
        if phase == "target" and not self.lambda_target:
            # DDP counts on every parameter, those of auxiliary heads too, being in the graph.
            name = next(iter(losses), "seg")
            losses[name] = losses.get(name, 0) + 0 * sum(terms.values())
        return losses, values

    def _adversarial(self, phase: str, probabilities: Tensor) -> dict[str, Tensor]:
        """The discriminator's own half on this domain and, for the target, the network's attempt to pass as source."""
        own = SOURCE if phase == "source" else TARGET
        losses = {"disc": 0.5 * domain_loss(self.discriminator(probabilities.detach()), own)}
        if phase == "target":
            # Detached parameters: the network's term gives the discriminator no gradient.
            frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
            scores = torch.func.functional_call(self.discriminator, frozen, (probabilities,))
            losses["adv"] = self.lambda_adv * domain_loss(scores, SOURCE)
        return losses

    def _distil(
        self, phase: str, images: Tensor, labels: Tensor, features: Tensor, count: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        small = resize_labels(labels, features.shape[2:])
        self.bank.collect(phase, self._bank_features(images, features), small)
        return prototype_distillation(
            at_least_single(features), small, self.bank.prototypes, self.temperature, self.alpha, self.over, count
        )

    def after_step(self, step: int) -> dict[str, Tensor]:
        self.source_objective.after_step(step)
        if self.bank is None or not self.bank.after_step(step):
            return {}
        return {"prototype_norm": self.bank.prototypes.nan_to_num().norm(dim=1).mean()}

    def discard_step(self) -> None:
        if self.bank is not None:
            self.bank.discard_step()
