"""Circular padding: a panorama has no left edge, so turning it first or afterwards is the same."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trans4pass import create_model
from trans4pass.errors import ConfigError
from trans4pass.inference import TTA, Predictor
from trans4pass.models import Segmentor, circular, resize
from trans4pass.models.circular import pad_circular

MODELS = [
    ("trans4pass_micro", {"deform": (True, True, True, True)}),
    ("trans4pass_plus_micro", {"ecrm": True}),
    ("trans4pass_micro", {"head": "fpn", "edges": True}),
    ("trans4pass_micro", {"head": "coarse_to_fine"}),
    ("danet_resnet50", {}),
]


def make(name: str, wrap: bool = True, **options) -> Segmentor:
    """A model in float64 whose every parameter and statistic is random: offsets, gates and ECRM's bank too."""
    torch.manual_seed(0)
    model = create_model(name, 5, wrap=wrap, embed_dim=16, **options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for key, buffer in model.named_buffers():
            if "bank" in key:
                buffer.normal_()
            if key.endswith("written"):
                buffer.fill_(3)
    return model


def seam_jump(model: nn.Module, image: Tensor) -> float:
    """How far the prediction of a turned image is from the turned prediction."""
    with torch.no_grad():
        whole = model(image)
        return max(
            (model(image.roll(shift, -1)).logits - whole.logits.roll(shift, -1)).abs().max().item()
            for shift in (32, -64)
        )


@pytest.mark.parametrize(("name", "options"), MODELS, ids=lambda x: str(x))
def test_prediction_commutes_with_yaw(name: str, options: dict) -> None:
    image = torch.rand(1, 3, 50, 128, dtype=torch.float64)
    assert seam_jump(make(name, **options), image) < 1e-8
    assert seam_jump(make(name, wrap=False, **options), image) > 1e-3


def test_weights_fit_with_and_without() -> None:
    plain, wrapped = make("trans4pass_micro", wrap=False), make("trans4pass_micro")
    wrapped.load_state_dict(plain.state_dict())
    image = torch.rand(1, 3, 64, 256, dtype=torch.float64)
    with torch.no_grad():
        difference = (wrapped(image).logits - plain(image).logits).abs()
    assert difference.max() > 0


@pytest.mark.parametrize(("width", "columns"), [(5, 2), (1, 1), (2, 3)])
def test_padding_goes_round(width: int, columns: int) -> None:
    x = torch.arange(width).view(1, 1, 1, width)
    assert pad_circular(x, columns).flatten().tolist() == [i % width for i in range(-columns, width + columns)]


@pytest.mark.parametrize(("width", "size"), list(product((1, 4, 6), (1, 3, 8, 12))))
def test_resizing_goes_round(width: int, size: int) -> None:
    """Equal to half-pixel resizing of the panorama three times over, of which the middle one is kept."""
    x = torch.randn(2, 3, 5, width, dtype=torch.float64)
    expected = F.interpolate(x.repeat(1, 1, 1, 3), (7, 3 * size), mode="bilinear", align_corners=False)
    assert torch.allclose(resize(x, (7, size), True, align_corners=False), expected[..., size : 2 * size], atol=1e-12)


@pytest.mark.parametrize(("wrap", "align_corners"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("size", [(12, 24), (3, 4), (5, 6), (5, 24), (1, 1)])
def test_resizing_for_deterministic_gpus_is_torchs(
    size: tuple[int, int], wrap: bool, align_corners: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, of a map of 5 rows and 6 columns and of one pixel."""
    kind, found = {"dtype": torch.float64}, []
    grad = torch.randn(2, 3, *size, **kind)
    for x in (torch.randn(2, 3, 5, 6, requires_grad=True, **kind), torch.randn(2, 3, 1, 1, requires_grad=True, **kind)):
        for slow in (False, True):
            monkeypatch.setattr(circular, "is_slow", lambda device, slow=slow: slow)
            result = resize(x, size, wrap, align_corners)
            found.append((result, *torch.autograd.grad(result, x, grad)))
    for expected, actual in (found[:2], found[2:]):
        for one, other in zip(expected, actual, strict=True):
            assert torch.allclose(one, other, atol=1e-12)


def test_other_widths_are_refused_by_the_model_and_rounded_by_the_predictor() -> None:
    model = make("trans4pass_micro").float()
    with pytest.raises(ConfigError, match=r"90 pixels wide.*multiple of 32.*wrap=false"):
        model(torch.rand(1, 3, 32, 90))
    images = torch.randint(0, 256, (1, 3, 40, 90), dtype=torch.uint8)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[2:])))
    logits = Predictor(model, torch.device("cpu"), TTA(scales=(0.75, 1.0, 1.5)))(images)
    assert logits.shape == (1, 5, 40, 90)
    assert seen == [(32, 64), (40, 96), (60, 128)]


def test_the_backend_that_cannot_wrap_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"than mmcv, .*: auto"):
        create_model("trans4pass_micro", 5, wrap=True, deform_backend="mmcv")
