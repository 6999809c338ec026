"""Two processes against one: gradients and banks in float64, skipped steps, scores, BatchNorm's statistics, files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as td
from torch import Tensor, nn

from tests.small import InMemory, Pixelwise, label_space, tiny_segmentor
from trans4pass import create_model
from trans4pass.data import Compose, GaussianNoise, MaskedPatches, YawRoll
from trans4pass.inference import Predictor, evaluate
from trans4pass.inference.metrics import Regions
from trans4pass.losses import CrossEntropy, Dice, Focal, HardPixelCrossEntropy, WeightedSum
from trans4pass.methods import (
    Adversarial,
    ChannelStyle,
    ClassMix,
    Entropy,
    FourierStyle,
    MeanTeacher,
    Method,
    PrototypeBank,
    PrototypeContrast,
    PrototypeDistillation,
    Segmentation,
    SumOfTerms,
    Viewed,
)
from trans4pass.training import Trainer

from . import test_skip, test_trainer
from .small import in_processes, in_two_processes, supervised, trainer_of

K = 4
WEIGHTS = [0.3, 1.7, 2.9, 11.1]
METHODS = {
    "cross-entropy": supervised,
    "weighted cross-entropy": lambda net: supervised(net, CrossEntropy(WEIGHTS)),
    "focal": lambda net: supervised(net, Focal()),
    "sum of hard-pixel and dice": lambda net: supervised(
        net, WeightedSum({"hard": HardPixelCrossEntropy(0.5, 0), "dice": Dice()}, {"dice": 0.3})
    ),
    "edges and ecrm": supervised,
    "warm-up": lambda net: SumOfTerms(
        net, {"supervised": Segmentation(net, CrossEntropy(WEIGHTS)), "adversarial": Adversarial(net, 0.5)}
    ),
    "mpa, fixed": lambda net: SumOfTerms(
        net,
        {
            "supervised": Segmentation(net, CrossEntropy()),
            "self_training": Segmentation(net, CrossEntropy(), "target"),
            "adversarial": Adversarial(net, 0.1),
            "prototypes": PrototypeDistillation(net, 1.0, update_every=1, momentum=0.5),
        },
    ),
    "teacher": lambda net: MeanTeacher(
        net,
        {
            "supervised": Segmentation(net, CrossEntropy()),
            "self_training": Segmentation(net, CrossEntropy(), "target"),
            "mixed": Segmentation(net, CrossEntropy(), "mixed"),
            "contrast": PrototypeContrast(net, 1.0),
            "entropy": Entropy(net, 0.1),
        },
        derive={
            "source": FourierStyle(beta=0.1),
            "styled": ChannelStyle("source"),
            "target": Viewed("target", Compose({"roll": YawRoll(), "noise": GaussianNoise(), "mask": MaskedPatches()})),
            "mixed": ClassMix("styled"),
        },
        threshold=0.3,
        momentum=0.5,
        balanced=True,
        views=2,
    ),
}


def make(name: str, folder: Path, accumulate: int = 1) -> Trainer:
    """A trainer whose step takes the plain gradient from the weights; batch statistics and random layers are off."""
    torch.manual_seed(0)
    if name in ("cross-entropy", "edges and ecrm"):  # whose parameters have to be found by DDP; others are about losses
        extra = {"ecrm": True, "edges": True} if "ecrm" in name else {}
        network = create_model("trans4pass_micro", K, embed_dim=16, drop_path=0.0, **extra)
    else:
        network = tiny_segmentor(K, ecrm=False)
    method: Method = METHODS[name](network).double()
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train = lambda mode=True, module=module: module
            module.eval()
            module.training = False
    for key, buffer in method.named_buffers():
        if key.endswith("bank.prototypes"):
            buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return trainer_of(method, folder, accumulate=accumulate)


def batches(count: int, size: int) -> list[dict[str, Any]]:
    """`count` batches of both domains that differ in their number of ignored pixels."""
    generator, made = torch.Generator().manual_seed(5), []
    for number in range(count):
        domains = {}
        for domain in ("source", "target"):
            images = torch.rand(size, 3, 64, 64, generator=generator, dtype=torch.float64)
            labels = (
                torch.randint(0, K, (size, 16, 16), generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2)
            )
            labels[:, : 7 + 20 * number] = 255
            domains[domain] = {"image": images, "label": labels, "name": [f"{domain}{number}"] * size}
            domains[domain]["seed"] = torch.arange(size) + 10 * number
        made.append(domains)
    return made


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        domain: {
            "image": torch.cat([part[domain]["image"] for part in parts]),
            "label": torch.cat([part[domain]["label"] for part in parts]),
            "name": [name for part in parts for name in part[domain]["name"]],
            "seed": torch.cat([part[domain]["seed"] for part in parts]),
        }
        for domain in parts[0]
    }


def stepped(trainer: Trainer, micro_batches: list[dict[str, Any]]) -> dict[str, Tensor]:
    """All weights and buffers after one step."""
    trainer._parallel = trainer.parallel()
    trainer.train_step(micro_batches)
    return {key: value.clone() for key, value in trainer.method.state_dict().items()}


def steps_of(rank: int, folder: Path) -> dict[str, dict[str, Tensor]]:
    made = batches(4, 1)
    result = {name: stepped(make(name, folder), [made[rank]]) for name in METHODS}
    return result | {
        f"{name}, accumulated": stepped(make(name, folder, 2), made[2 * rank : 2 * rank + 2])
        for name in METHODS
        if "ecrm" not in name
    }


def poisoned(rank: int, folder: Path) -> list[dict[str, Any]]:
    """Rank 1 gets an image that is not finite, of each domain in turn.

    Memory before and after the skipped step, after the step behind it, and after that step without a skip.
    """
    results = []
    for domain in ("source", "target"):
        trainer, twin = test_skip.make(folder), test_skip.make(folder)
        for each in (trainer, twin):
            each._parallel = each.parallel()
            each.train_step([test_skip.batch(rank)])
        states = {"before": test_skip.memory(trainer)}
        trainer.train_step([test_skip.batch(2 + rank, domain if rank == 1 else None)])
        states["after"] = test_skip.memory(trainer)
        for each in (trainer, twin):
            each.train_step([test_skip.batch(4 + rank)])
        results.append(
            {**states, "next": test_skip.memory(trainer), "twin": test_skip.memory(twin), "skipped": trainer.skipped}
        )
    return results


SPACE = label_space(["road", "sky", "car"])


def scored(rank: int, folder: Path) -> dict[str, Any]:
    """A set of three images: the first process has two of them. Parts of panoramas: each process has one panorama."""
    confusion = evaluate(Predictor(Pixelwise(), torch.device("cpu")), InMemory(SPACE, 3), SPACE)
    regions, sample = Regions(3), InMemory(SPACE, 2)[rank]
    regions.update(sample["label"], sample["image"][1].long() % 3)
    return {"counts": confusion.counts, "regions": regions.scores()}


def fitted(rank: int, folder: Path) -> dict[str, Any]:
    """A step that is saved, one that is evaluated, in a folder of the rank's own: BatchNorm's statistics by place."""
    seen: dict[str, Any] = {}

    def note(place: str) -> None:
        buffers = trainer.method.network.named_buffers()
        seen[f"{place} {trainer.step}"] = torch.cat([buffer for name, buffer in buffers if "running" in name])

    def evaluate(model: nn.Module, step: int, final: bool) -> dict[str, float]:
        note("evaluated")
        return {"source": 1.0}

    def batches(start: int) -> Iterator[dict[str, Any]]:
        return iter([test_skip.batch(rank), test_skip.batch(rank + 2)])

    method, place = supervised(tiny_segmentor(test_skip.K)), folder / f"rank{rank}"
    trainer = trainer_of(method, place, batches, evaluate, judge="source", steps=2, checkpoint_every=1)
    save, share = trainer.save, trainer.share_statistics
    trainer.save = lambda: (save(), note("saved"))
    trainer.share_statistics = lambda: (note("forward"), share())  # the trainer counts a step after it
    trainer.fit()
    return {**seen, "files": sorted(path.name for path in place.iterdir())}


def counted(rank: int, folder: Path) -> float:
    """A buffer that each rank moves by itself: from 10 * rank by one forward."""
    trainer = test_trainer.make(folder)
    trainer.method.network.forwards.fill_(10 * rank)
    trainer._parallel = trainer.parallel()
    trainer.train_step([test_trainer.batch(rank)])
    return trainer.method.network.forwards.item()


def exchanges(rank: int, folder: Path) -> dict[str, list[int]]:
    """What is exchanged in three steps, without gradients and BatchNorms' statistics, which only CPUs exchange."""
    counts: dict[str, list[int]] = {}
    for name in METHODS:
        trainer, numbers = make(name, folder), []
        for term in getattr(trainer.method, "terms", {}).values():
            if isinstance(term, PrototypeDistillation):
                term.bank.update_every = 3
        trainer._parallel, trainer.share_statistics = trainer.parallel(), lambda: None
        for _ in range(3):
            with (
                mock.patch("torch.distributed.all_reduce", wraps=td.all_reduce) as reduced,
                mock.patch("torch.distributed.all_gather", wraps=td.all_gather) as gathered,
            ):
                trainer.train_step([batches(2, 1)[rank]])
            trainer.step += 1
            numbers.append(reduced.call_count + gathered.call_count)
        counts[name] = numbers
    return counts


