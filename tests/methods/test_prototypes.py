import functools

import pytest
import torch

from trans4pass import dist
from trans4pass.methods import PrototypeBank


def image(rows: dict[int, list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """One-row image (1,2,1,n) whose pixel of class c has the feature rows[c]."""
    features = torch.tensor(list(rows.values())).T[None, :, None]  # n,2 -> 1,2,1,n
    return features, torch.tensor(list(rows))[None, None]


def start(bank: PrototypeBank, *domains: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """From the images, features and labels, of each domain."""
    sums = []
    for images in domains:
        zeros = torch.zeros(bank.prototypes.shape[0], bank.prototypes.shape[1] + 1)
        sums.append(functools.reduce(lambda state, image: bank.added(state, *image), images, zeros))
    bank.start(sums)


def started(flavour: str, momentum: float = 0.5, update_every: int = 1) -> PrototypeBank:
    bank = PrototypeBank(3, 2, flavour, momentum, update_every)
    start(bank, [image({0: [2.0, 4.0]})], [image({0: [4.0, 8.0], 1: [1.0, 1.0]})])
    return bank


def test_start_is_the_mean_of_domains_that_have_the_class() -> None:
    prototypes = started("fixed").prototypes
    assert prototypes[0].tolist() == [3.0, 6.0]
    assert prototypes[1].tolist() == [1.0, 1.0]
    assert prototypes[2].isnan().all()


def test_start_averages_per_image_means() -> None:
    bank = PrototypeBank(1, 2)
    one = (torch.tensor([[[[0.0, 2.0]], [[0.0, 2.0]]]]), torch.zeros(1, 1, 2, dtype=torch.long))  # mean (1,1)
    start(bank, [one, image({0: [5.0, 7.0]})])
    assert bank.prototypes.tolist() == [[3.0, 4.0]]


def test_fixed_moves_per_channel_keeps_unseen_and_clears() -> None:
    bank = started("fixed")
    bank.collect("source", *image({0: [1.0, 0.0]}))
    bank.collect("target", *image({0: [3.0, 2.0], 2: [5.0, 7.0]}))
    assert bank.after_step(0)
    assert bank.prototypes[0].tolist() == [2.5, 3.5]  # half of (3,6) and half of the mean (2,1)
    assert bank.prototypes[1].tolist() == [1.0, 1.0]
    assert bank.prototypes[2].tolist() == [5.0, 7.0]  # its first sight
    assert bank.collections.sum() == 0


def test_paper_keeps_what_it_collected() -> None:
    bank = started("paper")
    for value in (1.0, 3.0):
        bank.collect("source", *image({0: [value, value]}))
        bank.after_step(0)
    # First centre 1, then the mean of 1 and 3: ((3,6)/2 + 1/2)/2 + 2/2
    assert bank.prototypes[0].tolist() == [2.0, 2.75]


def test_official_spreads_a_scalar_and_lets_rare_classes_decay() -> None:
    bank = started("official")
    bank.collect("source", *image({0: [1.0, 3.0], 1: [9.0, 9.0]}))
    bank.collect("target", *image({0: [5.0, 7.0]}))
    bank.after_step(0)
    assert bank.prototypes[0].tolist() == [3.5, 5.0]  # (3,6)/2 + scalar 4/2
    assert bank.prototypes[1].tolist() == [0.5, 0.5]  # one mean only: towards 0


def test_micro_batches_of_a_step_are_one_batch() -> None:
    split, whole = started("fixed"), started("fixed")
    split.collect("source", *image({0: [1.0, 0.0]}))
    split.collect("source", *image({0: [3.0, 2.0]}))
    features = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]])
    whole.collect("source", features, torch.zeros(1, 1, 2, dtype=torch.long))
    split.after_step(0), whole.after_step(0)
    assert torch.equal(split.prototypes[:2], whole.prototypes[:2])


def test_updates_come_every_so_many_steps() -> None:
    bank = started("fixed", update_every=3)
    updates = []
    for step in range(6):
        bank.collect("source", *image({0: [1.0, 1.0]}))
        updates.append(bank.after_step(step))
    assert updates == [False, False, True, False, False, True]


def test_a_discarded_step_leaves_nothing() -> None:
    bank = started("fixed")
    bank.collect("source", *image({0: [9.0, 9.0]}))
    bank.discard_step()
    bank.after_step(0)
    assert bank.prototypes[0].tolist() == [3.0, 6.0]


def test_by_itself_it_moves_by_a_thousandth_every_hundred_steps() -> None:
    bank = PrototypeBank(1, 2)
    start(bank, [image({0: [2.0, 4.0]})])
    bank.collect("source", *image({0: [1.0, 1.0]}))
    assert [step for step in range(200) if bank.after_step(step)] == [99, 199]
    assert bank.prototypes.tolist() == [pytest.approx([1.999, 3.997])]


def test_half_precision_features_are_summed_in_single() -> None:
    """600 pixels of 300 are more than half precision can hold."""
    features, labels = torch.full((1, 2, 20, 30), 300.0, dtype=torch.float16), torch.zeros(1, 20, 30, dtype=torch.int64)
    bank = PrototypeBank(1, 2, momentum=0.0, update_every=1)
    start(bank, [(features, labels)])
    assert bank.prototypes.tolist() == [[300, 300]]
    bank.collect("source", features, labels)
    bank.after_step(0)
    assert bank.prototypes.tolist() == [[300, 300]]


def test_prototypes_hold_no_graph() -> None:
    features, labels = image({0: [2.0, 4.0]})
    features.requires_grad_()
    bank = PrototypeBank(1, 2, update_every=1)
    start(bank, [(features, labels)])
    bank.collect("source", features, labels)
    bank.after_step(0)
    assert not any(buffer.requires_grad for buffer in bank.buffers())


def test_ranks_means_are_weighed_by_what_they_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second rank that saw the same doubles sums and counts, which leaves all means."""
    alone = started("fixed")
    monkeypatch.setattr(dist, "sum_", lambda tensor: tensor.mul_(2))
    both = started("fixed")
    assert torch.equal(both.prototypes[:2], alone.prototypes[:2])
    for bank in (alone, both):
        bank.collect("source", *image({0: [1.0, 0.0]}))
    both.after_step(0)
    monkeypatch.undo()
    alone.after_step(0)
    assert torch.equal(both.prototypes[:2], alone.prototypes[:2])
    assert both.prototypes[0].tolist() == [2.0, 3.0]


@pytest.mark.parametrize(("momentum", "expected"), [(0, [1.0, 0.0]), (1, [3.0, 6.0])])
def test_prototypes_may_follow_at_once_or_stay(momentum: int, expected: list[float]) -> None:
    bank = started("fixed", momentum)
    bank.collect("source", *image({0: [1.0, 0.0]}))
    bank.after_step(0)
    assert bank.prototypes[0].tolist() == expected
