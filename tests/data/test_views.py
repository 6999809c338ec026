"""Views: image and label move together, in one sample or a batch; sizes and padding are right; bad settings are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from trans4pass.build import build
from trans4pass.data import (
    ColorJitter,
    Compose,
    CoverCrop,
    EvalTransform,
    GaussianBlur,
    HorizontalFlip,
    Resize,
    Sample,
    ScaleCrop,
    TrainTransform,
    View,
    YawRoll,
)
from trans4pass.data.views import resize
from trans4pass.errors import ConfigError
from trans4pass.settings import parse

WIDTH, HEIGHT = 160, 80


def ramp(width: int = WIDTH, height: int = HEIGHT) -> tuple[Tensor, Tensor]:
    """A label that rises by one per pixel to the right and downwards, and an image whose red channel is the label."""
    label = (torch.arange(width) + torch.arange(height)[:, None]).to(torch.uint8)
    return torch.stack([label, torch.full_like(label, 90), torch.full_like(label, 160)]), label


def seen(view: Callable[..., Sample], seed: int = 0, sample: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """What the view makes of one image (3,H,W) and its label (H,W), by default of `ramp()`."""
    image, label = sample or ramp()
    result = view({"image": image[None], "label": label[None]}, [Generator().manual_seed(seed)])
    return result["image"][0], result["label"][0]


def offsets(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Red minus label inside the labelled region, a pixel away from its borders."""
    inside = label != 255
    difference = image[0].float() - label.float()
    core = torch.zeros_like(inside)
    core[3:-3, 3:-3] = True
    return difference[inside & core]


