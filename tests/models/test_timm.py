from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from trans4pass.models.encoders.resnet import DilatedResNet

from trans4pass.errors import ConfigError, WeightsError


@pytest.fixture(scope="module")
def imagenet() -> torch.nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    return model.eval()


@pytest.mark.parametrize(("depth", "layers"), [(50, [3, 4, 6, 3]), (101, [3, 4, 23, 3]), (152, [3, 8, 36, 3])])
def test_every_published_depth_is_there(depth: int, layers: list[int]) -> None:
    """With torchvision's own network of that depth as the independent implementation."""
    theirs = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, layers)
    shapes = {name: value.shape for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    assert {name: value.shape for name, value in DilatedResNet(depth).body.state_dict().items()} == shapes


def test_maps_keep_to_channels_and_strides() -> None:
    encoder = DilatedResNet(50).eval()
    with torch.no_grad():
        maps = encoder(torch.zeros(1, 3, 65, 97))
    assert encoder.strides == (4, 8, 8, 8)
    assert [x.shape[1] for x in maps] == list(encoder.channels) == [256, 512, 1024, 2048]
    assert [tuple(x.shape[2:]) for x in maps] == [(-(-65 // s), -(-97 // s)) for s in encoder.strides]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_weights_fit(imagenet: torch.nn.Module, tmp_path: Path, suffix: str) -> None:
    """With torchvision's own dilated network as the independent implementation."""
    path = tmp_path / f"resnet50{suffix}"
    state = {name: value.clone() for name, value in imagenet.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    encoder = DilatedResNet(50, path).eval()
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = encoder(x)[-1]
        stem = imagenet.maxpool(imagenet.relu(imagenet.bn1(imagenet.conv1(x))))
        theirs = imagenet.layer4(imagenet.layer3(imagenet.layer2(imagenet.layer1(stem))))
    assert theirs.abs().max() > 0.1
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_old_checkpoints_without_counters_fit(imagenet: torch.nn.Module, tmp_path: Path) -> None:
    state = {k: v for k, v in imagenet.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    encoder = DilatedResNet(50, tmp_path / "old.pth")
    assert torch.equal(encoder.body["conv1"].weight, imagenet.conv1.weight)


def test_unfit_weights_are_refused(imagenet: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({k: v for k, v in imagenet.state_dict().items() if k != "layer3.0.conv1.weight"}, path)
    with pytest.raises(WeightsError, match=r"layer3\.0\.conv1\.weight"):
        DilatedResNet(50, path)
    torch.save(imagenet.state_dict() | {"extra": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="extra"):
        DilatedResNet(50, path)
    torch.save(imagenet.state_dict() | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    with pytest.raises(WeightsError, match=r"conv1\.weight"):
        DilatedResNet(50, path)
    path.write_text("not a checkpoint")
    with pytest.raises(WeightsError, match="no PyTorch checkpoint"):
        DilatedResNet(50, path)


def test_an_unknown_depth_is_refused() -> None:
    with pytest.raises(ConfigError, match="18"):
        DilatedResNet(18)
