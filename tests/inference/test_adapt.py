"""Adaptation at test time: BatchNorms take the images' statistics, and nothing else of a checkpoint changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.data.tiny_images import picture, save
from tests.small import Pixelwise, label_space, tiny_segmentor, various_network
from tests.training.small import in_two_processes
from trans4pass.errors import ConfigError
from trans4pass.inference import open_checkpoint
from trans4pass.inference.adapt import adapt, adapt_batchnorms
from trans4pass.interrupts import Interrupts
from trans4pass.training import checkpoint

SPACE = label_space(["road", "sky", "car"])
STATISTICS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3]}
BATCHES = [torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint `last.pt` and three images."""
    images = torch.stack([torch.from_numpy(picture(seed, (64, 32))).permute(2, 0, 1) for seed in range(3)])
    state = {f"network.{key}": value for key, value in various_network(3, images).state_dict().items()}
    model = {"_target_": "trans4pass.create_model", "name": "trans4pass_micro", "embed_dim": 16}
    content = {"method": state, "model": {**model, "statistics": STATISTICS}, "labels": SPACE.to_dict()}
    checkpoint.save(content, tmp_path / "last.pt")
    for seed in range(3):
        save(tmp_path / f"images/{seed}.png", picture(seed, (64, 32)))
    return tmp_path


def run(folder: Path, **settings: Any) -> None:
    places = {"checkpoint": folder / "last.pt", "input": folder / "images", "output": folder / "adapted.safetensors"}
    adapt({**{key: str(path) for key, path in places.items()}, **settings}, torch.device("cpu"), Interrupts())


def opened(path: Path, **settings: Any) -> Any:
    return open_checkpoint(path, **settings)[0]


def count_batchnorms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_batchnorms_have_the_mean_statistics_of_all_images() -> None:
    network = tiny_segmentor(3)
    first, outputs = network.encoder.levels[0], []
    first[0].register_forward_hook(lambda *arguments: outputs.append(arguments[2]))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert adapt_batchnorms(network, BATCHES) == count_batchnorms(network) > 4
    mean = torch.stack([x.mean((0, 2, 3)) for x in outputs]).mean(0)
    variance = torch.stack([x.var((0, 2, 3)) for x in outputs]).mean(0)
    assert torch.allclose(first[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(first[1].running_var, variance, atol=1e-6)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    others = {key: value for key, value in network.state_dict().items() if not key.endswith(statistics)}
    assert all(torch.equal(value, before[key]) for key, value in others.items())  # ECRM's ring is one of them
    assert not any(module.training for module in network.modules()) and first[1].momentum == 0.1


def statistics_of_ranks(rank: int, folder: str) -> dict[str, torch.Tensor]:
    network = tiny_segmentor(3)
    adapt_batchnorms(network, BATCHES if rank == 0 else [])
    return {key: value for key, value in network.state_dict().items() if "running" in key}


def test_ranks_weigh_by_what_they_have_seen(tmp_path: Path) -> None:
    """One may have seen nothing."""
    network = tiny_segmentor(3)
    adapt_batchnorms(network, BATCHES)
    for found in in_two_processes(statistics_of_ranks, tmp_path):
        for key, value in found.items():
            assert torch.allclose(value, network.state_dict()[key], atol=1e-6), key


def test_a_network_without_batchnorm_is_refused() -> None:
    with pytest.raises(ConfigError, match="no BatchNorm, so that nothing adapts: use align instead"):
        adapt_batchnorms(Pixelwise(), BATCHES)  # pyright: ignore[reportArgumentType]


def test_what_is_written_is_the_checkpoint_with_other_statistics(folder: Path, capsys: pytest.CaptureFixture) -> None:
    run(folder, align=0.5)
    count = count_batchnorms(opened(folder / "last.pt"))
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"{count} BatchNorm layers re-estimated on 3 images, align=0.5" and told[-2].startswith("wrote ")
    before, after = opened(folder / "last.pt"), opened(folder / "adapted.safetensors")
    assert before.alignment is None and after.alignment.strength == 0.5
    assert after.alignment.mean.flatten().tolist() == pytest.approx(STATISTICS["mean"])
    changed = {key for key, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[key])}
    assert changed and {key.rpartition(".")[2] for key in changed} == {
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip


def test_alignment_alone_changes_no_weight(folder: Path) -> None:
    run(folder, align=0.5, batchnorm=False)
    before, after = opened(folder / "last.pt"), opened(folder / "adapted.safetensors")
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in after.state_dict().items())
    assert after.alignment is not None


def test_alignment_needs_a_checkpoint_that_knows_its_sources_colours(folder: Path) -> None:
    content = checkpoint.load(folder / "last.pt")
    del content["model"]["statistics"]
    checkpoint.save(content, folder / "last.pt")
    with pytest.raises(ConfigError, match="does not hold the source's channel statistics"):
        run(folder, align=0.5)
