"""The loop on methods small enough to follow: accumulation, guards, cadences, what is kept, resume."""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from tests.small import Pixelwise, tiny_segmentor
from trans4pass.errors import ConfigError, DataError, NonFinite
from trans4pass.inference import submodule_state
from trans4pass.interrupts import Interrupted
from trans4pass.losses import CrossEntropy
from trans4pass.methods import Losses, Method
from trans4pass.settings import parse
from trans4pass.training import Trainer, TrainerSettings, checkpoint, make_schedule
from trans4pass.training.trainer import step_seed

from .small import supervised, trainer_of


class Network(Pixelwise):
    """Two classes in float64, dropout, and a buffer that each training forward moves."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(2, dtype=torch.float64)
        self.encoder = nn.Dropout(dropout)
        self.register_buffer("forwards", torch.zeros(()))

    def forward(self, images: Tensor) -> Any:
        if self.training:
            self.forwards += 1
        return super().forward(images)


def batch(number: int, size: int = 2, poison: int | None = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(size, 3, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (size, 4, 4), generator=generator)
    labels[:, : 1 + number % 3] = 255  # batches differ in their number of labelled pixels
    if number == poison:
        images[0, 0, 3, 3] = torch.nan
    return {"source": {"image": images, "label": labels, "name": [f"image{number}_{i}" for i in range(size)]}}


def make(
    folder: Path,
    steps: int = 4,
    poison: int | None = None,
    dropout: float = 0.0,
    evaluate: Any = lambda model, step, final: {"source": float(step)},
    judge: str | None = "source",
    **settings: Any,
) -> Trainer:
    """SGD with momentum at a rate that falls in a line to 0."""

    def batches(start: int) -> Iterator[dict[str, Any]]:
        return (batch(number, poison=poison) for number in count(start))

    return trainer_of(
        supervised(Network(dropout), CrossEntropy([1.0, 3.0])),
        folder,
        batches,
        evaluate,
        partial(torch.optim.SGD, lr=0.5, momentum=0.9),
        make_schedule({"policy": "poly", "power": 1.0}, steps, "schedule"),
        judge,
        steps=steps,
        **settings,
    )


def trained(trainer: Trainer) -> dict[str, Tensor]:
    trainer.fit()
    return {key: value.clone() for key, value in trainer.method.state_dict().items()}


# ---- one step ----


def test_a_step_is_the_gradients_of_the_loss(tmp_path: Path) -> None:
    """Against autograd on the loss itself: momentum's first step is the rate times the gradient."""
    trainer, data = make(tmp_path / "a"), batch(0)["source"]
    before = copy.deepcopy(trainer.method.network.head)
    loss = nn.functional.cross_entropy(
        before(data["image"]), data["label"], torch.tensor([1.0, 3.0]).double(), ignore_index=255
    )
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    values = trainer.train_step([batch(0)])
    assert values["source/supervised"].item() == pytest.approx(loss.item(), abs=1e-12)
    norm = sum(gradient.square().sum() for gradient in gradients).sqrt().item()
    assert values["grad_norm/network"].item() == pytest.approx(norm, abs=1e-12)
    for parameter, old, gradient in zip(trainer.method.network.head.parameters(), before.parameters(), gradients):
        assert (parameter - (old - 0.5 * gradient)).abs().max() < 1e-12
        assert parameter.grad is None


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    """Gradients agree to 1e-10 in float64, although the micro-batches differ in their labelled pixels."""
    small, large = make(tmp_path / "a", accumulate=2), make(tmp_path / "b")
    micro = [batch(0), batch(1)]
    whole = {
        "source": {
            "image": torch.cat([part["source"]["image"] for part in micro]),
            "label": torch.cat([part["source"]["label"] for part in micro]),
            "name": [],
        }
    }
    values = [small.train_step(micro), large.train_step([whole])]
    assert values[0]["source/supervised"].item() == pytest.approx(values[1]["source/supervised"].item(), abs=1e-12)
    weights = [trainer.method.network.head.weight for trainer in (small, large)]
    assert (weights[0] - weights[1]).abs().max() < 1e-10


