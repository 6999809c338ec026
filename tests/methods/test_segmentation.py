import pytest
import torch
from torch import Tensor, nn

from trans4pass.losses import CrossEntropy, MaskEdge, WeightedSum
from trans4pass.models import SegOutput

from .build import supervised

K = 3


class Logits(nn.Module):
    """A network whose prediction is its weights, whatever the image."""

    has_edges, feature_stride = False, 1
    num_classes = feature_dim = K

    def __init__(self, wrap: bool) -> None:
        super().__init__()
        self.wrap = wrap
        self.logits = nn.Parameter(torch.randn(1, K, 8, 32, generator=torch.Generator().manual_seed(0)).double())

    def forward(self, image: Tensor) -> SegOutput:
        return SegOutput(self.logits, self.logits, {})


@pytest.mark.parametrize("wrap", [False, True])
def test_mask_edges_meet_at_the_sides_of_a_wrapped_model(wrap: bool) -> None:
    """Turning prediction and labels alike changes nothing, and without `wrap` it does; also within sums of sums."""
    losses = []
    for shift in (0, 5):
        network = Logits(wrap)
        network.logits.data = network.logits.data.roll(shift, -1)
        labels = (torch.arange(32) // 8 % K).expand(1, 8, 32).roll(shift, -1)
        inner = WeightedSum({"edges": MaskEdge(), "ce": CrossEntropy()})
        method = supervised(network, WeightedSum({"sum": inner, "ce": CrossEntropy()}))
        batch = {"source": {"image": torch.zeros(1, 3, 8, 32), "label": labels}}
        losses.append(method("source", batch, method.normalisers("source", batch)).losses["supervised"].item())
    assert (abs(losses[0] - losses[1]) < 1e-10) == wrap