def interrupted(rank: int, folder: Path) -> list[dict[str, Tensor]]:
    """A bank after six steps: at once, and with checkpoints after the second and the fifth."""
    banks = []
    for checkpoints in ((), (1, 4)):
        bank, generator = PrototypeBank(K, 8, update_every=3), torch.Generator().manual_seed(rank)
        for step in range(6):
            features = torch.randn(2, 8, 4, 4, generator=generator)
            bank.collect("source", features, torch.randint(K, (2, 4, 4), generator=generator))
            bank.after_step(step)
            if step in checkpoints:
                bank.share()
                state = bank.state_dict()
                bank = PrototypeBank(K, 8, update_every=3)
                bank.load_state_dict(state)
        banks.append(bank.state_dict())
    return banks


def work(rank: int, folder: str) -> dict[str, Any]:
    checks = (steps_of, poisoned, scored, fitted, counted, exchanges, interrupted)
    return {check.__name__: check(rank, Path(folder)) for check in checks}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found; they are started once, which takes longer than all that they do."""
    return in_two_processes(work, tmp_path_factory.mktemp("ranks"))


@pytest.fixture
def ranks(both: list[dict[str, Any]]) -> list[dict[str, dict[str, Tensor]]]:
    return [rank["steps_of"] for rank in both]


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(
        (one[key].double() - other[key].double()).nan_to_num().abs().max().item() for key in one if one[key].numel()
    )


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one_with_twice_the_batch(name: str, ranks: list, tmp_path: Path) -> None:
    whole = stepped(make(name, tmp_path), [joined(batches(4, 1)[:2])])
    assert difference(whole, stepped(make(name, tmp_path), [joined(batches(4, 1)[1:3])])) > 1e-4, "insensitive"
    assert difference(ranks[0][name], ranks[1][name]) == 0
    assert difference(ranks[0][name], whole) < 1e-10


@pytest.mark.parametrize("name", [name for name in METHODS if "ecrm" not in name and name != "focal"])
def test_accumulation_over_two_processes_equals_one_batch(name: str, ranks: list, tmp_path: Path) -> None:
    """Focal is left out: its factor is each micro-batch's own (see `Focal`)."""
    whole = stepped(make(name, tmp_path), [joined(batches(4, 1))])
    assert difference(ranks[0][f"{name}, accumulated"], whole) < 1e-10
    assert difference(stepped(make(name, tmp_path, 4), batches(4, 1)), whole) < 1e-10


