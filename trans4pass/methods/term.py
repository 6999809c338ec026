"""Methods that are sums of terms: every stage of Trans4PASS, and what else a list in a YAML file can say.

One step of each stage (arXiv 2203.01452, section 3.3; configs/stage) is such a sum:

    source-only  segmentation(source)
    warm-up      segmentation(source) + adversarial
    SSL          segmentation(source) + segmentation(target) on pseudo-labels
    MPA          segmentation(source) + segmentation(target) + adversarial + prototypes
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from trans4pass import dist
from trans4pass.errors import ConfigError
from trans4pass.models import Segmentor, SegOutput, make_circular

from .method import Batch, DomainBatch, Losses, Method, untouched


class ForwardPass(NamedTuple):
    """What a term sees of a phase."""

    domain: str
    batch: DomainBatch
    output: SegOutput
    network: Segmentor

    @property
    def labels(self) -> Tensor:
        """(B,H,W) class indices, 255 = none."""
        return self.batch["label"]

    @property
    def weights(self) -> Tensor | None:
        """(B,H,W) factors on the pixels' losses; None: 1."""
        return self.batch.get("weight")


class Term(nn.Module):
    """One summand of a method's loss, with its own state.

    A subclass's constructor takes the network as its first argument, for what it must know of it (classes, widths); it
    must not keep it. Whatever parameters a term has are trained by an optimiser of its own (`optim` in its YAML).

    Args:
        domains: whose forward passes it is computed on.
        weight: factor on its loss.
    """

    learns_labels = False  # whether the domains must have labels

    def __init__(self, domains: Iterable[str], weight: float):
        super().__init__()
        self.domains, self.weight = tuple(domains), weight

    def prepare(self, network: Segmentor, loaders: Mapping[str, Iterable[DomainBatch]]) -> None:
        """See `Method.prepare`; the network is in eval mode."""

    def set_step(self, step: int) -> None:
        """See `Method.set_step`."""

    def normalisers(self, batch: DomainBatch, network: Segmentor) -> dict[str, Tensor]:
        """What the losses on this batch divide by, by name."""
        return {}

    def forward(self, seen: ForwardPass, norms: Mapping[str, Tensor]) -> Losses:
        """Weighted losses by name, "" for the only or main one, and values to log."""
        raise NotImplementedError

    def after_step(self, step: int) -> dict[str, Tensor]:
        """See `Method.after_step`."""
        return {}

    def discard_step(self) -> None:
        """See `Method.discard_step`."""


class SumOfTerms(Method):
    """Each phase is one domain's forward pass, and the sum of the terms that are computed on it.

    Args:
        network: see `Segmentor`; where it takes full panoramas, the terms' layers and losses become circular too.
        terms: by name; losses, optimisers and checkpoints use these names.
    """

    def __init__(self, network: Segmentor, terms: Mapping[str, Term]):
        super().__init__(network)
        wrong = [name for name in terms if "." in name or hasattr(nn.ModuleDict, name)]
        if not terms or wrong:
            raise ConfigError(f"a method needs a term or more, and terms cannot be called {wrong or 'nothing'}")
        self.terms = cast("Mapping[str, Term]", nn.ModuleDict(terms))
        if network.wrap:
            for term in terms.values():
                make_circular(term)
        self.phases = self.domains = tuple(dict.fromkeys(domain for term in terms.values() for domain in term.domains))

    def learns_labels_of(self, domain: str) -> bool:
        return any(term.learns_labels for term in self._terms(domain).values())

    def trained_modules(self) -> Mapping[str, nn.Module]:
        trained = {name: term for name, term in self.terms.items() if any(True for _ in term.parameters())}
        return {"network": self.network, **trained}

    def transferable_modules(self) -> Mapping[str, nn.Module]:
        terms = {f"terms.{name}": term for name, term in self.terms.items()}
        return {**{name: child for name, child in self.named_children() if name != "terms"}, **terms}

    @torch.no_grad()
    def prepare(self, loaders: Mapping[str, Iterable[DomainBatch]]) -> None:
        was_training = self.network.training
        self.network.eval()
        for term in self.terms.values():
            term.prepare(self.network, loaders)
        self.network.train(was_training)

    def set_step(self, step: int) -> None:
        for term in self.terms.values():
            term.set_step(step)

    def normalisers(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        terms = self._terms(phase).items()
        each = {name: term.normalisers(batch[phase], self.network) for name, term in terms}
        return {f"{name}.{key}": value for name, norms in each.items() for key, value in norms.items()}

    def forward(self, phase: str, batch: Batch, norms: Mapping[str, Tensor]) -> Losses:
        output = self.network(batch[phase]["image"])
        losses: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for name, term in self._terms(phase).items():
            divisors = {key.removeprefix(f"{name}."): norm for key, norm in norms.items() if key.startswith(f"{name}.")}
            result = term(ForwardPass(phase, batch[phase], output, self.network), divisors)
            losses |= {f"{name}.{key}".removesuffix("."): loss for key, loss in result.losses.items()}
            values |= {f"{name}.{key}": value for key, value in result.values.items()}
        if dist.active():
            parameters = [p for term in self.terms.values() for p in term.parameters()]
            first = next(iter(losses))
            outputs = [output.logits, output.features, *output.aux.values()]
            losses[first] = losses[first] + untouched([*outputs, *parameters])
        return Losses(losses, values)

    def after_step(self, step: int) -> dict[str, Tensor]:
        values = {name: term.after_step(step) for name, term in self.terms.items()}
        return {f"{name}.{key}": value for name, found in values.items() for key, value in found.items()}

    def discard_step(self) -> None:
        for term in self.terms.values():
            term.discard_step()

    def _terms(self, domain: str) -> dict[str, Term]:
        return {name: term for name, term in self.terms.items() if domain in term.domains}
