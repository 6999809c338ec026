"""The supervised loss of everything a segmentor returns: logits, auxiliary class maps, edge maps."""

from collections.abc import Mapping

from torch import Tensor, nn

from trans4pass.errors import ConfigError
from trans4pass.losses import EdgeLoss
from trans4pass.models import SegOutput, resize, wrap_sideways

EDGE = "edge"  # auxiliary maps whose names start so are edge logits (B,1,h,w); all others are class logits (B,K,h,w)


class Objective(nn.Module):
    """One pixel loss on the logits and on each auxiliary class map, and the edge loss on the edge maps.

    With DANet's three outputs and `aux_weight` 1 it is the sum of three cross-entropies.

    Args:
        loss: a pixel loss with a `normaliser` (see `trans4pass.losses`).
        aux_weight: of each auxiliary class map.
        edge_weight: of the edge maps' summed loss.
        edge_radius: of the erosion that makes the edges (see `EdgeLoss`).
        edges: whether the network tells edges.
        wrap: whether its maps are full panoramas', also to the losses.
    """

    wrap = False

    def __init__(
        self, loss: nn.Module, aux_weight: float, edge_weight: float, edge_radius: int, edges: bool, wrap: bool
    ):
        super().__init__()
        if min(aux_weight, edge_weight) < 0:
            raise ConfigError(f"aux_weight and edge_weight must be >= 0, got {aux_weight} and {edge_weight}")
        self.loss, self.edges = loss, EdgeLoss(edge_radius) if edges else None
        self.aux_weight, self.edge_weight = aux_weight, edge_weight
        if wrap:
            wrap_sideways(self)

    def normalisers(self, labels: Tensor) -> dict[str, Tensor]:
        """What the losses divide by, float scalars by name."""
        norms = {"seg": self.loss.normaliser(labels)}
        return norms if self.edges is None else norms | {"edges": self.edges.normaliser(labels)}

    def forward(self, output: SegOutput, labels: Tensor, norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weighted losses by name: `seg`, the auxiliary maps' names, `edges`."""
        losses = {"seg": self.loss(output.logits, labels, norms["seg"])}
        levels = {}
        for name, logits in output.aux.items():
            if name.startswith(EDGE):
                levels[name] = resize(logits, labels.shape[1:], self.wrap, align_corners=False)
                continue
            logits = resize(logits, labels.shape[1:], self.wrap)
            losses[name] = self.aux_weight * self.loss(logits, labels, norms["seg"])
        if levels:
            losses["edges"] = self.edge_weight * self.edges(levels, labels, norms["edges"])
        return losses

    def after_step(self, step: int) -> None:
        self.loss.after_step(step)
