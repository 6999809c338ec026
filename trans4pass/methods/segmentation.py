"""Supervision of everything a segmentor returns, by labels of any kind."""

from collections.abc import Mapping

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from trans4pass.losses import EdgeLoss, PixelLoss
from trans4pass.models import EDGE, Segmentor, resize
from trans4pass.settings import Positive

from .method import DomainBatch, Losses
from .term import ForwardPass, Term


class Segmentation(Term):
    """One pixel loss on the logits and on each auxiliary class map, and the edge loss on the edge maps.

    With DANet's three outputs and `aux_weight` 1 it is the sum of three cross-entropies.

    Args:
        network: has edge maps, or none.
        loss: see `PixelLoss`.
        domain: whose labels it is computed on.
        weight: of all of it.
        aux_weight: of each auxiliary class map.
        edge_weight: of the edge maps' summed loss.
        edge_radius: of the erosion that makes the edges, pixels (see `EdgeLoss`).
    Attributes:
        wrap: whether maps are full panoramas' (`make_circular`).
    """

    learns_labels = True
    wrap = False

    def __init__(
        self,
        network: Segmentor,
        loss: PixelLoss,
        domain: str = "source",
        weight: PositiveFloat = 1.0,
        aux_weight: NonNegativeFloat = 1.0,
        edge_weight: NonNegativeFloat = 1.0,
        edge_radius: Positive = 2,
    ):
        super().__init__([domain], weight)
        self.loss, self.edges = loss, EdgeLoss(edge_radius) if network.has_edges else None
        self.aux_weight, self.edge_weight = aux_weight, edge_weight

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
