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

from .derived import Derivation
from .method import Batch, DomainBatch, Images, Losses, Method, Pass, generators, untouched


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

    def prepare(self, network: Segmentor, passes: Mapping[str, Pass]) -> None:
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

    def before_checkpoint(self) -> None:
        """See `Method.before_checkpoint`."""

    def discard_step(self) -> None:
        """See `Method.discard_step`."""


class SumOfTerms(Method):
    """Each phase is one domain's forward pass, and the sum of the terms that are computed on it.

    Args:
        network: see `Segmentor`; where it takes full panoramas, the terms' layers and losses become circular too.
        terms: by name; losses, optimisers and checkpoints use these names.
        derive: phases that are made from domains and from each other, in this order, by name. One that has a domain's
            name takes its place; None leaves one out.
    """

    def __init__(
        self, network: Segmentor, terms: Mapping[str, Term], derive: Mapping[str, Derivation | None] | None = None
    ) -> None:
        super().__init__(network)
        wrong = [name for name in terms if "." in name or hasattr(nn.ModuleDict, name)]
        if not terms or wrong:
            raise ConfigError(f"a method needs a term or more, and terms cannot be called {wrong or 'nothing'}")
        self.terms = cast("Mapping[str, Term]", nn.ModuleDict(terms))
        if network.wrap:
            for term in terms.values():
                make_circular(term)
        self.phases = tuple(dict.fromkeys(domain for term in terms.values() for domain in term.domains))
        self.derive = {name: derivation for name, derivation in (derive or {}).items() if derivation is not None}
        self.domains, self._labels_from = self._sources()
        # What the domains' micro-batches of this step became, each beside the batch that it was made of.
        self._derived: list[tuple[Batch, Batch]] = []

    def _sources(self) -> tuple[tuple[str, ...], dict[str, set[str]]]:
        """The domains that are loaded, and those whose labels each phase keeps."""
        made_of: dict[str, dict[str, None]] = {}
        labels: dict[str, set[str]] = {}
        for name, derivation in self.derive.items():
            made_of[name] = {d: None for read in derivation.reads for d in made_of.get(read, {read: None})}
            labels[name] = {d for read in derivation.labels_of for d in labels.get(read, {read})}
        unused = self.derive.keys() - {*self.phases, *(read for d in self.derive.values() for read in d.reads)}
        if unused:
            raise ConfigError(f"derive makes {', '.join(unused)}, and no term learns from it: give one that domain")
        domains = dict.fromkeys(d for phase in self.phases for d in made_of.get(phase, {phase: None}))
        return tuple(domains), {phase: labels.get(phase, {phase}) for phase in self.phases}

    def learns_labels_of(self, domain: str) -> bool:
        phases = [phase for phase in self.phases if domain in self._labels_from[phase]]
        return any(term.learns_labels for phase in phases for term in self._terms(phase).values())

    def trained_modules(self) -> Mapping[str, nn.Module]:
        trained = {name: term for name, term in self.terms.items() if any(True for _ in term.parameters())}
        return {"network": self.network, **trained}

    def transferable_modules(self) -> Mapping[str, nn.Module]:
        terms = {f"terms.{name}": term for name, term in self.terms.items()}
        return {**{name: child for name, child in self.named_children() if name != "terms"}, **terms}

    def check(self, images: Mapping[str, Images]) -> None:
        known = dict(images)
        for name, derivation in self.derive.items():
            try:
                known[name] = derivation.check(known)
            except ConfigError as error:
                raise ConfigError(f"derive.{name}: {error}") from error

    @torch.no_grad()
    def prepare(self, passes: Mapping[str, Pass]) -> None:
        was_training = self.network.training
        self.network.eval()
        for term in self.terms.values():
            term.prepare(self.network, passes)
        self.network.train(was_training)

    def set_step(self, step: int) -> None:
        self._derived.clear()
        for term in self.terms.values():
            term.set_step(step)

    def targets(self, phase: str, batch: Batch) -> Batch:
        """The batch with all that is derived, which is made once for all phases."""
        for loaded, derived in self._derived:
            if loaded is batch:
                return derived
        derived = dict(self.label(batch))
        for number, (name, derivation) in enumerate(self.derive.items()):
            derived[name] = derivation(derived, generators(derived[derivation.reads[0]], number))
        self._derived.append((batch, derived))
        return derived

    def label(self, batch: Batch) -> Batch:
        """The batch with the labels and weights that this method makes itself: none."""
        return batch

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
        self._derived.clear()  # its memory is for the evaluation
        values = {name: term.after_step(step) for name, term in self.terms.items()}
        return {f"{name}.{key}": value for name, found in values.items() for key, value in found.items()}

    def before_checkpoint(self) -> None:
        for term in self.terms.values():
            term.before_checkpoint()

    def discard_step(self) -> None:
        for term in self.terms.values():
            term.discard_step()

    def _terms(self, domain: str) -> dict[str, Term]:
        return {name: term for name, term in self.terms.items() if domain in term.domains}
