"""Supervised training on one labelled domain: source-only models and labelled upper bounds."""

from collections.abc import Mapping

from torch import Tensor, nn

from .base import Batch, Method


class Supervised(Method):
    """Minimises one loss on the labels of the `source` domain.

    Args:
        network: returns a `SegOutput`.
        loss: a pixel loss with a `normaliser` (see `trans4pass.losses`).
    """

    phases = ("source",)
    domains = ("source",)

    def __init__(self, network: nn.Module, loss: nn.Module):
        super().__init__(network)
        self.loss = loss

    def normalisers(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.loss.normaliser(batch["source"]["label"])}

    def forward(
        self, phase: str, batch: Batch, norms: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        output = self.network(batch["source"]["image"])
        return {"loss": self.loss(output.logits, batch["source"]["label"], norms["loss"])}, {}

    def after_step(self, step: int) -> dict[str, Tensor]:
        self.loss.after_step(step)
        return {}
