"""Which parameters an optimiser trains, at which rate, and one step of each by hand."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from tests.models import tiny_encoders  # noqa: F401 - registers them
from tests.pipeline.conftest import composed
from trans4pass.errors import ConfigError
from trans4pass.methods import Method as AnyMethod
from trans4pass.models import create_model
from trans4pass.training import build_optimizers, trained_and_frozen
from trans4pass.training.optim import can_fuse


class Method(AnyMethod):
    """A network of three parts, and a discriminator where there is to be one."""

    def __init__(self, discriminator: bool = True) -> None:
        network = nn.Sequential()
        network.encoder, network.context, network.head = (nn.Linear(2, 2) for _ in range(3))
        super().__init__(network)
        self.discriminator = nn.Linear(2, 1) if discriminator else None

    def trained_modules(self) -> dict[str, nn.Module]:
        more = {"discriminator": self.discriminator} if self.discriminator is not None else {}
        return {"network": self.network, **more}


def rates_of(parameter: nn.Parameter, optimizers: dict[str, Optimizer]) -> list[float]:
    """The rates of all groups that hold the parameter."""
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    return [group["lr"] for group in groups for held in group["params"] if held is parameter]


SGD = {"_target_": "torch.optim.SGD", "lr": 0.1}


def test_all_behind_the_encoder_gets_its_own_rate() -> None:
    method = Method()
    optimizers = build_optimizers(method, {"network": {**SGD, "head_lr_scale": 10.0}, "discriminator": SGD}, "optim")
    network = method.network
    for part, rate in ((network.encoder, 0.1), (network.context, 1.0), (network.head, 1.0)):
        assert [rates_of(parameter, optimizers) for parameter in part.parameters()] == [[rate]] * 2
    assert len(optimizers["discriminator"].param_groups) == 1


@pytest.mark.parametrize("scale", [{}, {"head_lr_scale": 1.0}, {"head_lr_scale": 0.5}])
def test_each_parameter_is_in_one_group(scale: dict[str, float]) -> None:
    method = Method()
    optimizers = build_optimizers(method, {"network": {**SGD, **scale}, "discriminator": SGD}, "optim")
    assert [len(rates_of(parameter, optimizers)) for parameter in method.parameters()] == [1] * 8
    assert rates_of(method.network.head.weight, optimizers) == [0.1 * scale.get("head_lr_scale", 1)]


def test_rates_fall_block_by_block_towards_the_image() -> None:
    """Three blocks, factor 0.5, head times 10; the pyramid of a plain transformer has the whole rate."""
    method = AnyMethod(create_model("timm/tiny_vit_patch16", 5, head="linear"))
    optimizers = build_optimizers(method, {"network": {**SGD, "layer_decay": 0.5, "head_lr_scale": 10.0}}, "optim")
    encoder, model = method.network.encoder, method.network.encoder.body.model
    rates = {p: rates_of(p, optimizers) for p in method.parameters()}
    assert all(len(found) == 1 for found in rates.values())
    in_order = [group["lr"] for group in optimizers["network"].param_groups]  # the first one is logged
    assert in_order == pytest.approx([0.1, 0.05, 0.025, 0.0125, 0.00625, 1.0])
    for part, rate in (
        (method.network.head, 1.0), (encoder.pyramid, 0.1), (model.norm, 0.05), (model.blocks[2], 0.05),
        (model.blocks[1], 0.025), (model.blocks[0], 0.0125), (model.patch_embed, 0.00625),
    ):  # fmt: skip
        assert all(rates[p] == [pytest.approx(rate)] for p in part.parameters())


def test_a_decay_needs_blocks() -> None:
    with pytest.raises(ConfigError, match=r"optim\.network\.layer_decay is 0\.9.*no blocks"):
        build_optimizers(Method(), {"network": {**SGD, "layer_decay": 0.9}, "discriminator": SGD}, "optim")
    with pytest.raises(ConfigError, match=r"optim\.discriminator\.layer_decay is 0\.9.*no encoder"):
        build_optimizers(Method(), {"network": SGD, "discriminator": {**SGD, "layer_decay": 0.9}}, "optim")
    with pytest.raises(ConfigError, match=r"optim\.network\.layer_decay is 1\.1"):
        build_optimizers(Method(), {"network": {**SGD, "layer_decay": 1.1}, "discriminator": SGD}, "optim")


def test_what_is_frozen_is_in_no_group_and_counted() -> None:
    """A linear layer of 2 and 2 has 6 parameters; the discriminator's 3."""
    method = Method()
    method.network.encoder.requires_grad_(False)
    for settings in ({}, {"head_lr_scale": 2.0}):
        optimizers = build_optimizers(method, {"network": {**SGD, **settings}, "discriminator": SGD}, "optim")
        assert not rates_of(method.network.encoder.weight, optimizers)
        assert rates_of(method.network.head.weight, optimizers)
    words = "network trains 12 parameters, 6 frozen; discriminator trains 3 parameters"
    assert trained_and_frozen(method) == words


def test_a_rate_of_the_head_needs_an_encoder() -> None:
    with pytest.raises(ConfigError, match=r"optim\.discriminator\.head_lr_scale is 10"):
        build_optimizers(Method(), {"network": SGD, "discriminator": {**SGD, "head_lr_scale": 10}}, "optim")


