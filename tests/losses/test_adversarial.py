import math

import pytest
import torch

from trans4pass.losses import SOURCE, TARGET, domain_loss


def test_domain_loss_by_hand() -> None:
    scores = torch.tensor([[0.0, math.log(3.0)]])  # probabilities of "target" 1/2 and 3/4
    assert domain_loss(scores, TARGET).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2, rel=1e-6)
    assert domain_loss(scores, SOURCE).item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)
