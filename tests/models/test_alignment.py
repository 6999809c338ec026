import pytest
import torch

from trans4pass import create_model
from trans4pass.errors import ConfigError
from trans4pass.models import channel_statistics
from trans4pass.models.alignment import Alignment

MEAN, STD = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]


def image() -> torch.Tensor:
    picture = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5 + 0.2
    picture[0, :, :8] = 0  # the border of a panorama
    return picture


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_statistics_are_blended_and_black_pixels_neither_count_nor_change(strength: float) -> None:
    picture = image()
    aligned = Alignment(strength, MEAN, STD).double()(picture)
    assert (aligned[0, :, :8] == 0).all()
    for wanted, had, has in ((MEAN, 0, 0), (STD, 1, 1)):
        before = channel_statistics(picture)[had].flatten(1)
        after = channel_statistics(aligned)[has].flatten(1)
        assert torch.allclose(after, before + strength * (torch.tensor(wanted).double() - before), atol=1e-6)


def test_a_segmentor_aligns_before_it_normalises() -> None:
    torch.manual_seed(0)
    unaligned = create_model("trans4pass_micro", 3, embed_dim=16).eval()
    aligned = create_model("trans4pass_micro", 3, embed_dim=16, align=0.5, statistics={"mean": MEAN, "std": STD}).eval()
    assert unaligned.state_dict().keys() == aligned.state_dict().keys()  # statistics are settings, not weights
    aligned.load_state_dict(unaligned.state_dict())
    picture = image().float()
    assert torch.equal(aligned(picture).logits, unaligned(Alignment(0.5, MEAN, STD)(picture)).logits)


def test_strength_and_statistics_belong_together() -> None:
    with pytest.raises(ConfigError, match="needs the source's channel statistics"):
        create_model("trans4pass_micro", 3, align=0.5)
    with pytest.raises(ConfigError, match="needs the source's channel statistics"):
        create_model("trans4pass_micro", 3, align=0.5, statistics={})
    with pytest.raises(ConfigError, match="align must be in"):
        Alignment(1.5, MEAN, STD)
    with pytest.raises(ConfigError, match="3 channels"):
        Alignment(0.5, MEAN, [0.1, 0.2])
