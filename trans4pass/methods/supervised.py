"""Supervised training on one labelled domain: source-only models and labelled upper bounds."""

from collections.abc import Mapping

from torch import Tensor, nn

from .base import Batch, Method
from .objective import Objective


class Supervised(Method):
    """Minimises one loss on the labels of the `source` domain.

    Args:
        network: returns a `SegOutput`; tells `has_edges`.
        loss: a pixel loss with a `normaliser` (see `trans4pass.losses`).
        aux_weight, edge_weight, edge_radius: of the network's auxiliary class maps and edge maps (see `Objective`).
    """

    phases = ("source",)
    domains = ("source",)

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        aux_weight: float = 1.0,
        edge_weight: float = 1.0,
        edge_radius: int = 2,
    ):
        super().__init__(network)
        self.objective = Objective(loss, aux_weight, edge_weight, edge_radius, network.has_edges, network.wrap)

    def normalisers(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        return self.objective.normalisers(batch["source"]["label"])

    def forward(
        self, phase: str, batch: Batch, norms: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        output = self.network(batch["source"]["image"])
        return self.objective(output, batch["source"]["label"], norms), {}

    def after_step(self, step: int) -> dict[str, Tensor]:
        self.objective.after_step(step)
        return {}
