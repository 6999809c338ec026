"""bf16 and fp16: what is computed in them, how near the result is, and what the loss scaling does."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.small import Pixelwise
from trans4pass import create_model
from trans4pass.errors import NonFinite
from trans4pass.losses import CrossEntropy
from trans4pass.methods import Adversarial, PrototypeDistillation, Segmentation, SumOfTerms
from trans4pass.training import Trainer

from .small import supervised, trainer_of

K = 4
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def adaptation(folder: Path, precision: str, **settings: Any) -> Trainer:
    """MPA with all its terms on the real micro model in float32, without stochastic depth; SGD of rate 1."""
    torch.manual_seed(0)
    network = create_model("trans4pass_micro", K, embed_dim=16, drop_path=0.0)
    terms = {
        "supervised": Segmentation(network, CrossEntropy()),
        "self_training": Segmentation(network, CrossEntropy(), "target"),
        "adversarial": Adversarial(network, 0.1),
        "prototypes": PrototypeDistillation(network, 0.5, update_every=1, momentum=0.5),
    }
    terms["prototypes"].bank.prototypes.normal_(generator=torch.Generator().manual_seed(1))
    return trainer_of(SumOfTerms(network, terms), folder, precision=precision, **settings)


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    return {
        domain: {
            "image": torch.randint(0, 256, (2, 3, 32, 64), generator=generator).to(torch.uint8),
            "label": torch.randint(0, K, (2, 4, 8), generator=generator)
            .repeat_interleave(8, 1)
            .repeat_interleave(8, 2),
            "name": [f"{domain}0", f"{domain}1"],
        }
        for domain in ("source", "target")
    }


def weights(method: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(method.parameters()).detach().clone()


def stepped(trainer: Trainer) -> tuple[dict[str, float], Tensor]:
    """The values of one step, and by how much it moved all weights."""
    before = weights(trainer.method)
    values = {name: value.item() for name, value in trainer.train_step([batch()]).items()}
    return values, weights(trainer.method) - before


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], Tensor]:
    return stepped(adaptation(tmp_path_factory.mktemp("single"), "fp32"))


@pytest.mark.parametrize("precision", HALF)
def test_a_step_in_half_precision_is_nearly_the_same_step(precision: str, single: tuple, tmp_path: Path) -> None:
    """The real micro model and every term of MPA: values, gradient norms and weights."""
    values, moved = stepped(adaptation(tmp_path, precision))
    assert values.keys() == single[0].keys()
    assert values == pytest.approx(single[0], rel=0.05)
    assert values != pytest.approx(single[0], rel=1e-6)
    distance = ((moved - single[1]).norm() / single[1].norm()).item()
    assert 1e-5 < distance < 0.1


@pytest.mark.parametrize("precision", ["fp32", *HALF])
def test_the_network_computes_in_it_and_weights_stay_single(precision: str, tmp_path: Path) -> None:
    trainer, seen = adaptation(tmp_path, precision), {"forward": set(), "grad": set()}
    trainer.method.network.head.pred.register_forward_hook(lambda module, x, y: seen["forward"].add(y.dtype))
    trainer.method.terms["adversarial"].discriminator[0].register_forward_hook(
        lambda module, x, y: seen["forward"].add(y.dtype)
    )
    for parameter in trainer.method.parameters():
        parameter.register_hook(lambda gradient: seen["grad"].add(gradient.dtype))
    trainer.train_step([batch()])
    assert seen == {"forward": {HALF.get(precision, torch.float32)}, "grad": {torch.float32}}
    assert {tensor.dtype for tensor in trainer.method.parameters()} == {torch.float32}
    assert trainer.scaler.is_enabled() == (precision == "fp16")


# ---- loss scaling: by powers of two, of which nothing may be left in float64 ----


def exact(folder: Path, precision: str = "fp16", **settings: Any) -> Trainer:
    """A pixelwise network in float64, which autocast leaves alone; SGD with momentum."""
    method = supervised(Pixelwise(K, dtype=torch.float64))
    return trainer_of(
        method, folder, optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9), **settings | {"precision": precision}
    )


def overflow(trainer: Trainer) -> torch.utils.hooks.RemovableHandle:
    """From now on the gradient is infinite."""
    return trainer.method.network.head.weight.register_hook(lambda gradient: gradient * torch.inf)


@pytest.mark.parametrize("clip_grad", [0.0, 0.01])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_scaling_leaves_values_and_steps_as_they_are(clip_grad: float, accumulate: int, tmp_path: Path) -> None:
    results = []
    for precision in ("fp32", "fp16"):
        trainer = exact(tmp_path, precision, clip_grad=clip_grad, accumulate=accumulate)
        before = weights(trainer.method)
        values = [trainer.train_step([batch()] * accumulate) for _ in range(2)]
        results.append((values, weights(trainer.method) - before))
    assert trainer.scaler.get_scale() == 2**16
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][1].abs().max() > 1e-4


def test_an_overflow_leaves_the_step_out_and_halves_the_scale(tmp_path: Path) -> None:
    """It is the scaler's own affair: no error, nothing counted, and the next step is as if it had not been."""
    trainer, twin = exact(tmp_path), exact(tmp_path)
    for each in (trainer, twin):
        each.train_step([batch()])
    before = weights(trainer.method)
    handle = overflow(trainer)
    trainer.train_step([batch()])
    handle.remove()
    assert torch.equal(weights(trainer.method), before)
    assert trainer.scaler.get_scale() == 2**15
    assert trainer.skipped == 0
    for each in (trainer, twin):
        each.train_step([batch()])
    assert torch.equal(weights(trainer.method), weights(twin.method))


