"""on_nonfinite=skip with all that remembers: Adam, BatchNorm, prototypes, ECRM's ring, a loss that counts its steps."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.small import tiny_segmentor
from trans4pass.losses import CrossEntropy, HardPixelCrossEntropy
from trans4pass.methods import Adversarial, Discriminator, PrototypeDistillation, Segmentation, SumOfTerms
from trans4pass.training import Trainer, checkpoint

from .small import trainer_of

K = 4


def make(folder: Path, accumulate: int = 1) -> Trainer:
    """MPA with all its terms on a tiny network with ECRM."""
    network = tiny_segmentor(K)
    terms = {
        "supervised": Segmentation(network, HardPixelCrossEntropy(0.5, 100)),
        "self_training": Segmentation(network, CrossEntropy(), "target"),
        "adversarial": Adversarial(network, 0.1),
        "prototypes": PrototypeDistillation(network, 0.5, update_every=2, momentum=0.5),
    }
    terms["adversarial"].discriminator = Discriminator(K, width=2)
    terms["prototypes"].bank.prototypes.normal_(generator=torch.Generator().manual_seed(1))
    adam = partial(torch.optim.Adam, lr=1e-3)
    return trainer_of(SumOfTerms(network, terms), folder, optimizer=adam, accumulate=accumulate, on_nonfinite="skip")


def batch(number: int, poison: str | None = None) -> dict[str, Any]:
    """One image of each domain, the poisoned domain's with a pixel that is not a number."""
    generator = torch.Generator().manual_seed(number)
    domains = {}
    for domain in ("source", "target"):
        label = torch.randint(0, K, (1, 4, 8), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
        image = torch.rand(1, 3, 32, 64, generator=generator)
        domains[domain] = {"image": image, "label": label, "name": [f"{domain}{number}"]}
    if poison is not None:
        domains[poison]["image"][0, 0, 7, 7] = torch.nan
    return domains


def memory(trainer: Trainer) -> dict[str, Any]:
    """All that the next step depends on, the step's own sums included."""
    trainer.method.before_checkpoint()
    state = {key: trainer.state()[key] for key in ("method", "optimizers", "scaler")}
    return copy.deepcopy({**state, "sums": dict(trainer.method.terms["prototypes"].bank._step)})


def test_a_checkpoint_has_what_the_bank_collected(tmp_path: Path) -> None:
    """Though it moves only in the step after."""
    trainer = make(tmp_path)
    trainer.train_step([batch(0)])
    trainer.step = 1
    trainer.save()
    bank = trainer.method.terms["prototypes"].bank
    kept = checkpoint.load(tmp_path / "last.pt")["method"]["terms.prototypes.bank.collections"]
    assert torch.equal(kept, bank.collections)
    assert kept.sum() > 0


def differences(one: Any, other: Any, where: str = "", tolerance: float = 0.0) -> list[str]:
    """Where two nested states are further apart than the tolerance."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [place for key in one for place in differences(one[key], other[key], f"{where}/{key}", tolerance)]
    if isinstance(one, list | tuple):
        pairs = enumerate(zip(one, other, strict=True))
        return [place for number, pair in pairs for place in differences(*pair, f"{where}/{number}", tolerance)]
    if not isinstance(one, Tensor):
        return [] if one == other else [where]
    apart = (one.nan_to_num().double() - other.nan_to_num().double()).abs()
    return [where] if (apart > tolerance).any() else []


@pytest.mark.parametrize(
    ("accumulate", "poisons"),
    [(1, ["source"]), (1, ["target"]), (2, [None, "source"]), (2, [None, "target"]), (2, ["target", None])],
    ids=str,
)
def test_a_skipped_step_leaves_everything_as_it_was(
    accumulate: int, poisons: list[str | None], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """And the step after it is the one that there would have been without it."""
    trainer, twin = make(tmp_path, accumulate), make(tmp_path, accumulate)
    good = [[batch(10 * step + number) for number in range(accumulate)] for step in range(2)]
    for each in (trainer, twin):
        each.train_step(good[0])
    before = memory(trainer)
    assert float(before["method"]["network.context.ring.written"]) == 2 * accumulate
    assert before["method"]["terms.prototypes.bank.collections"].sum() > 0
    trainer.train_step([batch(20 + number, poison) for number, poison in enumerate(poisons)])
    assert trainer.skipped == 1
    assert differences(before, memory(trainer)) == []
    assert all(parameter.grad is None for parameter in trainer.method.parameters())
    for each in (trainer, twin):
        each.train_step(good[1])
    assert differences(memory(twin), memory(trainer)) == []
    assert len(differences(before, memory(trainer))) > 50
    assert not recwarn.list


def test_a_gradient_that_is_not_finite_is_skipped_alike(tmp_path: Path) -> None:
    """Known after all forwards only, whose statistics and prototypes are taken back."""
    trainer = make(tmp_path)
    trainer.train_step([batch(0)])
    before = memory(trainer)
    for module in trainer.method.trained_modules().values():
        handle = next(module.parameters()).register_hook(lambda gradient: gradient / 0)
        trainer.train_step([batch(1)])
        handle.remove()
        assert differences(before, memory(trainer)) == []
    assert trainer.skipped == 2


def test_a_ring_that_a_left_out_step_filled_is_not_full(tmp_path: Path) -> None:
    network = tiny_segmentor(4)
    method = SumOfTerms(network, {"supervised": Segmentation(network, CrossEntropy())})
    trainer = trainer_of(method, tmp_path, on_nonfinite="skip")
    ring = network.context.ring
    ring.write(torch.rand(2, *ring.bank.shape[1:]))
    kept = trainer.kept_buffers()
    ring.write(torch.rand(len(ring.bank), *ring.bank.shape[1:]))
    assert ring.filled() == len(ring.bank)
    trainer.leave_out(kept)
    assert ring.filled() == 2
