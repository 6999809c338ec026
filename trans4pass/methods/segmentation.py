"""Supervision of everything a segmentor returns, by labels of any kind."""

from collections.abc import Mapping

import torch
from torch import Tensor

from trans4pass.errors import ConfigError
from trans4pass.losses import EdgeLoss, PixelLoss
from trans4pass.models import EDGE, Segmentor, resize

from .method import DomainBatch, Losses
from .term import ForwardPass, Term


class Segmentation(Term):
    """One pixel loss on the logits and on each auxiliary class map, and the edge loss on the edge maps.

    With DANet's three outputs and `aux_weight` 1 it is the sum of three cross-entropies.

    Args:
        network: says whether it predicts edges, and whether its maps are full panoramas'.
        loss: see `PixelLoss`.
        domain: whose labels it is computed on.
        weight: of all of it.
        aux_weight: of each auxiliary class map, >= 0.
        edge_weight: of the edge maps' summed loss, >= 0.
        edge_radius: of the erosion that makes the edges, pixels (see `EdgeLoss`).
    """

    learns_labels = True

    def __init__(
        self,
        network: Segmentor,
        loss: PixelLoss,
        domain: str = "source",
        weight: float = 1.0,
        aux_weight: float = 1.0,
        edge_weight: float = 1.0,
        edge_radius: int = 2,
    ):
        super().__init__([domain], weight)
        if min(aux_weight, edge_weight) < 0:
            raise ConfigError(f"aux_weight and edge_weight must be >= 0, got {aux_weight} and {edge_weight}")
        self.loss, self.edges = loss, EdgeLoss(edge_radius, network.wrap) if network.has_edges else None
        self.aux_weight, self.edge_weight, self.wrap = aux_weight, edge_weight, network.wrap

    def set_step(self, step: int) -> None:
        self.loss.set_step(step)

    def normalisers(self, batch: DomainBatch, network: Segmentor) -> dict[str, Tensor]:
        norms = {"loss": self.loss.normaliser(batch["label"])}
        return norms if self.edges is None else norms | {"edges": self.edges.normaliser(batch["label"])}

    def forward(self, seen: ForwardPass, norms: Mapping[str, Tensor]) -> Losses:
        """Losses "", the auxiliary maps' names, "edges"."""
        labels, weights, size = seen.labels, seen.weights, seen.labels.shape[1:]
        losses = {"": self.weight * self.loss(seen.output.logits, labels, norms["loss"], weights)}
        levels = []
        for name, logits in seen.output.aux.items():
            if name.startswith(EDGE):
                levels.append(resize(logits, size, self.wrap, align_corners=False))
                continue
            logits = resize(logits, size, self.wrap)
            losses[name] = self.weight * self.aux_weight * self.loss(logits, labels, norms["loss"], weights)
        if self.edges is not None:
            found = self.edges(torch.cat(levels, 1), labels, norms["edges"], weights)
            losses["edges"] = self.weight * self.edge_weight * found
        return Losses(losses, {})
