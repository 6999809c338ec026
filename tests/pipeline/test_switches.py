"""The switches of how a step is computed: what each of them changes, and that the step stays the same."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trans4pass.errors import ConfigError
from trans4pass.pipeline.stage import Stage
from trans4pass.training import Trainer

from .conftest import stages_of

Made = tuple[Stage, Trainer]


@pytest.fixture
def make(tiny: list[str], tmp_path: Path) -> Callable[..., Made]:
    """The MPA stage, on the target's true labels, with every option of the model, and its trainer; SGD of rate 1."""
    sgd = [
        f"stages.mpa.optim.network.{key}={value}" for key, value in (("lr", 1), ("momentum", 0), ("weight_decay", 0))
    ]
    settings = [
        "optim@stages.mpa.optim.network=sgd",
        *sgd,
        "stages.mpa.init=null",
        "stages.mpa.domains.target.labels=truth",
    ]
    model = [
        "model.ecrm={width: 16, attention_width: 8}",
        "model.edges={levels: 3, width: 64}",
        "stages.warmup.enabled=false",
        "stages.pseudo_labels.enabled=false",
    ]

    def make(*overrides: str) -> Made:
        stage = stages_of(tmp_path, *tiny, *settings, *model, *overrides)["mpa"]
        return stage, stage.build_trainer()[0]

    return make


def moved(stage: Stage, trainer: Trainer) -> Tensor:
    """What one step adds to all weights of the network: its gradient."""
    parameters = list(trainer.method.network.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    trainer.train_step([next(stage.batches(0))])
    return torch.cat([(parameter.detach() - old).flatten() for parameter, old in zip(parameters, before)])


def distance(one: Tensor, other: Tensor) -> float:
    """Relative to the first."""
    return ((one - other).norm() / one.norm()).item()


def saved_bytes(run: Callable[[], Any]) -> int:
    """Of all that autograd keeps for the backward passes."""
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(seen.values())


def test_recomputed_activations_are_not_kept_and_change_no_bit(make: Callable[..., Made]) -> None:
    results, kept = [], []
    for switch in ("false", "true"):
        made = make(f"recompute_activations={switch}")
        kept.append(saved_bytes(lambda made=made: results.append(moved(*made))))
    assert torch.equal(*results)
    assert kept[1] < 0.75 * kept[0]  # the weights are among them
    with pytest.raises(ConfigError, match=r"recompute_activations=true: .*BatchNorm"):
        make("recompute_activations=true", "model=danet_resnet50", "model.edges=false", "model.ecrm=false")


def test_channels_last_changes_how_weights_lie_and_nothing_else(make: Callable[..., Made]) -> None:
    results = []
    for switch in ("false", "true"):
        stage, trainer = make(f"channels_last={switch}")
        kernels = [m.weight for m in trainer.method.network.modules() if isinstance(m, nn.Conv2d)]
        wide = [kernel for kernel in kernels if kernel.shape[1] > 1 and kernel.shape[2] > 1]
        assert wide
        for kernel in wide:
            assert kernel.is_contiguous(memory_format=torch.channels_last) == (switch == "true")
        results.append(moved(stage, trainer))
    assert distance(*results) < 1e-4


def test_every_kernel_of_the_method_has_a_deterministic_version(
    make: Callable[..., Made], request: pytest.FixtureRequest
) -> None:
    """On CPUs, where it changes no bit. Memory that nothing was written to is NaN then, and must not be read."""
    usual = moved(*make())
    request.getfixturevalue("deterministic")
    assert torch.equal(moved(*make()), usual)


def test_compile_is_of_the_network_for_fixed_sizes(
    make: Callable[..., Made], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when stages are only checked, which would take minutes."""
    asked, calls = [], []

    def compiler(function: Callable, **options: Any) -> Callable:
        asked.append(options)
        return lambda *args: calls.append(type(function.__self__).__name__) or function(*args)

    monkeypatch.setattr(torch, "compile", compiler)
    usual = moved(*make())
    stages_of(tmp_path, *tiny, "compile=true")["source"].check()
    assert asked == []
    assert torch.equal(moved(*make("compile=true")), usual)
    assert asked == [{"dynamic": False}]
    assert calls == ["Segmentor"] * 2  # source and target


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_compiled_networks_gradient_is_eagers(make: Callable[..., Made]) -> None:
    """Without ECRM, whose bank's fill state is read on the way: two halves take twice the minutes to compile."""
    options = ["model.ecrm=false", "model.edges=false"]
    compiled = moved(*make("compile=true", *options))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert distance(moved(*make(*options)), compiled) < 1e-3


def test_what_is_trained_is_said_and_moves_alone(make: Callable[..., Made], caplog: pytest.LogCaptureFixture) -> None:
    for setting, learns in (("model.freeze=[encoder]", "nothing"), ("model.lora={rank: 2}", "parametrizations")):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            stage, trainer = make(setting, "stages.mpa.optim.network.layer_decay=0.9")
        network = trainer.method.network
        learning = sum(p.numel() for p in network.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in network.parameters()) - learning
        assert f"mpa: network trains {learning:,} parameters, {frozen:,} frozen; " in caplog.text
        before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        trainer.train_step([next(stage.batches(0))])
        changed = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
        assert any(name.startswith("head.") for name in changed)
        assert all(learns in name for name in changed if name.startswith("encoder."))
