"""The contract between a method and the trainer."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

Batch = Mapping[str, Mapping[str, Any]]  # domain -> {"image": uint8 (B,3,H,W), "label": (B,H,W), "name": list[str]}


class Method(nn.Module):
    """What one training step computes, and everything it must remember.

    A method owns the network, and where it needs them a discriminator (a submodule) and prototypes (buffers), so that
    one state_dict holds all that a resumed run needs.

    Attributes:
        phases: one forward and one backward pass each, in this order, so that two domains' graphs never live at once.
            Every phase must touch every parameter that gets a gradient (see the trainer on DDP).
        domains: the domains whose batches the phases read.
    """

    phases: tuple[str, ...]
    domains: tuple[str, ...]

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    @property
    def supervised(self) -> tuple[str, ...]:
        """The domains that give a loss by their labels."""
        return self.domains

    def prepare(self, loaders: Mapping[str, Iterable]) -> None:
        """Called once before step 0 with one finite loader of un-augmented training samples per domain."""

    def normalisers(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        """What this phase's losses divide by, by name; the trainer averages it over micro-batches and ranks."""
        return {}

    def forward(
        self, phase: str, batch: Batch, norms: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted losses by name (the trainer sums them) and detached values to log."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def after_step(self, step: int) -> dict[str, Tensor]:
        """Called after the optimisers' step number `step` (from 0) on every rank; returns values to log."""
        return {}

    def discard_step(self) -> None:
        """Called instead of `after_step` where a step is skipped: forget what its forwards collected."""
