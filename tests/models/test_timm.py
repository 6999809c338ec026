"""Timm's encoders: DANet's dilated ResNets against torchvision's, and any other as four maps of the image's size."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from tests.models import tiny_encoders
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

# The field's, as timm calls them: built and called without memory.
REAL = ["convnext_tiny.dinov3_lvd1689m", "vit_base_patch16_dinov3", "vit_small_patch14_reg4_dinov2", "sam2_hiera_tiny"]
MORE = [
    "caformer_s18", "fastvit_t8", "tf_efficientnet_lite0", "swinv2_tiny_window8_256",
    "convnext_tiny", "resnet50", "swin_tiny_patch4_window7_224", "vit_small_patch16_dinov3", "vit_large_patch16_dinov3",
    "vit_base_patch14_reg4_dinov2", "vit_large_patch14_dinov2", "samvit_base_patch16", "efficientvit_b0", "pvt_v2_b0",
]  # fmt: skip
SIZES = ((32, 32), (33, 47), (65, 33), (96, 448))


def check_maps(encoder: TimmEncoder, device: str, *sizes: tuple[int, int]) -> None:
    assert encoder.strides == (4, 8, 16, 32) and len(encoder.channels) == 4
    for size in sizes:
        with torch.no_grad(), torch.device(device):
            maps = encoder.eval()(torch.randn(1, 3, *size))
        expected = [(1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(encoder.channels, encoder.strides)]
        assert [tuple(x.shape) for x in maps] == expected
        assert device == "meta" or all(x.isfinite().all() for x in maps)


@pytest.mark.parametrize("family", tiny_encoders.NAMES)
def test_any_architecture_gives_four_maps_of_the_images_size(family: str) -> None:
    torch.manual_seed(0)
    check_maps(TimmEncoder(tiny_encoders.NAMES[family]), "cpu", *SIZES)


@pytest.mark.parametrize("name", [*REAL, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_the_fields_encoders_can_be_built(name: str) -> None:
    with torch.device("meta"):
        encoder = TimmEncoder(name, drop_path=0.1)
    check_maps(encoder, "meta", (33, 47), (400, 2048))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224", "sam2_hiera_tiny"])
def test_the_fields_encoders_encode(name: str) -> None:
    check_maps(TimmEncoder(name), "cpu", (33, 47), (64, 448))


def test_a_plain_transformer_keeps_its_blocks_and_its_norm() -> None:
    """Cut behind its last block, whose map, normalised, is the pyramid's third."""
    torch.manual_seed(0)
    encoder = TimmEncoder("tiny_vit_patch16").eval()
    model = encoder.body.model
    assert len(model.blocks) == 3 and isinstance(model.norm, nn.LayerNorm)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        tokens = model.norm(model.blocks(model._pos_embed(model.patch_embed(x))))[:, 1:]
        assert torch.allclose(encoder(x)[2], tokens.transpose(1, 2).unflatten(2, (4, 6)), atol=1e-5)


def test_images_are_normalised_as_the_encoders_were() -> None:
    """The tiny ones have a mean of their own, 0.5, 0.4 and 0.3."""
    model = create_model("timm/tiny_convnext", 5, head="linear").eval()
    assert model.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert model.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert create_model("timm/tf_efficientnet_lite0", 5, head="linear").std.flatten().tolist() == [0.5] * 3
    pixels = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
    with torch.no_grad():
        logits = model(pixels).logits
        assert torch.equal(model(pixels.float() / 255).logits, logits)
        normalised = (pixels / 255 - model.mean) / model.std
        assert torch.allclose(model.forward_normalised(normalised).logits, logits, atol=1e-5)


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


@pytest.mark.parametrize("family", ["convnext", "swin", "sam2_hiera", "vit_patch14_dinov2", "vit_patch16_dinov3"])
def test_recomputed_activations_give_the_same_gradients(family: str) -> None:
    torch.manual_seed(0)
    encoder, x = TimmEncoder(tiny_encoders.NAMES[family], drop_path=0.0), torch.randn(1, 3, 32, 64)
    layers, calls = [m for m in encoder.body.modules() if isinstance(m, nn.Linear)], []
    for layer in layers:
        layer.register_forward_hook(lambda *call: calls.append(call[0]))
    grads, counts = [], []
    for recompute in (False, True):
        encoder.zero_grad()
        calls.clear()
        if recompute:
            encoder.set_grad_checkpointing()
        sum(m.square().mean() for m in encoder(x)).backward()
        grads.append([p.grad.clone() for p in encoder.parameters()])
        counts.append(len(calls))
    assert counts[1] > 1.5 * counts[0] > 0
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*grads, strict=True))


def test_activations_are_not_recomputed_where_batches_would_count_twice() -> None:
    with pytest.raises(ConfigError, match="BatchNorm would count every batch twice"):
        TimmEncoder("tiny_resnet").set_grad_checkpointing()


@pytest.mark.parametrize(
    "family", ["resnet", "convnext", "efficientnet_lite", "swin", "sam2_hiera", "vit_patch14_dinov2"]
)
def test_sides_meet_where_the_layers_allow_it(family: str) -> None:
    """What is not refused is circular: a rolled image's logits are the image's, rolled."""
    make = partial(create_model, f"timm/tiny_{family}", 5, head="linear", wrap=True)
    with torch.device("meta"):
        make()  # nothing can be tried there, and nothing is refused
    torch.manual_seed(0)
    if family not in ("resnet", "convnext"):
        with pytest.raises(ConfigError, match=f"wrap=true: tiny_{family} has layers that cannot be circular"):
            make()
        return
    model, image = make().eval(), torch.rand(1, 3, 64, 128)
    with torch.no_grad():
        logits, rolled = model(image).logits, model(image.roll(32, -1)).logits
    assert torch.allclose(rolled, logits.roll(32, -1), atol=1e-4)


def test_the_registry_takes_timms_names() -> None:
    torch.manual_seed(0)
    model = create_model("timm/tiny_resnet", 5, head="linear")
    assert model.encoder.name == "tiny_resnet"
    assert model(torch.rand(2, 3, 33, 47)).logits.shape == (2, 5, 33, 47)
