"""Timm's encoders: DANet's dilated ResNets against torchvision's, and any other as four maps of the image's size."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from trans4pass import create_model
from trans4pass.errors import ConfigError, WeightsError
from trans4pass.models import Segmentor, load_weights
from trans4pass.models.encoders.timm import SimplePyramid, TimmEncoder
from trans4pass.models.registry import ENCODERS

# ------------------------------------------------------------------------------------------------------ dilated ResNets


@pytest.fixture(scope="module")
def imagenet() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    return model.eval()


@pytest.fixture(scope="module")
def danet() -> Segmentor:
    return create_model("danet_resnet50", 5)


@pytest.mark.parametrize(("depth", "layers"), [(50, [3, 4, 6, 3]), (101, [3, 4, 23, 3]), (152, [3, 8, 36, 3])])
def test_every_published_depth_is_there(depth: int, layers: list[int]) -> None:
    """With torchvision's own network of that depth as the independent implementation."""
    with torch.device("meta"):
        theirs = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, layers)
        ours = ENCODERS[f"resnet{depth}"]()
    shapes = {name: value.shape for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    assert {name: value.shape for name, value in ours.body.state_dict().items()} == shapes


def test_maps_keep_to_channels_and_strides(danet: Segmentor) -> None:
    encoder = danet.encoder.eval()
    with torch.no_grad():
        maps = encoder(torch.zeros(1, 3, 65, 97))
    assert encoder.strides == (4, 8, 8, 8)
    assert [x.shape[1] for x in maps] == list(encoder.channels) == [256, 512, 1024, 2048]
    assert [tuple(x.shape[2:]) for x in maps] == [(-(-65 // s), -(-97 // s)) for s in encoder.strides]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_weights_fit(imagenet: nn.Module, danet: Segmentor, tmp_path: Path, suffix: str) -> None:
    """With torchvision's own dilated network as the independent implementation."""
    path = tmp_path / f"resnet50{suffix}"
    state = {name: value.clone() for name, value in imagenet.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    report = load_weights(danet, path)
    assert sorted(report.dropped) == ["fc.bias", "fc.weight"]
    assert all(key.startswith("head.") for key in report.missing)
    encoder = danet.encoder.eval()
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = encoder(x)[-1]
        stem = imagenet.maxpool(imagenet.relu(imagenet.bn1(imagenet.conv1(x))))
        theirs = imagenet.layer4(imagenet.layer3(imagenet.layer2(imagenet.layer1(stem))))
    assert theirs.abs().max() > 0.1
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_old_checkpoints_without_counters_fit(imagenet: nn.Module, danet: Segmentor, tmp_path: Path) -> None:
    state = {k: v for k, v in imagenet.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    load_weights(danet, tmp_path / "old.pth")
    assert torch.equal(danet.encoder.body["conv1"].weight, imagenet.conv1.weight)


def test_unfit_weights_are_refused(imagenet: nn.Module, danet: Segmentor, tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({k: v for k, v in imagenet.state_dict().items() if k != "layer3.0.conv1.weight"}, path)
    with pytest.raises(WeightsError, match=r"layer3\.0\.conv1\.weight"):
        load_weights(danet, path)
    torch.save(imagenet.state_dict() | {"extra": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="extra"):
        load_weights(danet, path)
    torch.save(imagenet.state_dict() | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    with pytest.raises(WeightsError, match=r"conv1\.weight"):
        load_weights(danet, path)
    path.write_text("not a checkpoint")
    with pytest.raises(WeightsError, match="no PyTorch checkpoint"):
        load_weights(danet, path)


def test_an_unknown_depth_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"danet_resnet18.*danet_resnet101"):
        create_model("danet_resnet18", 5)


# ----------------------------------------------------------------------------------------------------------- any others

ARCHITECTURES = [
    "resnet18",  # a map of stride 2 comes first
    "convnext_atto",
    "swin_tiny_patch4_window7_224",  # channels last, made for one size
    "vit_tiny_patch16_224",  # one map of stride 16
    "vit_small_patch14_dinov2",  # patches of 14 pixels
]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_architecture_gives_four_maps_of_the_images_size(name: str) -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder(name).eval()
    assert encoder.strides == (4, 8, 16, 32) and len(encoder.channels) == 4
    for size in ((64, 96), (65, 33)):
        with torch.no_grad():
            maps = encoder(torch.randn(1, 3, *size))
        expected = [(1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(encoder.channels, encoder.strides)]
        assert [tuple(x.shape) for x in maps] == expected


def test_a_plain_transformers_map_becomes_a_pyramid() -> None:
    pyramid = SimplePyramid(32)
    maps = pyramid(torch.randn(2, 32, 3, 5))
    assert [tuple(x.shape) for x in maps] == [(2, 8, 12, 20), (2, 16, 6, 10), (2, 32, 3, 5), (2, 32, 1, 2)]
    assert tuple(x.shape[1] for x in maps) == pyramid.channels


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet_18", r"no model 'resnet_18'\..*resnet18"),
        ("inception_v3", "cannot be an encoder.*strides"),
        ("mixer_s16_224", "cannot be an encoder.*224"),
    ],
)
def test_what_cannot_be_an_encoder_is_refused_with_the_reason(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TimmEncoder(name)


def test_activations_are_not_recomputed_where_batches_would_count_twice() -> None:
    with pytest.raises(ConfigError, match="BatchNorm would count every batch twice"):
        TimmEncoder("resnet18").set_grad_checkpointing()


def test_the_registry_takes_timms_names() -> None:
    torch.manual_seed(0)
    model = create_model("timm/resnet18", 5, head="linear")
    assert model.encoder.name == "resnet18"
    assert model(torch.rand(2, 3, 33, 47)).logits.shape == (2, 5, 33, 47)