class Linear(Method):
    """Two losses and an extra value in the batch, one weight each; notes what it is asked."""

    phases = ("first", "second")
    domains = ("source",)

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1, bias=False))
        self.discriminator = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.network.weight)
        nn.init.ones_(self.discriminator.weight)
        self.asked: list[Any] = []

    def trained_modules(self) -> Mapping[str, nn.Module]:
        return {"network": self.network, "discriminator": self.discriminator}

    def forward(self, phase: str, batch: Mapping, norms: Mapping[str, Tensor]) -> Losses:
        self.asked.append((phase, torch.rand(()).item(), self.training))
        one, two = batch[phase]["image"]
        losses = {"one": one * self.network.weight.sum(), "two": two * self.discriminator.weight.sum()}
        return Losses(losses, {"extra": one + two})

    def after_step(self, step: int) -> dict[str, Tensor]:
        self.asked.append(step)
        return {"after": torch.tensor(float(step))}


def numbers(first: tuple[float, float], second: tuple[float, float]) -> dict[str, Any]:
    return {
        phase: {"image": torch.tensor(values), "name": [phase]}
        for phase, values in (("first", first), ("second", second))
    }


def test_values_are_means_over_micro_batches_and_phases_add_up(tmp_path: Path) -> None:
    trainer = trainer_of(Linear(), tmp_path, accumulate=2)
    values = trainer.train_step([numbers((1, 2), (3, 4)), numbers((5, 6), (7, 8))])
    assert values == {
        "first/one": 3, "first/two": 4, "first/extra": 7,
        "second/one": 5, "second/two": 6, "second/extra": 11,
        "grad_norm/network": 8, "grad_norm/discriminator": 10, "after": 0,
    }  # fmt: skip
    assert trainer.method.network.weight.item() == 1 - 8
    assert trainer.method.discriminator.weight.item() == 1 - 10
    assert [asked[0] for asked in trainer.method.asked[:-1]] == ["first", "first", "second", "second"]
    assert trainer.method.asked[-1] == 0


@pytest.mark.parametrize(("network", "discriminator"), [(8, 3), (3, 8), (5, 6)])
def test_clipping_bounds_each_optimisers_step(network: int, discriminator: int, tmp_path: Path) -> None:
    """At 4 each gradient by itself; what is logged is the norm before."""
    trainer = trainer_of(Linear(), tmp_path, clip_grad=4.0)
    values = trainer.train_step([numbers((-1, 1), (1 - network, discriminator - 1))])
    assert (values["grad_norm/network"], values["grad_norm/discriminator"]) == (network, discriminator)
    assert trainer.method.network.weight.item() == pytest.approx(1 + min(network, 4), abs=1e-5)
    assert trainer.method.discriminator.weight.item() == pytest.approx(1 - min(discriminator, 4), abs=1e-5)


def test_clipping_keeps_the_direction(tmp_path: Path) -> None:
    free, clipped = make(tmp_path / "a"), make(tmp_path / "b", clip_grad=0.01)
    moved = []
    for trainer in (free, clipped):
        before = nn.utils.parameters_to_vector(trainer.method.parameters()).detach().clone()
        trainer.train_step([batch(0)])
        moved.append(nn.utils.parameters_to_vector(trainer.method.parameters()).detach() - before)
    assert moved[1].norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert nn.functional.cosine_similarity(*moved, dim=0).item() == pytest.approx(1)


def test_random_layers_follow_from_seed_step_and_rank(tmp_path: Path) -> None:
    def draw(seed: int, step: int, rank: int) -> float:
        trainer = trainer_of(Linear(), tmp_path, seed=seed, rank=rank)
        trainer.step = step
        torch.manual_seed(9)
        trainer.train_step([numbers((1, 1), (1, 1))])
        return trainer.method.asked[0][1]

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({draw(*place) for place in places}) == 4
    assert draw(0, 0, 0) == draw(0, 0, 0)


def test_step_seeds_differ_by_step_and_rank() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(3) for rank in range(3)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(0, 1, 0) == step_seed(0, 1, 0)


@pytest.mark.parametrize(
    ("losses", "values", "said"),
    [
        ({"loss": torch.ones(2)}, {}, r"source: loss is a tensor of shape \[2\]"),
        ({"loss": torch.ones(())}, {"share": 0.5}, r"source: share is 0\.5, and must be a tensor of one number"),
        ({"loss": torch.ones(())}, {"loss": torch.ones(())}, "source: loss is the name of a loss and of a value"),
    ],
)
def test_what_is_no_number_is_named_in_the_first_step(losses: Any, values: Any, said: str, tmp_path: Path) -> None:
    trainer = make(tmp_path)
    trainer._parallel = lambda *args: Losses(losses, values)
    with pytest.raises(TypeError, match=said):
        trainer.train_step([batch(0)])


# ---- losses and gradients that are not finite ----


