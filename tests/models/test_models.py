"""What every model keeps to, how the models start, and what is refused."""

from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trans4pass import SegOutput, create_model
from trans4pass.errors import ConfigError
from trans4pass.models import ENCODERS, HEADS, MODELS
from trans4pass.models.encoders.mix_transformer import MixTransformer, PatchEmbed, to_map
from trans4pass.models.heads.dmlp import StageProjection
from trans4pass.models.layers import BatchNorm2d

MICRO = ["trans4pass_micro", "trans4pass_plus_micro"]


@cache
def model_of(name: str) -> nn.Module:
    """A model with 13 classes, built once for all tests that leave its weights alone."""
    return create_model(name, 13)


def image(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("name", [name for name in MODELS if name[-2:] not in ("b4", "b5", "52")])  # the others' code
@pytest.mark.parametrize("size", [(33, 47), (32, 32), (64, 97)], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_contract(name: str, size: tuple[int, int], batch: int, training: bool) -> None:
    model = model_of(name).train(training)
    with torch.no_grad():
        output = model(image(batch, *size))
    assert isinstance(output, SegOutput)
    assert output.logits.shape == (batch, 13, *size)
    assert output.features.shape[:2] == (batch, model.head.feature_dim)
    assert all(len(x) == batch for x in output.aux.values())
    assert all(x.isfinite().all() for x in (output.logits, output.features, *output.aux.values()))


@pytest.mark.parametrize("name", MICRO)
@pytest.mark.parametrize("size", [(33, 47), (64, 97)], ids=str)
def test_features_have_a_quarter_of_the_size(name: str, size: tuple[int, int]) -> None:
    with torch.no_grad():
        features = model_of(name).eval()(image(2, *size)).features
    assert features.shape == (2, 128, -(-size[0] // 4), -(-size[1] // 4))


@pytest.mark.parametrize("name", MICRO)
def test_bytes_and_unit_floats_are_one_image(name: str) -> None:
    pixels = image(1, 33, 47)
    with torch.no_grad():
        from_bytes, from_floats = (model_of(name).eval()(x).logits for x in (pixels, pixels.float() / 255))
    assert torch.equal(from_bytes, from_floats)


@pytest.mark.parametrize("name", MICRO)
def test_normalised_input_is_the_same_image(name: str) -> None:
    pixels = torch.rand(1, 3, 32, 40)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = model_of(name).eval()(pixels).logits
        assert torch.allclose(model_of(name).forward_normalised((pixels - mean) / std).logits, expected, atol=1e-5)


@pytest.mark.parametrize("backend", ["native", "torchvision"])
@pytest.mark.parametrize("name", MICRO)
def test_gradients_reach_every_parameter(name: str, backend: str) -> None:
    model = create_model(name, 19, deform=(True, True, True, True), deform_backend=backend, drop_path=0.0)
    F.cross_entropy(model(image(2, 128, 160)).logits, torch.randint(0, 19, (2, 128, 160))).backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MICRO)
def test_backends_agree_on_a_training_step(name: str) -> None:
    """In float64: in float32 a sample near a pixel's centre may be rounded to either side, where its slope differs."""
    pixels, labels, states = image(2, 64, 96), torch.randint(0, 13, (2, 64, 96)), []
    for backend in ("native", "torchvision"):
        torch.manual_seed(0)
        model = create_model(name, 13, deform_backend=backend, drop_path=0.0).double()
        loss = F.cross_entropy(model(pixels).logits, labels)
        loss.backward()
        states.append([loss, *(p.grad for p in model.parameters())])
    for a, b in zip(*states, strict=True):
        assert (a - b).abs().max() <= 1e-9 * b.abs().max() + 1e-12


def test_a_deformable_convolution_starts_as_the_plain_one() -> None:
    model = create_model("trans4pass_micro", 13, deform=(True, True, False, False))
    layers = [m for m in model.modules() if isinstance(m, (PatchEmbed, StageProjection)) and m.deform]
    assert len(layers) == 6
    for layer in layers:
        x = torch.rand(2, layer.proj.in_channels, 20, 20)
        assert torch.allclose(layer.project(x), layer.proj(x), atol=1e-5)
        for conv in (layer.offset_conv, layer.modulator_conv):
            assert not conv.weight.any()
            assert not conv.bias.any()


def test_initial_values_follow_segformer() -> None:
    encoder = create_model("trans4pass_micro", 13).encoder
    block = encoder.block4[0]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.dwconv.dwconv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert not block.mlp.fc1.bias.any()
    assert (block.norm1.eps, encoder.norm4.eps, encoder.patch_embed1.norm.eps) == (1e-6, 1e-6, 1e-5)


@pytest.mark.parametrize(("name", "layers"), [("trans4pass_micro", 8), ("trans4pass_plus_micro", 4)])
def test_the_deformable_mlps_own_offsets_do_not_start_at_zero(name: str, layers: int) -> None:
    pointwise = [p for key, p in create_model(name, 13).named_parameters() if "pointwise" in key]
    assert len(pointwise) == layers
    assert all(p.std() > 0.01 for p in pointwise)


def test_drop_path_rises_linearly() -> None:
    encoder = create_model("trans4pass_tiny", 13, drop_path=0.7).encoder
    rates = [block.drop_path.drop_prob for s in range(1, 5) for block in getattr(encoder, f"block{s}")]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


def test_one_value_per_channel_uses_running_statistics() -> None:
    norm, x = BatchNorm2d(4), torch.rand(1, 4, 1, 1, requires_grad=True)
    norm.running_mean.fill_(0.5)
    out = norm(x)
    assert torch.allclose(out, (x - 0.5) / (1 + norm.eps) ** 0.5)
    assert norm.running_mean.eq(0.5).all()
    assert norm.num_batches_tracked == 0
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(norm), nn.SyncBatchNorm)


def test_normalisation_is_not_saved() -> None:
    assert not [key for key in create_model("trans4pass_micro", 13).state_dict() if "mean" in key and "norm" not in key]


@pytest.mark.parametrize("size", [(31, 64), (64, 16)])
def test_a_small_image_is_refused_with_its_size(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"{size[1]}x{size[0]}.*32"):
        model_of("trans4pass_micro")(image(1, *size))


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean trans4pass_plus_tiny\?.*trans4pass_micro"):
        create_model("trans4pass_plus_tin", 13)


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"deform_backend": "cuda"}, "auto, native, torchvision"), ({"deform": (True,)}, r"model\.deform")],
)
def test_a_wrong_setting_is_refused_when_built(setting: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_model("trans4pass_micro", 13, **setting)


@pytest.mark.parametrize("name", [*MICRO, "danet_resnet50"])
def test_batch_norms_can_be_synchronised(name: str) -> None:
    model = create_model(name, 5, ecrm=True)
    keys, count = list(model.state_dict()), sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in model.modules()) == count > 0
    assert list(model.state_dict()) == keys


