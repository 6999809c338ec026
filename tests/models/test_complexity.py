"""Operations of layers that one counts by hand, and a model that is left as it was."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from trans4pass import create_model
from trans4pass.models.complexity import complexity


class OneAttention(nn.Module):
    """Half of an image's rows attend to the other half, by what is in their columns."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(7))

    def forward(self, image: Tensor) -> Tensor:
        query, key = image.chunk(2, dim=2)
        return scaled_dot_product_attention(query, key, key)


def test_convolutions_and_attention_count() -> None:
    assert complexity(nn.Conv2d(3, 4, 5, padding=2), 8, 16) == (3 * 4 * 25 + 4, 3 * 4 * 25 * 8 * 16 / 1e9)
    assert complexity(OneAttention(), 8, 16) == (7, 2 * 3 * 4 * 4 * 16 / 1e9)


@pytest.mark.parametrize("written", [0, 3])
def test_a_ring_counts_as_full_and_the_model_stays_as_it_was(written: int) -> None:
    model = create_model("trans4pass_micro", 3, embed_dim=16, ecrm={"width": 16, "attention_width": 8, "bank_size": 4})
    model.context.ring.written.fill_(4)
    expected = complexity(model, 64, 64)
    model.context.ring.written.fill_(written)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert complexity(model, 64, 64) == expected
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
