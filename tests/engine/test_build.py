import pytest
from torch import nn

from trans4pass.engine.build import build
from trans4pass.engine.optim import build_optimizers
from trans4pass.errors import ConfigError
from trans4pass.losses import Focal


def test_builds_the_packages_classes() -> None:
    assert isinstance(build({"_target_": "trans4pass.losses.Focal", "gamma": 1.0}, "loss"), Focal)


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "builtins.eval",
        "os.system",
        "subprocess.Popen",
        "torch.load",
        "trans4pass.engine.checkpoint.load",
        "trans4pass.data.base.Path",
        "trans4pass.data.toy_world.writing.shutil.rmtree",
        "trans4pass.data.__builtins__.eval",
        None,
    ],
)
def test_other_targets_are_refused(target: str | None) -> None:
    with pytest.raises(ConfigError, match="_target_"):
        build({"_target_": target}, "stages.mpa.method")


def test_a_leaf_without_effect_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"stages\.mpa\.method\.loss\.gama has no effect.*gamma"):
        build({"_target_": "trans4pass.losses.Focal", "gama": 1.0}, "stages.mpa.method.loss")


class Method(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential()
        self.network.encoder, self.network.context, self.network.head = (nn.Linear(2, 2) for _ in range(3))
        self.discriminator = nn.Linear(2, 1)


SGD = {"_target_": "torch.optim.SGD", "lr": 0.1}


def test_all_behind_the_encoder_gets_its_own_rate() -> None:
    method = Method()
    optimizers = build_optimizers(method, {"network": {**SGD, "head_lr_scale": 10.0}, "discriminator": SGD}, "optim")
    rates = {id(p): group["lr"] for group in optimizers["network"].param_groups for p in group["params"]}
    assert {rates[id(p)] for p in method.network.encoder.parameters()} == {0.1}
    for part in (method.network.context, method.network.head):
        assert {rates[id(p)] for p in part.parameters()} == {1.0}
    assert len(optimizers["discriminator"].param_groups) == 1


def test_each_trainable_parameter_needs_exactly_one_optimiser() -> None:
    with pytest.raises(ConfigError, match=r"discriminator\.weight"):
        build_optimizers(Method(), {"network": SGD}, "optim")
    shared = Method()
    shared.discriminator = shared.network.head
    with pytest.raises(ConfigError, match="also trained by"):
        build_optimizers(shared, {"network": SGD, "discriminator": SGD}, "optim")
    with pytest.raises(ConfigError, match="lrr"):
        build_optimizers(Method(), {"network": SGD, "discriminator": SGD, "lrr": 1}, "optim")


def test_frozen_parameters_need_none() -> None:
    method = Method()
    method.discriminator.requires_grad_(False)
    assert set(build_optimizers(method, {"network": SGD}, "optim")) == {"network"}