def test_an_optimiser_needs_a_module() -> None:
    settings = {"network": SGD, "discriminator": SGD}
    with pytest.raises(ConfigError, match=r"optim\.discriminator: the method has no 'discriminator' .* has network$"):
        build_optimizers(Method(discriminator=False), settings, "optim")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head_lr_scale": 0}, r"optim\.network\.head_lr_scale is 0"),
        ({"head_lr_scale": "many"}, r"optim\.network\.head_lr_scale is 'many'"),
        ({"head_lr_scale": 2, "lr": "fast"}, r"optim\.network\.lr is 'fast'"),
        ({"lrr": 1}, r"optim\.network\.lrr has no effect"),
        ({"_target_": "torch.optim.SGDD"}, r"optim\.network\._target_ is torch\.optim\.SGDD"),
    ],
)
def test_bad_settings_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_optimizers(Method(), {"network": {**SGD, **settings}, "discriminator": SGD}, "optim")


def test_each_trainable_parameter_needs_exactly_one_optimiser() -> None:
    with pytest.raises(ConfigError, match=r"^optim: no optimiser trains discriminator\.weight"):
        build_optimizers(Method(), {"network": SGD}, "optim")
    shared = Method()
    shared.discriminator = shared.network.head
    with pytest.raises(ConfigError, match=r"^optim: a parameter of 'discriminator' is also trained by 'network'"):
        build_optimizers(shared, {"network": SGD, "discriminator": SGD}, "optim")
    with pytest.raises(ConfigError, match="lrr"):
        build_optimizers(Method(), {"network": SGD, "discriminator": SGD, "lrr": 1}, "optim")


def test_frozen_parameters_need_none() -> None:
    method = Method()
    method.discriminator.requires_grad_(False)
    assert set(build_optimizers(method, {"network": SGD}, "optim")) == {"network"}


# ---- two steps of the published optimisers by hand ----


def sgd(value: float, gradients: list[float], lr: float, decay: float) -> float:
    """Momentum 0.9; the decay is part of the gradient."""
    velocity = 0.0
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient + decay * value
        value -= lr * velocity
    return value


def adam(value: float, gradients: list[float], lr: float, decay: float, beta: float) -> float:
    """Betas 0.9 and `beta`, eps 1e-8; the decay is AdamW's, apart from the gradient."""
    mean = square = 0.0
    for step, gradient in enumerate(gradients, 1):
        value -= lr * decay * value
        mean, square = 0.9 * mean + 0.1 * gradient, beta * square + (1 - beta) * gradient**2
        value -= lr * (mean / (1 - 0.9**step)) / ((square / (1 - beta**step)) ** 0.5 + 1e-8)
    return value


@pytest.mark.parametrize(
    ("experiment", "stage", "module", "by_hand"),
    [
        ("source_cityscapes19", "source", "network.encoder", lambda p, g: adam(p, g, 5e-5, 1e-4, 0.999)),
        ("source_cityscapes19", "source", "network.head", lambda p, g: adam(p, g, 5e-4, 1e-4, 0.999)),
        ("source_cityscapes19", "source", "network.context", lambda p, g: adam(p, g, 5e-4, 1e-4, 0.999)),
        ("pin2pan", "warmup", "network.encoder", lambda p, g: sgd(p, g, 1.15e-3, 1e-5)),
        ("pin2pan", "warmup", "network.head", lambda p, g: sgd(p, g, 1.15e-3, 1e-5)),
        ("pin2pan", "warmup", "discriminator", lambda p, g: adam(p, g, 1e-4, 0, 0.99)),
        ("pin2pan", "mpa", "network.encoder", lambda p, g: sgd(p, g, 1.15e-5, 5e-4)),
        ("pin2pan", "mpa", "network.head", lambda p, g: sgd(p, g, 1.15e-5, 5e-4)),
        ("pin2pan", "mpa", "discriminator", lambda p, g: adam(p, g, 1e-4, 0, 0.99)),
    ],
)
def test_published_optimisers_step_as_by_hand(experiment: str, stage: str, module: str, by_hand: Any) -> None:
    """Weight 2, gradients 0.5 and -0.1."""
    method = Method().double()
    config = composed(f"experiment={experiment}")["stages"][stage]
    optim, terms = config["optim"], config["method"]["terms"]
    if "adversarial" in terms:
        optim["discriminator"] = terms["adversarial"]["optim"]
    method.discriminator.requires_grad_("discriminator" in optim)
    optimizers = build_optimizers(method, optim, "optim")
    weight = method.get_submodule(module).weight
    nn.init.constant_(weight, 2.0)
    for gradient in (0.5, -0.1):
        weight.grad = torch.full_like(weight, gradient)
        for optimizer in optimizers.values():
            optimizer.step()
    assert weight.flatten().tolist() == pytest.approx([by_hand(2.0, [0.5, -0.1])] * weight.numel(), rel=1e-12)


@pytest.mark.parametrize(
    "config, fuses",
    [
        ({"_target_": "torch.optim.AdamW"}, True),
        ({"_target_": "torch.optim.SGD", "lr": 0.1}, True),
        ({"_target_": "torch.optim.AdamW", "foreach": True}, False),
        ({"_target_": "torch.optim.LBFGS"}, False),
        ({"_target_": "somebody.Optimizer"}, False),
        ({}, False),
    ],
)
def test_torchs_fused_optimisers_are_known(config: dict, fuses: bool) -> None:
    assert can_fuse(config) is fuses


class OnGPU(nn.Parameter):
    is_cuda = True


def test_what_lies_on_a_gpu_takes_fused_steps_unless_told_otherwise() -> None:
    method = Method()
    for part in (method.network.encoder, method.network.context, method.network.head):
        part.weight, part.bias = OnGPU(part.weight), OnGPU(part.bias)
    for chosen, fuses in (({}, True), ({"fused": False}, False)):
        optimizers = build_optimizers(method, {"network": {**SGD, **chosen}, "discriminator": SGD}, "optim")
        assert {name: made.defaults["fused"] for name, made in optimizers.items()} == {
            "network": fuses, "discriminator": None
        }  # fmt: skip
