import math

import pytest
import torch
from torch import Tensor

from tests import slow
from trans4pass.losses import SOURCE, TARGET, domain_loss


def test_domain_loss_by_hand() -> None:
    scores = torch.tensor([[0.0, math.log(3.0)]])  # probabilities of "target" 1/2 and 3/4
    assert domain_loss(scores, TARGET).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, rel=1e-6)
    assert domain_loss(scores, SOURCE).item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)


@pytest.mark.parametrize("own", [SOURCE, TARGET])
def test_domain_loss_is_the_formula(own: float) -> None:
    scores = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def formula(x: Tensor) -> float:
        return slow.domain(x.flatten().tolist(), own)

    slow.assert_same(lambda x: domain_loss(x, own), formula, scores)


def test_it_is_made_where_the_scores_are() -> None:
    with torch.device("meta"):
        assert domain_loss(torch.zeros(1, device="cpu"), TARGET).item() == pytest.approx(math.log(2))