def test_a_step_that_one_process_cannot_make_is_skipped_by_both(both: list) -> None:
    for states in [states for rank in both for states in rank["poisoned"]]:
        assert states["skipped"] == 1
        assert test_skip.differences(states["before"], states["after"]) == []
        assert test_skip.differences(states["twin"], states["next"]) == []
        assert len(test_skip.differences(states["before"], states["next"])) > 50
    for first, second in zip(both[0]["poisoned"], both[1]["poisoned"]):
        assert test_skip.differences(first["next"], second["next"]) == []


def test_two_processes_score_as_one(both: list) -> None:
    whole = scored(0, Path())
    for rank in both:
        assert torch.equal(rank["scored"]["counts"], whole["counts"])
    regions = Regions(3)
    for sample in InMemory(SPACE, 2).samples:
        regions.update(sample["label"], sample["image"][1].long() % 3)
    assert both[0]["scored"]["regions"] == both[1]["scored"]["regions"] == regions.scores()
    assert regions.scores() != whole["regions"]


@pytest.mark.parametrize("name", METHODS)
def test_a_step_has_one_small_exchange(name: str, both: list) -> None:
    """What its losses divide by. Banks are brought together when they move; a few options need one more each time."""
    more = {"focal": 1, "edges and ecrm": 1, "teacher": 1}.get(name, 0)  # its mean; the ring's entries; confidences
    banks = 1 if name in ("mpa, fixed", "teacher") else 0
    assert both[0]["exchanges"][name] == both[1]["exchanges"][name] == [1 + more, 1 + more, 1 + more + banks]