@pytest.mark.parametrize("clip_grad", [0.0, 1.0])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_waits_for_the_device_once(
    accumulate: int, clip_grad: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is logged stays where it is until then."""
    trainer = make(tmp_path, accumulate=accumulate, clip_grad=clip_grad)
    waits: list[str] = []
    for name in ("__bool__", "__float__", "__int__", "item", "tolist", "cpu", "numpy"):
        real = getattr(Tensor, name)

        def counted(tensor: Tensor, *args: Any, real: Any = real, name: str = name) -> Any:
            waits.append(name)
            return real(tensor, *args)

        monkeypatch.setattr(Tensor, name, counted)
    values = trainer.train_step([batch(number) for number in range(accumulate)])
    assert waits == ["__bool__"]
    assert all(isinstance(value, Tensor) for value in values.values())


def test_a_non_finite_loss_stops_with_step_term_and_files(tmp_path: Path) -> None:
    trainer = make(tmp_path / "a", poison=2)
    with pytest.raises(NonFinite, match=r"step 2: source/supervised is not .*: image2_0, image2_1.*on_nonfinite=skip"):
        trainer.fit()


def test_a_gradient_that_is_not_finite_is_caught_too(tmp_path: Path) -> None:
    trainer = make(tmp_path / "a")
    trainer.method.network.head.weight.register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(NonFinite, match="stage source, step 0: the gradient of network is not finite"):
        trainer.train_step([batch(0)])


@pytest.mark.parametrize("poison", [0, 1])
def test_a_skipped_step_is_counted_and_logged(
    poison: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """Without torch's warning that a scheduler goes first, where the very first step is left out."""
    trainer = make(tmp_path / "a", poison=poison, on_nonfinite="skip")
    with caplog.at_level(logging.WARNING):
        trainer.fit()
    assert (trainer.step, trainer.skipped) == (4, 1)
    assert trainer.method.network.forwards == 3
    images = f"image{poison}_0, image{poison}_1"
    assert f"step {poison}: source/supervised is not finite; images: {images}; step skipped (1 so far)" in caplog.text
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


# ---- cadences ----


def test_learning_rates_follow_the_schedule(tmp_path: Path) -> None:
    trainer = make(tmp_path / "a", poison=2, on_nonfinite="skip")
    rates = []
    for number in range(4):
        trainer.train_step([batch(number, poison=2)])
        rates.append(trainer.rates()["network"])
        trainer.step += 1
    assert rates == pytest.approx([0.5, 0.375, 0.25, 0.125])  # a skipped step counts


@pytest.mark.parametrize(
    ("settings", "evaluated", "saved"),
    [
        ({"eval_every": 3, "checkpoint_every": 2}, [3, 6, 7], [2, 3, 4, 6, 7]),
        ({"eval_every": 0, "checkpoint_every": 5}, [7], [5, 7]),
        ({"eval_every": 7, "checkpoint_every": 100}, [7], [7]),
    ],
)
def test_evaluations_and_checkpoints_come_when_due(
    settings: dict[str, int], evaluated: list[int], saved: list[int], tmp_path: Path
) -> None:
    seen, written = [], set()

    def evaluate(model: nn.Module, step: int, final: bool) -> dict[str, float]:
        seen.append((step, final, trainer.method.training, model.training))
        return {"source": 1.0}

    trainer = make(tmp_path / "a", steps=7, evaluate=evaluate, **settings)
    save, step = trainer.save, trainer.train_step
    trainer.save = lambda: (written.add(trainer.step), save())

    def training(micro_batches: list) -> dict[str, Tensor]:
        assert trainer.method.training and trainer.method.network.training
        return step(micro_batches)

    trainer.train_step = training
    trainer.method.eval()  # as scoring a given checkpoint leaves it
    trainer.fit()
    assert seen == [(number, number == 7, False, False) for number in evaluated]
    assert sorted(written) == saved
    assert checkpoint.load(tmp_path / "a" / "last.pt")["step"] == 7
    assert [entry["step"] for entry in trainer.history] == evaluated


def test_a_line_is_logged_when_due(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        make(tmp_path / "a", steps=7, log_every=3).fit()
    lines = [record.message for record in caplog.records if record.message.startswith("source ")]
    assert [line.split()[1] for line in lines] == ["3/7", "6/7", "7/7"]
    rates = [line.split("lr/network ")[1].split()[0] for line in lines]
    assert rates == ["3.57e-01", "1.43e-01", "7.14e-02"]  # the one that the step was made with: step 2 has 0.5 * 5/7


def test_the_rate_that_is_logged_is_the_encoders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def two_groups(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        encoder, head = parameters
        return torch.optim.SGD([{"params": encoder}, {"params": head, "lr": 5.0}], lr=0.5)

    trainer = make(tmp_path / "a")
    trainer = trainer_of(trainer.method, tmp_path / "a", trainer.batches, optimizer=two_groups)
    with caplog.at_level(logging.INFO):
        trainer.fit()
    assert "lr/network 5.00e-01" in caplog.text


def test_scores_are_shown_at_their_steps(tmp_path: Path) -> None:
    scores = {"source": 50.0, "target": 25.0}
    make(tmp_path / "a", steps=3, eval_every=2, evaluate=lambda model, step, final: scores).fit()
    shown = EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload()
    for side, score in scores.items():
        assert [(event.step, event.value) for event in shown.Scalars(f"miou/{side}")] == [(2, score), (3, score)]


@pytest.mark.parametrize("killed", [2, 3, 5])
def test_a_stage_killed_after_an_evaluation_has_each_point_once(killed: int, tmp_path: Path) -> None:
    """The checkpoint in front of the evaluation of step 2 does not know its score, which comes again."""

    def started(kill: int | None) -> None:
        trainer = make(tmp_path, steps=6, eval_every=2, checkpoint_every=100)
        step = trainer.train_step

        def training(micro_batches: list) -> dict[str, Tensor]:
            if trainer.step == kill:
                raise KeyboardInterrupt
            return step(micro_batches)

        trainer.train_step = training
        trainer.fit()

    with pytest.raises(KeyboardInterrupt):
        started(killed)
    assert checkpoint.load(tmp_path / "last.pt")["evaluated"] < killed // 2 * 2
    started(None)
    shown = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in shown.Scalars("miou/source")] == [2, 4, 6]
    assert [event.step for event in shown.Scalars("source/supervised")] == [1, 2, 3, 4, 5, 6]


def test_micro_batches_are_taken_in_order(tmp_path: Path) -> None:
    trainer, seen = make(tmp_path / "a", steps=2, accumulate=3), []
    step = trainer.train_step
    trainer.train_step = lambda batches: seen.append([batch["source"]["name"][0] for batch in batches]) or step(batches)
    trainer.fit()
    assert seen == [["image0_0", "image1_0", "image2_0"], ["image3_0", "image4_0", "image5_0"]]


# ---- what is kept ----


def test_best_is_picked_on_the_target_and_last_is_last(tmp_path: Path) -> None:
    """A tie keeps the earlier one; a score that is not a number is never the best."""
    scores = iter([(9.0, torch.nan), (1.0, 3.0), (2.0, 7.0), (3.0, 7.0), (8.0, torch.nan), (9.0, 5.0)])
    states = []

    def evaluate(model: nn.Module, step: int, final: bool) -> dict[str, float]:
        states.append(copy.deepcopy(model.state_dict()))
        return dict(zip(("source", "target"), next(scores)))

    trainer = make(tmp_path / "a", steps=6, eval_every=1, evaluate=evaluate, judge="target")
    trainer.fit()
    assert trainer.best == {"step": 3, "source": 2.0, "target": 7.0}
    best, last = (checkpoint.load(tmp_path / "a" / f"{name}.pt") for name in ("best", "last"))
    for content, step in ((best, 3), (last, 6)):
        weights = submodule_state(content["method"], "network")
        assert content["step"] == step
        assert content["model"] == {"name": "small"}
        assert all(torch.equal(weights[key], value) for key, value in states[step - 1].items())
    assert not torch.equal(states[2]["head.weight"], states[5]["head.weight"])


def test_without_a_judge_nothing_is_kept_as_best(tmp_path: Path) -> None:
    trainer = make(tmp_path, eval_every=1, evaluate=lambda model, step, final: {}, judge=None)
    trainer.fit()
    assert trainer.best == {}
    assert not (tmp_path / "best.pt").exists()
    assert [entry["step"] for entry in trainer.history] == [1, 2, 3, 4]


# ---- resume ----


def test_a_checkpoint_holds_all_that_goes_on(tmp_path: Path) -> None:
    before = make(tmp_path / "a", poison=0, on_nonfinite="skip", eval_every=2, precision="fp16", steps=8)
    before.fit()
    before.scaler.update(128.0)
    before.saved = (0, None)
    before.save()
    after = make(tmp_path / "a", precision="fp16", steps=8)
    assert after.resume()
    assert (after.step, after.evaluated, after.skipped) == (8, 8, 1)
    assert [entry["step"] for entry in after.history] == [2, 4, 6, 8]
    assert after.best == {"step": 8, "source": 8.0}
    assert after.scaler.get_scale() == 128.0
    assert after.rates() == before.rates() == {"network": 0.5 / 8}
    momenta = [trainer.optimizers["network"].state_dict()["state"][0]["momentum_buffer"] for trainer in (before, after)]
    assert torch.equal(*momenta)
    assert all(
        torch.equal(a, b) for a, b in zip(before.method.state_dict().values(), after.method.state_dict().values())
    )


def test_an_optimisers_state_takes_the_parameters_layout(tmp_path: Path) -> None:
    """Where `channels_last` changes between two starts; fused optimisers refuse two layouts."""

    def of(layout: torch.memory_format) -> Trainer:
        method = supervised(tiny_segmentor(2)).to(memory_format=layout)
        return trainer_of(method, tmp_path, optimizer=torch.optim.AdamW)

    before, after = of(torch.contiguous_format), of(torch.channels_last)
    for parameter in before.method.parameters():
        parameter.grad = torch.rand_like(parameter)
    before.optimizers["network"].step()
    before.saved = (0, None)
    before.save()
    assert after.resume()
    moved = 0
    for parameter, old in zip(after.method.parameters(), before.method.parameters(), strict=True):
        average = after.optimizers["network"].state[parameter]["exp_avg"]
        kept = before.optimizers["network"].state[old]["exp_avg"]
        assert torch.equal(average, kept) and average.stride() == parameter.stride()
        moved += kept.stride() != parameter.stride()
    assert moved


def test_prototypes_are_prepared_before_the_first_step_only(tmp_path: Path) -> None:
    prepared, starts = [], []
    for _ in range(2):
        trainer = make(tmp_path / "a", steps=2)
        batches = trainer.batches
        trainer.batches = lambda start, batches=batches: starts.append(start) or batches(start)
        trainer.method.prepare = lambda loaders, trainer=trainer: prepared.append((trainer.step, dict(loaders)))
        trainer.fit()
    assert prepared == [(0, {})]
    assert starts == [0, 2]


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
            trainer.fit()
        assert checkpoint.load(tmp_path / f"stop{stop}" / "last.pt")["step"] == stop
        resumed = make(tmp_path / f"stop{stop}", **settings)
        result = trained(resumed)
        assert resumed.step == 8
        assert all(torch.equal(whole[key], result[key]) for key in whole)
        assert [entry["step"] for entry in resumed.history] == [3, 6, 8]


@pytest.mark.parametrize(("judge", "best"), [("pano", 2), ("street", 1)])
def test_any_side_can_pick_the_best_model(judge: str, best: int, tmp_path: Path) -> None:
    scores = {"pano": [1.0, 2.0], "street": [9.0, 8.0]}

    def evaluate(model: nn.Module, step: int, final: bool) -> dict[str, float]:
        return {side: values[step - 1] for side, values in scores.items()}

    trainer = make(tmp_path / "a", steps=2, eval_every=1, evaluate=evaluate, judge=judge)
    trainer.fit()
    assert trainer.best["step"] == best


@pytest.mark.parametrize("stop", [0, 3])
def test_a_data_error_saves_the_state_reached(stop: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"dropout": 0.5, "checkpoint_every": 100, "steps": 5}
    whole = trained(make(tmp_path / "whole", **settings))
    trainer = make(tmp_path / "stopped", **settings)
    batches = trainer.batches

    def failing(start: int) -> Iterator[dict[str, Any]]:
        for number, one in enumerate(batches(start)):
            if number == stop:
                raise DataError("cannot decode a.png")
            yield one

    trainer.batches = failing
    with pytest.raises(DataError, match=r"a\.png"):
        trainer.fit()
    assert f"step {stop} is saved" in caplog.text
    resumed = make(tmp_path / "stopped", **settings)
    assert resumed.resume()
    assert resumed.step == stop
    result = trained(resumed)
    assert all(torch.equal(whole[key], result[key]) for key in whole)


# ---- settings ----


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("precision", "fp8"),
        ("on_nonfinite", "ignore"),
        ("steps", 0),
        ("accumulate", 0),
        ("checkpoint_every", 0),
        ("eval_every", -1),
        ("clip_grad", -0.1),
        ("clip_grad", float("inf")),
        ("clip_grad", "many"),
    ],
)
def test_bad_settings_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"stages.mpa.{setting} is "):
        parse(TrainerSettings, {"steps": 1, setting: value}, "stages.mpa")
