"""The loop on a method small enough to follow: accumulation, guards, optimisers, resume."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trans4pass.engine.interrupt import Interrupted, Interrupts
from trans4pass.engine.schedule import make_schedule
from trans4pass.engine.trainer import NonFinite, Trainer, TrainerSettings, step_seed
from trans4pass.errors import ConfigError, DataError
from trans4pass.losses import CrossEntropy
from trans4pass.methods import Supervised
from trans4pass.models import SegOutput


class Network(nn.Module):
    """Per-pixel logits, a buffer that each forward moves, and dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.has_edges = self.wrap = False
        self.head = nn.Conv2d(3, 2, 1, dtype=torch.float64)
        self.drop = nn.Dropout(dropout)
        self.register_buffer("forwards", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> SegOutput:
        if self.training:
            self.forwards += 1
        features = self.drop(images.double())
        return SegOutput(self.head(features), features, {})


def batch(number: int, size: int, poison: int | None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(size, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (size, 4, 4), generator=generator)
    labels[:, : 1 + number % 3] = 255  # batches differ in their number of labelled pixels
    if number == poison:
        images[0, 0, 3, 3] = torch.nan
    return {"source": {"image": images, "label": labels, "name": [f"image{number}_{i}" for i in range(size)]}}


def make(
    folder: Path, steps: int = 4, size: int = 2, poison: int | None = None, dropout: float = 0.0, **settings: Any
) -> Trainer:
    accumulate = settings.get("accumulate", 1)

    def batches(step: int) -> Iterator[dict[str, Any]]:
        number = step * accumulate
        while True:
            yield batch(number, size, poison)
            number += 1

    method = Supervised(Network(dropout), CrossEntropy([1.0, 3.0]))
    folder.mkdir(exist_ok=True)
    return Trainer(
        "source",
        method,
        {"network": torch.optim.SGD(method.network.parameters(), 0.5, momentum=0.9)},
        make_schedule("poly", steps, power=1.0),
        batches,
        lambda trainer, final: {"source": float(trainer.step)},
        TrainerSettings(steps=steps, **settings),
        folder,
        torch.device("cpu"),
        Interrupts(),
        {},
    )


def trained(trainer: Trainer) -> dict[str, torch.Tensor]:
    trainer.fit(lambda: None)
    return {key: value.clone() for key, value in trainer.method.state_dict().items()}


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    """Gradients agree to 1e-10 in float64, although the micro-batches differ in their labelled pixels."""
    small, large = make(tmp_path / "a", accumulate=2), make(tmp_path / "b")
    micro = [batch(0, 2, None), batch(1, 2, None)]
    whole = {
        "source": {
            "image": torch.cat([part["source"]["image"] for part in micro]),
            "label": torch.cat([part["source"]["label"] for part in micro]),
            "name": [],
        }
    }
    values = [small.train_step(micro), large.train_step([whole])]
    assert values[0]["source/seg"] == pytest.approx(values[1]["source/seg"], abs=1e-12)
    weights = [trainer.method.network.head.weight for trainer in (small, large)]
    assert (weights[0] - weights[1]).abs().max() < 1e-10


def test_learning_rates_follow_the_schedule(tmp_path: Path) -> None:
    trainer = make(tmp_path / "a", steps=4)
    rates = []
    for _ in range(4):
        rates.append(trainer.optimizers["network"].param_groups[0]["lr"])
        trainer.train_step([batch(0, 2, None)])
    assert rates == pytest.approx([0.5, 0.375, 0.25, 0.125])


def test_a_non_finite_loss_stops_with_step_term_and_files(tmp_path: Path) -> None:
    trainer = make(tmp_path / "a", poison=2)
    with pytest.raises(NonFinite, match=r"stage source, step 2: source/seg .*image2_0, image2_1.*on_nonfinite=skip"):
        trainer.fit(lambda: None)


def test_a_skipped_step_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make(tmp_path / "a", poison=0, on_nonfinite="skip")
    before = {key: value.clone() for key, value in trainer.method.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        trainer.train_step([batch(0, 2, 0)])
    assert all(torch.equal(before[key], value) for key, value in trainer.method.state_dict().items())
    assert not trainer.optimizers["network"].state
    assert trainer.skipped == 1
    assert "image0_0" in caplog.text
    trainer.train_step([batch(1, 2, None)])
    assert trainer.method.network.forwards == 1


def test_a_gradient_that_is_not_finite_is_caught_too(tmp_path: Path) -> None:
    trainer = make(tmp_path / "a")
    trainer.method.network.head.weight.register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(NonFinite, match="gradient of network"):
        trainer.train_step([batch(0, 2, None)])


def test_a_skip_with_float16_can_be_followed_by_a_step(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    trainer = make(tmp_path / "a", precision="fp16", on_nonfinite="skip")
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)  # no scale left to lower
    handle = trainer.method.network.head.weight.register_hook(lambda grad: grad * torch.inf)
    before = trainer.method.network.head.weight.clone()
    trainer.train_step([batch(0, 2, None)])
    assert trainer.skipped == 1
    assert torch.equal(before, trainer.method.network.head.weight)
    handle.remove()
    trainer.train_step([batch(1, 2, None)])
    assert not torch.equal(before, trainer.method.network.head.weight)
    assert not recwarn.list


def test_steps_that_loss_scaling_leaves_out_give_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """The first ones with fp16 always are: its scale starts too high."""
    trainer = make(tmp_path / "a", precision="fp16")
    trainer.method.network.head.weight.register_hook(lambda grad: grad * torch.inf)
    before = trainer.method.network.head.weight.clone()
    for number in range(2):
        trainer.train_step([batch(number, 2, None)])
        trainer.step += 1
    assert torch.equal(before, trainer.method.network.head.weight)
    assert trainer.scaler.get_scale() == 2.0**14
    assert not recwarn.list


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    free, clipped = make(tmp_path / "a"), make(tmp_path / "b", clip_grad=0.01)
    moved = []
    for trainer in (free, clipped):
        before = [p.detach().clone() for p in trainer.method.parameters()]
        values = trainer.train_step([batch(0, 2, None)])
        moved.append(sum((p - b).square().sum() for p, b in zip(trainer.method.parameters(), before)).sqrt().item())
    assert moved[0] == pytest.approx(0.5 * values["grad_norm/network"])
    assert moved[1] == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_resume_in_the_middle_equals_no_stop(tmp_path: Path) -> None:
    settings = {"dropout": 0.5, "eval_every": 3, "checkpoint_every": 2, "steps": 8}
    whole = trained(make(tmp_path / "whole", **settings))
    for stop in (2, 3, 5):
        trainer = make(tmp_path / f"stop{stop}", **settings)
        step = trainer.train_step

        def counted(batches: list, step=step, trainer=trainer, stop=stop) -> dict:
            if trainer.step + 1 == stop:
                trainer.interrupts.number = 15
            return step(batches)

        trainer.train_step = counted
        with pytest.raises(Interrupted):
            trainer.fit(lambda: None)
        resumed = make(tmp_path / f"stop{stop}", **settings)
        result = trained(resumed)
        assert resumed.step == 8
        assert all(torch.equal(whole[key], result[key]) for key in whole)
        assert [entry["step"] for entry in resumed.history] == [3, 6, 8]


def test_best_is_kept_by_the_judge_and_last_is_last(tmp_path: Path) -> None:
    trainer = make(tmp_path / "a", eval_every=1)
    scores = iter([3.0, 7.0, 5.0, 1.0])
    trainer.evaluate = lambda trainer, final: {"source": 0.0, "target": next(scores)}
    trainer.fit(lambda: None)
    assert trainer.best == {"step": 2, "source": 0.0, "target": 7.0}
    assert torch.load(tmp_path / "a" / "best.pt", weights_only=True)["step"] == 2
    assert torch.load(tmp_path / "a" / "last.pt", weights_only=True)["step"] == 4


@pytest.mark.parametrize(
    ("judge", "scores", "best"),
    [
        (None, {"source": [3.0, 1.0], "target": [1.0, 2.0]}, 2),
        ("source", {"source": [3.0, 1.0], "target": [1.0, 2.0]}, 1),
        (None, {"source": [1.0, 2.0], "pano": [9.0, 8.0]}, 2),
        (None, {"pano": [1.0, 2.0], "street": [9.0, 8.0]}, 2),
        ("street", {"pano": [1.0, 2.0], "street": [9.0, 8.0]}, 1),
    ],
)
def test_any_side_can_pick_the_best_model(judge: str | None, scores: dict, best: int, tmp_path: Path) -> None:
    trainer = make(tmp_path / "a", steps=2, eval_every=1, judge=judge)
    trainer.evaluate = lambda trainer, final: {side: values[trainer.step - 1] for side, values in scores.items()}
    trainer.fit(lambda: None)
    assert trainer.best["step"] == best


def test_without_an_evaluation_there_is_no_best_model(tmp_path: Path) -> None:
    trainer = make(tmp_path / "a", steps=1)
    trainer.evaluate = lambda trainer, final: {}
    trainer.fit(lambda: None)
    assert trainer.best == {}
    assert not (tmp_path / "a" / "best.pt").exists()


@pytest.mark.parametrize("stop", [0, 3])
def test_a_data_error_saves_the_state_reached(stop: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"dropout": 0.5, "checkpoint_every": 100, "steps": 5}
    whole = trained(make(tmp_path / "whole", **settings))
    trainer = make(tmp_path / "stopped", **settings)
    batches = trainer.batches

    def failing(step: int) -> Iterator[dict[str, Any]]:
        for number, one in enumerate(batches(step)):
            if number == stop:
                raise DataError("cannot decode a.png")
            yield one

    trainer.batches = failing
    with pytest.raises(DataError, match=r"a\.png"):
        trainer.fit(lambda: None)
    assert f"step {stop} is saved" in caplog.text
    resumed = make(tmp_path / "stopped", **settings)
    assert resumed.load()
    assert resumed.step == stop
    result = trained(resumed)
    assert all(torch.equal(whole[key], result[key]) for key in whole)


def test_step_seeds_differ_by_step_and_rank() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(3) for rank in range(3)}
    assert len(seeds) == 27
    assert step_seed(0, 1, 0) == step_seed(0, 1, 0)


@pytest.mark.parametrize(
    ("setting", "value"), [("precision", "fp8"), ("on_nonfinite", "ignore"), ("accumulate", 0), ("log_every", 0)]
)
def test_bad_settings_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=setting):
        TrainerSettings(steps=1, **{setting: value})
