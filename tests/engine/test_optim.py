import pytest
import torch
from torch import nn

from trans4pass.engine.optim import build_optimizers
from trans4pass.errors import ConfigError

SGD = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}
ADAM = {"_target_": "torch.optim.Adam", "lr": 0.2}


class Method(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential()
        self.network.encoder, self.network.context, self.network.head = (nn.Linear(2, 2) for _ in range(3))
        self.discriminator = nn.Linear(2, 1)


def ids(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters()}


def test_each_submodule_has_its_own_optimiser_with_all_its_parameters() -> None:
    method = Method()
    optimizers = build_optimizers(method, {"network": SGD, "discriminator": ADAM}, "optim")
    assert {name: type(optimizer) for name, optimizer in optimizers.items()} == {
        "network": torch.optim.SGD,
        "discriminator": torch.optim.Adam,
    }
    for name, lr in (("network", 0.1), ("discriminator", 0.2)):
        (group,) = optimizers[name].param_groups
        assert group["lr"] == lr
        assert {id(parameter) for parameter in group["params"]} == ids(getattr(method, name))
    assert optimizers["network"].param_groups[0]["momentum"] == 0.9


def test_all_behind_the_encoder_gets_its_own_rate() -> None:
    method = Method()
    config = {"network": {**SGD, "head_lr_scale": 10.0}, "discriminator": ADAM}
    first, second = build_optimizers(method, config, "optim")["network"].param_groups
    assert (first["lr"], second["lr"]) == (0.1, 1.0)
    assert first["momentum"] == second["momentum"] == 0.9
    assert {id(parameter) for parameter in first["params"]} == ids(method.network.encoder)
    assert {id(parameter) for parameter in second["params"]} == ids(method.network.context) | ids(method.network.head)
    assert config["network"]["head_lr_scale"] == 10.0, "the config is the caller's"


def test_a_scale_of_one_needs_no_encoder_and_another_does() -> None:
    configs = {"network": SGD, "discriminator": {**ADAM, "head_lr_scale": 1.0}}
    assert len(build_optimizers(Method(), configs, "optim")["discriminator"].param_groups) == 1
    configs["discriminator"]["head_lr_scale"] = 2.0
    with pytest.raises(ConfigError, match=r"optim\.discriminator\.head_lr_scale is 2\.0"):
        build_optimizers(Method(), configs, "optim")


def test_each_trainable_parameter_needs_exactly_one_optimiser() -> None:
    with pytest.raises(ConfigError, match=r"optim: no optimiser trains discriminator\.weight, discriminator\.bias$"):
        build_optimizers(Method(), {"network": SGD}, "optim")
    with pytest.raises(ConfigError, match=r"trains network\.encoder\.weight, .*, network\.context\.weight \.\.\.$"):
        build_optimizers(Method(), {"discriminator": SGD}, "optim")
    three = Method()
    three.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(ConfigError, match=r"trains extra, discriminator\.weight, discriminator\.bias$"):
        build_optimizers(three, {"network": SGD}, "optim")
    shared = Method()
    shared.discriminator = shared.network.head
    with pytest.raises(ConfigError, match="a parameter of 'discriminator' is also trained by 'network'"):
        build_optimizers(shared, {"network": SGD, "discriminator": SGD}, "optim")


def test_an_optimiser_for_nothing_is_refused_but_for_a_discriminator_that_is_not_needed() -> None:
    with pytest.raises(ConfigError, match=r"optim\.lrr: .* no submodule 'lrr', it has network, discriminator"):
        build_optimizers(Method(), {"network": SGD, "discriminator": SGD, "lrr": SGD}, "optim")
    method = Method()
    method.discriminator = None
    assert set(build_optimizers(method, {"discriminator": SGD, "network": SGD}, "optim")) == {"network"}
    method.network = None
    with pytest.raises(ConfigError, match="no submodule 'network'"):
        build_optimizers(method, {"network": SGD}, "optim")


def test_frozen_parameters_need_none() -> None:
    method = Method()
    method.discriminator.requires_grad_(False)
    assert set(build_optimizers(method, {"network": SGD}, "optim")) == {"network"}


def test_errors_of_an_optimiser_name_its_place() -> None:
    with pytest.raises(ConfigError, match=r"optim\.network\.learning_rate has no effect"):
        build_optimizers(Method(), {"network": {**SGD, "learning_rate": 1}}, "optim")
