"""N processes, one process with the N-fold batch, and accumulated batches: the same gradients and banks, in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from torch import nn

from trans4pass import create_model
from trans4pass.engine.trainer import Trainer
from trans4pass.losses import CrossEntropy, Dice, Focal, HardPixelCrossEntropy, WeightedSum
from trans4pass.methods import Adaptation, Method, Supervised

from .small import trainer_of

K = 4
BANKS = {"prototypes": {"update_every": 1, "momentum": 0.5}}
METHODS = {
    "cross-entropy": lambda net: Supervised(net, CrossEntropy()),
    "weighted cross-entropy": lambda net: Supervised(net, CrossEntropy([0.3, 1.7, 2.9, 11.1])),
    "focal": lambda net: Supervised(net, Focal()),
    "sum of hard-pixel and dice": lambda net: Supervised(
        net, WeightedSum({"hard": HardPixelCrossEntropy(0.5, 0), "dice": Dice()}, {"dice": 0.3})
    ),
    "edges and ecrm": lambda net: Supervised(net, CrossEntropy()),
    "warm-up": lambda net: Adaptation(net, CrossEntropy([0.3, 1.7, 2.9, 11.1]), lambda_adv=0.5),
    "mpa, fixed": lambda net: Adaptation(net, CrossEntropy(), 1, 1, 0.1, 1.0, 1.0, **BANKS),
}  # fmt: skip


def make(name: str, folder: Path, accumulate: int = 1) -> Trainer:
    """A trainer whose step takes the plain gradient from the weights; batch statistics and random layers are off."""
    torch.manual_seed(0)
    extra = {"ecrm": True, "edges": True} if "ecrm" in name else {}
    network = create_model("trans4pass_micro", K, embed_dim=16, drop_path=0.0, **extra)
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
        made.append(domains)
    return made


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        domain: {
            "image": torch.cat([part[domain]["image"] for part in parts]),
            "label": torch.cat([part[domain]["label"] for part in parts]),
            "name": [name for part in parts for name in part[domain]["name"]],
        }
        for domain in parts[0]
    }


def stepped(trainer: Trainer, micro_batches: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """All weights and buffers after one step."""
    trainer._call = trainer._wrap()
    trainer.train_step(micro_batches)
    return {key: value.clone() for key, value in trainer.method.state_dict().items()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    made = batches(4, 1)
    result = {name: stepped(make(name, Path(folder)), [made[rank]]) for name in METHODS}
    result |= {
        f"{name}, accumulated": stepped(make(name, Path(folder), 2), made[2 * rank : 2 * rank + 2])
        for name in METHODS
        if "ecrm" not in name
    }
    torch.save(result, Path(folder) / f"rank{rank}.pt")
    td.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
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
