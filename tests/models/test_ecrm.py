import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as td
from torch import Tensor

from trans4pass.models.ecrm import ECRM, PrototypeRing, prototypes

CHANNELS = (4, 6)


def small(classes: int = 3, bank_size: int = 4) -> ECRM:
    torch.manual_seed(0)
    return ECRM(CHANNELS, classes, width=8, attention_width=5, bank_size=bank_size).double()


def maps(batch: int = 2, seed: int = 0, size: tuple[int, int] = (5, 7)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, dim, *size, generator=generator, dtype=torch.float64) for dim in CHANNELS]


def prototypes_by_pixel(x: Tensor, coarse: Tensor) -> Tensor:
    """Weighted sums of the pixels' vectors, image by image and class by class."""
    out = torch.zeros(len(x), x.shape[1], coarse.shape[1], dtype=x.dtype)
    for n in range(len(x)):
        for k in range(coarse.shape[1]):
            weight = coarse[n, k].exp() / coarse[n, k].exp().sum()
            out[n, :, k] = sum(x[n, :, i, j] * weight[i, j] for i in range(x.shape[2]) for j in range(x.shape[3]))
    return out


def context_by_pixel(module: ECRM, x: Tensor, entries: list[Tensor]) -> Tensor:
    """Attention of every pixel over every vector of every entry; in eval mode, as BatchNorm then has no batch."""
    vectors = [entry[:, k] for entry in entries for k in range(entry.shape[1])]
    keys, values = (
        [conv(vector[None, :, None, None]).flatten() for vector in vectors] for conv in (module.phi, module.delta)
    )
    query = module.psi(x)
    out = torch.zeros_like(query)
    for n in range(len(x)):
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                weight = torch.stack([query[n, :, i, j] @ key for key in keys]).exp()
                out[n, :, i, j] = sum(w * value for w, value in zip(weight / weight.sum(), values))
    return module.rho(out)


@torch.no_grad()
def test_module_is_the_formula_while_its_bank_is_not_full() -> None:
    module = small()
    module(maps(3))
    module.eval()
    x = maps(seed=1)
    (first, enhanced), aux = module(x)
    coarse, projected = module.coarse(x[-1]), module.project(x[-1])
    context = context_by_pixel(module, projected, [*module.ring.bank[:3]])
    expected = module.fuse(torch.cat((projected, context), 1))
    assert int(module.ring.written) == 3
    assert first is x[0]
    assert context.abs().max() > 1e-3
    assert (enhanced - expected).abs().max() < 1e-10
    assert (aux["coarse"] - coarse).abs().max() < 1e-10
    assert module.channels == (4, 8)


def test_prototypes_are_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    x, coarse = (torch.randn(2, dim, 5, 7, generator=generator, dtype=torch.float64) for dim in (6, 3))
    assert (prototypes(x, coarse) - prototypes_by_pixel(x, coarse)).abs().max() < 1e-10


def test_training_writes_before_it_reads() -> None:
    module = small()
    batch = maps()
    x, coarse = module.project(batch[-1]), module.coarse(batch[-1])
    module(batch)
    expected = prototypes_by_pixel(x.detach(), coarse.detach())
    assert (module.ring.bank[:2] - expected).abs().max() < 1e-10
    assert (module.ring.bank[2:] == 0).all()


def entries(*numbers: float) -> Tensor:
    return torch.tensor(numbers).view(-1, 1, 1).expand(-1, 2, 3)


def held(ring: PrototypeRing) -> list[float]:
    return ring.bank[:, 0, 0].tolist()


def test_ring_overwrites_the_oldest() -> None:
    ring = PrototypeRing(3, 2, 3)
    assert ring.read().shape == (2, 0)
    ring.write(entries(1, 2))
    assert held(ring) == [1, 2, 0] and ring.read().tolist() == [[1, 1, 1, 2, 2, 2]] * 2
    ring.write(entries(3, 4))
    assert held(ring) == [4, 2, 3] and ring.read().shape == (2, 9)
    ring.write(entries(5, 6, 7, 8, 9))
    assert sorted(held(ring)) == [7, 8, 9]
    ring.write(entries(10))
    assert sorted(held(ring)) == [8, 9, 10]


def test_ring_refuses_what_is_not_finite() -> None:
    ring = PrototypeRing(3, 2, 3)
    ring.write(entries(1, float("nan"), 2, float("inf")))
    assert held(ring) == [1, 2, 0]
    assert int(ring.written) == 2


def test_vectors_keep_their_classes_order() -> None:
    ring = PrototypeRing(2, 2, 3)
    ring.write(torch.arange(6.0).view(1, 2, 3))
    assert ring.read().tolist() == [[0, 1, 2], [3, 4, 5]]


@torch.no_grad()
def test_evaluation_freezes_the_bank() -> None:
    module = small()
    module(maps())
    module.eval()
    before = copy.deepcopy(module.state_dict())
    first = module(maps(seed=1))[0][-1]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    alone = torch.cat([module([x[n : n + 1] for x in maps(seed=1)])[0][-1] for n in range(2)])
    assert (first - alone).abs().max() < 1e-10


@torch.no_grad()
def test_an_empty_bank_gives_no_context() -> None:
    module = small().eval()
    (_, enhanced), _ = module(maps())
    x = module.project(maps()[-1])
    assert (enhanced - module.fuse(torch.cat((x, torch.zeros_like(x)), 1))).abs().max() < 1e-10


def test_one_entry_of_one_class_trains() -> None:
    module = small(classes=1)
    (_, enhanced), _ = module(maps(1))
    enhanced.sum().backward()
    assert enhanced.isfinite().all()


def test_no_gradient_goes_through_the_bank() -> None:
    module = small()
    (_, enhanced), _ = module(maps())
    enhanced.square().sum().backward()
    assert not module.ring.bank.requires_grad
    # The prototypes are all that the coarse logits have to do with the enhanced map.
    assert module.coarse.weight.grad is None


def test_two_forwards_before_a_backward() -> None:
    module = small()
    sum(module(maps(1, seed=seed))[0][-1].sum() for seed in range(3)).backward()


def test_gradient_reaches_every_parameter() -> None:
    module = small()
    (_, enhanced), aux = module(maps())
    (enhanced.square().sum() + aux["coarse"].square().sum()).backward()
    assert all(parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize("steps", [1, 5])
def test_state_holds_the_bank(steps: int) -> None:
    module, other = small(), small()
    for seed in range(steps):
        module(maps(1, seed=seed))
    other.load_state_dict(module.state_dict())
    module(maps(seed=9)), other(maps(seed=9))
    assert torch.equal(module.ring.bank, other.ring.bank)
    assert torch.equal(module.eval()(maps(seed=1))[0][-1], other.eval()(maps(seed=1))[0][-1])


def write_as_rank(rank: int, folder: Path) -> None:
    td.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    ring = PrototypeRing(5, 2, 3)
    ring.write(entries(1 + rank, 3 + rank))
    ring.write(entries(5 + rank))
    torch.save(ring.state_dict(), folder / f"{rank}.pt")
    td.destroy_process_group()


def test_ranks_hold_the_same_ring(tmp_path: Path) -> None:
    # Forked, as importing the package anew takes each process seconds.
    torch.multiprocessing.start_processes(write_as_rank, (tmp_path,), nprocs=2, start_method="fork")
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    # The ranks' entries follow one another; the sixth overwrites the first.
    assert states[0]["bank"][:, 0, 0].tolist() == [6, 3, 2, 4, 5]
    assert int(states[0]["written"]) == 6
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
