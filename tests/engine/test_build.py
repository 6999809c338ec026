import pytest

from trans4pass.engine.build import build
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