SETTINGS = {
    "resize down": {"size": (40, 32)},
    "resize up": {"size": (320, 200)},
    "cover_crop": {"size": (64, 64), "fit": "cover_crop"},
    "scale_crop": {"size": (64, 64), "fit": "scale_crop", "base": 80},
    "flip": {"size": (WIDTH, HEIGHT), "flip": 1.0},
    "blur": {"size": (WIDTH, HEIGHT), "blur": 1.0},
    "all": {"size": (96, 64), "fit": "scale_crop", "base": 64, "flip": 0.5, "blur": 0.5},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_image_and_label_stay_aligned(settings):
    transform = TrainTransform(**settings)
    for seed in range(8):
        torch.manual_seed(seed)
        image, label = transform(*ramp())
        width, height = settings["size"]
        assert image.shape == (3, height, width) and label.shape == (height, width)
        assert image.dtype == label.dtype == torch.uint8
        difference = offsets(image, label)
        # Rounding alone may part them. A label resized by plain "nearest" lags by up to 2 here.
        assert difference.abs().max() <= 1 and difference.mean().abs() <= 0.25


def test_downscaled_label_takes_the_pixels_at_the_cells_centres():
    label = torch.arange(WIDTH).expand(HEIGHT, WIDTH).to(torch.uint8)
    image = tv_tensors.Image(label.expand(3, -1, -1))
    _, small = resize(image, tv_tensors.Mask(label), (WIDTH // 4, HEIGHT))
    assert small[0, :3].tolist() == [2, 6, 10]


def test_resizing_makes_no_new_label_values():
    label = torch.tensor([0, 18, 255], dtype=torch.uint8)[torch.randint(3, (HEIGHT, WIDTH))]
    _, resized = EvalTransform((333, 77))(tv_tensors.Image(torch.zeros(3, HEIGHT, WIDTH)), tv_tensors.Mask(label))
    assert set(resized.unique().tolist()) == {0, 18, 255} and resized.shape == (77, 333)


def test_eval_transform_without_a_size_changes_nothing():
    image, label = ramp()
    same_image, same_label = EvalTransform(None)(image, label)
    assert same_image.equal(image) and same_label.equal(label)


def test_cover_crop_keeps_the_aspect_and_reaches_both_ends():
    lows, highs = set(), set()
    for seed in range(40):
        torch.manual_seed(seed)
        _, label = TrainTransform((80, 80), fit="cover_crop")(*ramp())  # as high as the image: only columns are chosen
        assert (label[:, 1:].int() - label[:, :-1].int() == 1).all()
        lows.add(int(label[0, 0]))
        highs.add(int(label[0, -1]))
    assert min(lows) < 8 and max(highs) > WIDTH - 8 and len(lows) > 20


def test_cover_crop_enlarges_a_smaller_image():
    _, label = TrainTransform((320, 160), fit="cover_crop")(*ramp())
    assert (label[0, 0], label[-1, -1]) == (0, WIDTH + HEIGHT - 2)


def test_scale_crop_scales_the_short_side_within_its_range():
    transform = TrainTransform((320, 320), fit="scale_crop", base=80, scale=(0.5, 2.0))
    heights = []
    for seed in range(60):
        torch.manual_seed(seed)
        _, label = transform(*ramp())
        heights.append(int((label != 255).any(dim=1).sum()))
    assert 40 <= min(heights) < 50 and 150 < max(heights) <= 160


def test_padding_is_black_and_ignored():
    image, label = TrainTransform((320, 320), fit="scale_crop", base=80, scale=(1.0, 1.0))(*ramp())
    assert (label[HEIGHT:] == 255).all() and (label[:, WIDTH:] == 255).all()
    assert (image[:, HEIGHT:] == 0).all() and (image[:, :, WIDTH:] == 0).all()
    assert label[:HEIGHT, :WIDTH].equal(ramp()[1])


def test_flip_and_blur_come_as_often_as_they_should():
    torch.manual_seed(0)
    transform = TrainTransform((WIDTH, HEIGHT), flip=0.25, blur=0.75)
    noise = tv_tensors.Image(torch.randint(256, (3, HEIGHT, WIDTH), dtype=torch.uint8))
    flips = blurs = 0
    for _ in range(200):
        image, label = transform(noise, ramp()[1])
        flipped = bool(label[0, 0] > label[0, -1])
        flips += flipped
        blurs += not image.equal(noise.flip(-1) if flipped else noise)
    assert 30 <= flips <= 70 and 100 <= blurs <= 160  # the weakest blurs change no byte


def test_jitter_changes_colours_and_no_label():
    torch.manual_seed(0)
    image, label = TrainTransform((WIDTH, HEIGHT), jitter=0.5)(*ramp())
    assert not image.equal(ramp()[0]) and label.equal(ramp()[1])
    untouched, _ = TrainTransform((WIDTH, HEIGHT))(*ramp())
    assert untouched.equal(ramp()[0])


def test_jitter_stays_within_its_strength():
    grey = tv_tensors.Image(torch.full((3, 32, 32), 100, dtype=torch.uint8))  # grey has no contrast, saturation or hue
    label = tv_tensors.Mask(torch.zeros(32, 32, dtype=torch.uint8))
    transform = TrainTransform((32, 32), jitter=0.2)
    values = {int(transform(grey, label)[0][0, 0, 0]) for _ in range(100)}
    assert 79 <= min(values) < 85 and 115 < max(values) <= 121


def test_yaw_roll_moves_both_around_the_border():
    image, label = roll(*ramp(), shift=3)
    assert label[0, :4].tolist() == [157, 158, 159, 0]
    assert image[0].equal(label)
    shifts = set()
    for seed in range(50):
        torch.manual_seed(seed)
        image, label = TrainTransform((WIDTH, HEIGHT), yaw_roll=True)(*ramp())
        assert image[0].equal(label) and label[0].sort().values.equal(ramp()[1][0])
        shifts.add(int(label[0].argmin()))
    assert min(shifts) < 16 and max(shifts) > WIDTH - 16


def test_yaw_roll_comes_before_the_crop():
    seams = 0
    for seed in range(40):
        torch.manual_seed(seed)
        _, label = TrainTransform((80, 80), fit="cover_crop", yaw_roll=True)(*ramp())
        seams += bool((label[0, 1:].int() - label[0, :-1].int() < 0).any())
    assert 8 <= seams <= 32  # a crop of half the width shows the seam about every other time


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fit": "crop"}, "fit='crop' is none of resize, cover_crop, scale_crop"),
        ({"flip": 1.5}, "flip=1.5 is not within 0..1"),
        ({"blur": -0.1}, "blur=-0.1 is not within 0..1"),
        ({"jitter": 2}, "jitter=2 is not within 0..1"),
        ({"flip": float("nan")}, "flip=nan"),
        ({"size": (31, 64)}, r"size=\(31, 64\) .*at least 32 pixels"),
        ({"size": (64.5, 64)}, "size="),
        ({"size": (64,)}, "size="),
        ({"fit": "scale_crop"}, "base=None with fit=scale_crop"),
        ({"base": 512}, "base=512 with fit=resize"),
        ({"fit": "scale_crop", "base": 8}, "base=8 is not at least 32"),
        ({"scale": (2.0, 0.5)}, "scale="),
        ({"scale": (0, 1)}, "scale="),
    ],
)
def test_bad_settings_are_refused_with_their_range(settings, words):
    with pytest.raises(ConfigError, match=words):
        TrainTransform(**({"size": (64, 64)} | settings))


def test_bad_evaluation_size_is_refused():
    with pytest.raises(ConfigError, match="at least 32 pixels"):
        EvalTransform((2048, 0))