def test_recomputed_activations_give_the_same_gradients() -> None:
    pixels, grads = image(2, 64, 96), []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = create_model("trans4pass_micro", 5, drop_path=0.5)
        model.encoder.recompute = recompute
        torch.manual_seed(1)
        model(pixels).logits.square().mean().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_images_that_would_be_misread_are_refused() -> None:
    model = create_model("trans4pass_micro", 5, embed_dim=16).eval()
    image = torch.randint(0, 256, (1, 3, 32, 64))
    for wrong in (image, image.int(), image[:, :1].byte(), image[0].byte(), image.bool()):
        with pytest.raises(ConfigError, match="uint8 or floating"):
            model(wrong)
    with torch.no_grad():
        expected = model(image.byte()).logits
        assert (model(image.double() / 255).logits - expected).abs().max() < 1e-4


def test_one_images_tokens_are_convolved_without_a_copy() -> None:
    """Whether a convolution sees its input as channels-last shows in its result's layout."""
    tokens = torch.randn(1, 24 * 16, 64)
    assert torch.equal(to_map(tokens, (24, 16))[0, :, 3, 5], tokens[0, 3 * 16 + 5])
    result = torch.nn.Conv2d(64, 64, 3, padding=1, groups=64)(to_map(tokens, (24, 16)))
    assert result.stride() == (24 * 16 * 64, 1, 16 * 64, 64)


# ------------------------------------------------------------------------------------------- encoders of one's own


class OwnEncoder(MixTransformer):
    """As a plug-in writes one: a setting of its own, all others handed on."""

    def __init__(self, scale: float = 1.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.scale = scale


def own_encoder(**settings: Any) -> MixTransformer:
    return MixTransformer("micro", **settings)


@pytest.mark.parametrize("make", [partial(OwnEncoder, size="micro"), own_encoder])
def test_an_encoder_that_hands_its_settings_on_gets_the_models(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "own", make)
    settings = {"deform": [False, True, False, False], "drop_path": 0.5, "embed_dim": 32, "deform_backend": "native"}
    model = create_model("own", 5, head="dmlp", **settings)
    assert [getattr(model.encoder, f"patch_embed{stage}").deform for stage in (1, 2, 3, 4)] == settings["deform"]
    assert model.encoder.patch_embed2.backend == "native"
    assert model.encoder.block4[-1].drop_path.drop_prob == 0.5
    assert model.head.feature_dim == 32


def test_an_encoders_own_setting_beside_those_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "own", partial(OwnEncoder, size="micro"))
    assert create_model("own", 5, head="linear", scale=2.0, drop_path=0.0).encoder.scale == 2.0
    with pytest.raises(ConfigError, match=r"model\.scal has no effect: no encoder and no head takes it.*scale"):
        create_model("own", 5, head="linear", scal=2.0)


def test_what_takes_any_setting_gets_those_that_nothing_else_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def open_head(channels: Any, num_classes: int, **settings: Any) -> nn.Module:
        given.update(settings)
        return HEADS["linear"](channels, num_classes)

    monkeypatch.setitem(HEADS, "open", open_head)
    create_model("micro", 5, head="open", drop_path=0.5, deform_backend="native", temperature=2.0)
    assert given == {"deform_backend": "native", "temperature": 2.0}  # drop_path is the encoder's