@pytest.mark.parametrize("on_nonfinite", ["error", "skip"])
def test_where_no_scale_is_left_it_is_no_overflow(on_nonfinite: str, tmp_path: Path) -> None:
    trainer, twin = exact(tmp_path, on_nonfinite=on_nonfinite), exact(tmp_path)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = weights(trainer.method)
    handle = overflow(trainer)
    trainer.train_step([batch()])
    assert (trainer.scaler.get_scale(), trainer.skipped) == (1, 0)
    if on_nonfinite == "error":
        with pytest.raises(NonFinite, match="gradient of network"):
            trainer.train_step([batch()])
        return
    trainer.train_step([batch()])
    assert trainer.skipped == 1
    assert torch.equal(weights(trainer.method), before)
    handle.remove()
    for each in (trainer, twin):
        each.train_step([batch()])
    assert torch.equal(weights(trainer.method), weights(twin.method))


@pytest.mark.parametrize("on_nonfinite", ["error", "skip"])
def test_a_loss_that_is_not_finite_is_no_overflow_either(on_nonfinite: str, tmp_path: Path) -> None:
    """It leaves the scale as it is."""
    trainer = exact(tmp_path, on_nonfinite=on_nonfinite)
    nn.init.constant_(trainer.method.network.head.bias, torch.nan)
    if on_nonfinite == "error":
        with pytest.raises(NonFinite, match="source/supervised is not finite"):
            trainer.train_step([batch()])
        return
    for skipped in (1, 2):
        trainer.train_step([batch()])
        assert (trainer.skipped, trainer.scaler.get_scale()) == (skipped, 2.0**16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_first_prototypes_are_computed_in_the_stages_precision(precision: str, tmp_path: Path) -> None:
    seen = []

    class Watched(SumOfTerms):
        def prepare(self, loaders: Any) -> None:
            seen.append(torch.is_autocast_enabled("cpu"))
            raise KeyboardInterrupt

    network = Pixelwise(K)
    method = Watched(network, {"supervised": Segmentation(network, CrossEntropy())})
    with pytest.raises(KeyboardInterrupt):
        trainer_of(method, tmp_path, precision=precision).fit()
    assert seen == [precision != "fp32"]