def test_a_bank_moves_alike_with_and_without_checkpoints(both: list) -> None:
    states = [state for rank in both for state in rank["interrupted"]]
    for state in states:
        assert all(torch.equal(state[key], states[0][key]) for key in state)
    assert states[0]["prototypes"].isfinite().all()


def test_batchnorms_statistics_are_averaged_after_each_step(both: list) -> None:
    first, second = (rank["fitted"] for rank in both)
    for step, places in ((1, ["saved 1"]), (2, ["evaluated 2", "saved 2"])):
        one, other = (rank[f"forward {step - 1}"] for rank in (first, second))
        assert (one - other).abs().max() > 1e-3
        for place in places:
            assert torch.equal(first[place], second[place])
            assert (first[place] - (one + other) / 2).abs().max() < 1e-6


def test_other_buffers_stay_each_ranks_own(both: list) -> None:
    assert [rank["counted"] for rank in both] == [1, 11]


def test_the_first_process_writes_for_both(both: list) -> None:
    assert {"best.pt", "last.pt", "tensorboard"} <= set(both[0]["fitted"]["files"])
    assert both[1]["fitted"]["files"] == []


def stopped(rank: int, folder: str) -> list[dict[str, Tensor]]:
    """Three steps at once, and one that two more follow in a trainer of their own."""
    torch.use_deterministic_algorithms(True)
    made = [batches(3, 1)[rank]] * 3

    def fitted(place: str, steps: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        method = supervised(create_model("trans4pass_micro", K, embed_dim=16))
        trainer = trainer_of(method.double(), Path(folder, place), lambda start: iter(made[start:]), steps=steps)
        trainer.fit()
        return method.state_dict()

    whole = fitted("whole", 3)
    fitted("stopped", 1)
    td.barrier()  # the first one has written what all read
    return [whole, fitted("stopped", 3)]


@pytest.mark.slow
def test_three_deterministic_processes_go_on_to_the_same_digits(tmp_path: Path) -> None:
    """Of two the sums do not depend on the order of the gradients."""
    for whole, resumed in in_processes(3, stopped, tmp_path):
        assert [key for key in whole if not torch.equal(whole[key], resumed[key])] == []
