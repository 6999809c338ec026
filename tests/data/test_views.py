"""Views: image and label move together, alone or in a batch; sizes and padding are right; bad settings are refused."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from trans4pass.data import (
    AroundSphere,
    ColorJitter,
    Compose,
    CoverCrop,
    EvalTransform,
    GaussianBlur,
    GaussianNoise,
    HorizontalFlip,
    Resize,
    Sample,
    ScaleCrop,
    Tilt,
    ToSphere,
    TrainTransform,
    View,
    YawRoll,
    views,
)
from trans4pass.data.views import resize
from trans4pass.errors import ConfigError
from trans4pass.settings import parse

WIDTH, HEIGHT = 160, 80


def ramp(width: int = WIDTH, height: int = HEIGHT) -> tuple[Tensor, Tensor]:
    """A label that rises by one per pixel to the right and downwards, and an image whose red channel is the label."""
    label = (torch.arange(width) + torch.arange(height)[:, None]).to(torch.uint8)
    return torch.stack([label, torch.full_like(label, 90), torch.full_like(label, 160)]), label


def seen(view: View, seed: int = 0, sample: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """What the view makes of one image (3,H,W) and its label (H,W), by default of `ramp()`."""
    image, label = sample or ramp()
    result = view({"image": image[None], "label": label[None]}, generators(seed))
    return result["image"][0], result["label"][0]


def generators(*seeds: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in seeds]


def of_settings(**settings: Any) -> TrainTransform:
    """As a configuration makes it, with its values checked."""
    return parse(TrainTransform, {"size": (WIDTH, HEIGHT)} | settings, "transform")


def offsets(image: Tensor, label: Tensor) -> Tensor:
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
    transform = of_settings(**settings)
    for seed in range(8):
        image, label = seen(transform, seed)
        width, height = settings["size"]
        assert image.shape == (3, height, width) and label.shape == (height, width)
        assert image.dtype == label.dtype == torch.uint8
        difference = offsets(image, label)
        # Rounding alone may part them. A label resized by plain "nearest" lags by up to 2 here.
        assert difference.abs().max() <= 1 and difference.mean().abs() <= 0.25


# Every view, with settings that leave no sample as it was for all seeds.
VIEWS = {
    "yaw roll": YawRoll(),
    "resize": Resize((40, 32)),
    "cover crop": CoverCrop((64, 64)),
    "scale crop": ScaleCrop((64, 64), 80),
    "flip": HorizontalFlip(),
    "jitter": ColorJitter(0.5),
    "blur": GaussianBlur(0.5),
    "evaluation": EvalTransform((40, 32)),
    "evaluation at any size": EvalTransform(),
    "several": Compose({"roll": YawRoll(), "crop": CoverCrop((64, 64)), "jitter": ColorJitter(0.5)}),
    "tilt": Tilt((5.0, 20.0)),
    "to sphere": of_settings(size=(64, 64), fit="cover_crop", views={"bend": ToSphere((60.0, 120.0))}),
    "around sphere": of_settings(size=(64, 32), fit="cover_crop", views={"bend": AroundSphere(2, (100.0, 150.0))}),
    "a recipe": of_settings(size=(64, 64), fit="scale_crop", base=64, flip=0.5, blur=0.5, jitter=0.5, yaw_roll=True),
}


def noise(count: int) -> Sample:
    """Images of noise, with labels, and with weights, which methods put into samples."""
    draw = Generator().manual_seed(0)
    return {
        "image": torch.randint(256, (count, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=draw),
        "label": torch.randint(19, (count, HEIGHT, WIDTH), dtype=torch.uint8, generator=draw),
        "weight": torch.rand(count, HEIGHT, WIDTH, generator=draw),
    }


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("floating", [False, True], ids=["uint8", "float"])
def test_a_batch_is_seen_as_its_samples_are_one_by_one(view, floating):
    batch, seeds = noise(5), [11, 12, 13, 11, 15]
    batch["image"][3], batch["label"][3] = batch["image"][0], batch["label"][0]
    if floating:
        batch["image"] = batch["image"].float() / 255
    whole = view(batch, generators(*seeds))
    single = [view({key: x[i : i + 1] for key, x in batch.items()}, generators(seed)) for i, seed in enumerate(seeds)]
    for key in batch:
        assert whole[key].equal(torch.cat([sample[key] for sample in single])), key
        assert whole[key].dtype == batch[key].dtype
    assert whole["image"][3].equal(whole["image"][0])  # what was drawn follows from the generator, not from the place


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_draws_from_its_generators_only_and_changes_nothing_in_place(view):
    batch = noise(2)
    before = {key: x.clone() for key, x in batch.items()}
    state = torch.get_rng_state()
    first, other = view(batch, generators(1, 2)), view(batch, generators(1, 2))
    assert torch.get_rng_state().equal(state)
    assert all(first[key].equal(other[key]) for key in batch)
    assert all(batch[key].equal(x) for key, x in before.items())


@pytest.mark.parametrize(
    "name", ["yaw roll", "cover crop", "scale crop", "flip", "jitter", "blur", "tilt", "to sphere"]
)
def test_each_sample_of_a_batch_draws_for_itself(name):
    one = {key: x[:1].expand(8, *x.shape[1:]) for key, x in noise(1).items()}
    images = VIEWS[name](one, generators(*range(8)))["image"]
    assert len({image.numpy().tobytes() for image in images}) > 1


def test_weights_go_where_the_labels_go():
    weight = torch.rand(1, HEIGHT, WIDTH)
    image, label = ramp()
    for seed in range(4):
        sample = {"image": image[None], "label": label[None], "weight": label[None].float()}
        result = of_settings(size=(64, 64), fit="scale_crop", base=80, flip=0.5)(sample, generators(seed))
        labelled = result["label"] != 255
        assert result["weight"][labelled].equal(result["label"][labelled].float())
        assert not result["weight"][~labelled].any()  # padding weighs nothing
    assert GaussianBlur(1.0)({"image": image[None], "weight": weight}, generators(0))["weight"].equal(weight)


def test_views_of_ones_own_come_first_in_a_recipe():
    class Whitening(View):
        def one(self, sample: Sample, generator: Generator) -> Sample:
            return {**sample, "image": torch.full_like(sample["image"], 255)}

    image, label = seen(TrainTransform((320, 320), "scale_crop", 80, (1.0, 1.0), views={"white": Whitening()}))
    assert (image[:, label != 255] == 255).all() and (image[:, label == 255] == 0).all()


def test_a_recipe_needs_panoramas_where_one_of_its_views_does():
    assert of_settings(yaw_roll=True).needs_panorama and not of_settings().needs_panorama
    assert Compose({"flip": HorizontalFlip(), "roll": YawRoll()}).needs_panorama


def test_downscaled_label_takes_the_pixels_at_the_cells_centres():
    label = torch.arange(WIDTH).expand(1, HEIGHT, WIDTH).to(torch.uint8)
    small = resize({"image": label.expand(1, 3, -1, -1), "label": label}, (WIDTH // 4, HEIGHT))["label"]
    assert small[0, 0, :3].tolist() == [2, 6, 10]


def test_resizing_makes_no_new_label_values():
    label = torch.tensor([0, 18, 255], dtype=torch.uint8)[torch.randint(3, (HEIGHT, WIDTH))]
    _, resized = seen(EvalTransform((333, 77)), sample=(torch.zeros(3, HEIGHT, WIDTH), label))
    assert set(resized.unique().tolist()) == {0, 18, 255} and resized.shape == (77, 333)


def test_eval_transform_without_a_size_changes_nothing():
    image, label = ramp()
    same_image, same_label = seen(EvalTransform(None))
    assert same_image.equal(image) and same_label.equal(label)


def test_cover_crop_keeps_the_aspect_and_reaches_both_ends():
    lows, highs = set(), set()
    for seed in range(40):
        # As high as the image: only columns are chosen.
        _, label = seen(of_settings(size=(80, 80), fit="cover_crop"), seed)
        assert (label[:, 1:].int() - label[:, :-1].int() == 1).all()
        lows.add(int(label[0, 0]))
        highs.add(int(label[0, -1]))
    assert min(lows) < 8 and max(highs) > WIDTH - 8 and len(lows) > 20


def test_cover_crop_enlarges_a_smaller_image():
    _, label = seen(of_settings(size=(320, 160), fit="cover_crop"))
    assert (label[0, 0], label[-1, -1]) == (0, WIDTH + HEIGHT - 2)


def test_scale_crop_scales_the_short_side_within_its_range():
    transform = of_settings(size=(320, 320), fit="scale_crop", base=80, scale=(0.5, 2.0))
    heights = [int((seen(transform, seed)[1] != 255).any(dim=1).sum()) for seed in range(60)]
    assert 40 <= min(heights) < 50 and 150 < max(heights) <= 160


@pytest.mark.parametrize("scale", [(0.3, 0.9), (1.0, 1.0), (1.1, 3.0)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_scaling_what_the_crop_keeps_is_cropping_what_was_scaled(
    scale: tuple[float, float], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(views, "MANY_PIXELS", 0)
    image = torch.randint(256, (1, 3, 77, 131), dtype=torch.uint8, generator=Generator().manual_seed(0))
    image = image if dtype == torch.uint8 else image / 255
    label = torch.randint(20, (1, 77, 131), dtype=torch.uint8, generator=Generator().manual_seed(1))
    for seed in range(12):
        draw = Generator().manual_seed(seed)
        factor = 80 * (scale[0] + (scale[1] - scale[0]) * torch.rand((), generator=draw).item()) / 77
        whole = resize({"image": image, "label": label}, (round(131 * factor), round(77 * factor)))
        fill = {"image": 0, "label": 255}
        margin = [0, 0, max(0, 64 - whole["image"].shape[-1]), max(0, 48 - whole["image"].shape[-2])]
        whole = {key: F.pad(x, margin, fill=fill[key]) for key, x in whole.items()}
        height, width = whole["image"].shape[-2:]
        top, left = (int(torch.randint(start + 1, (), generator=draw)) for start in (height - 48, width - 64))
        expected = {key: x[..., top : top + 48, left : left + 64] for key, x in whole.items()}
        found = ScaleCrop((64, 48), 80, scale)({"image": image, "label": label}, generators(seed))
        assert found["label"].equal(expected["label"])
        tolerance = 1 if dtype == torch.uint8 else 1e-5
        difference = (found["image"].float() - expected["image"].float()).abs()
        assert difference.max() <= tolerance and difference.mean() < 0.25 * tolerance


def test_padding_is_black_and_ignored():
    image, label = seen(of_settings(size=(320, 320), fit="scale_crop", base=80, scale=(1.0, 1.0)))
    assert (label[HEIGHT:] == 255).all() and (label[:, WIDTH:] == 255).all()
    assert (image[:, HEIGHT:] == 0).all() and (image[:, :, WIDTH:] == 0).all()
    assert label[:HEIGHT, :WIDTH].equal(ramp()[1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("view", [ColorJitter(0.5), GaussianBlur(1.0), GaussianNoise(0.1)])
def test_padding_stays_black_whatever_colours_do(view: View, dtype: torch.dtype) -> None:
    """So that alignment and teachers still know it."""
    image = torch.full((2, 3, 32, 40), 90, dtype=torch.uint8)
    image[..., 30:] = 0
    image = image if dtype == torch.uint8 else image / 255
    sample = {"image": image, "label": torch.zeros(2, 32, 40, dtype=torch.uint8)}
    seen = view(sample, [torch.Generator().manual_seed(number) for number in (1, 2)])["image"]
    assert (seen[..., 30:] == 0).all() and seen[..., :30].amax(1).min() > 0
    assert seen.dtype == dtype and not torch.equal(seen, image)


def test_flip_and_blur_come_as_often_as_they_should():
    transform = of_settings(flip=0.25, blur=0.75)
    image = torch.randint(256, (3, HEIGHT, WIDTH), dtype=torch.uint8)
    flips = blurs = 0
    for seed in range(200):
        result, label = seen(transform, seed, (image, ramp()[1]))
        flipped = bool(label[0, 0] > label[0, -1])
        flips += flipped
        blurs += not result.equal(image.flip(-1) if flipped else image)
    assert 30 <= flips <= 70 and 100 <= blurs <= 160  # the weakest blurs change no byte


def test_jitter_changes_colours_and_no_label():
    image, label = seen(of_settings(jitter=0.5))
    assert not image.equal(ramp()[0]) and label.equal(ramp()[1])
    untouched, _ = seen(of_settings())
    assert untouched.equal(ramp()[0])


def test_jitter_stays_within_its_strength():
    grey = torch.full((3, 32, 32), 100, dtype=torch.uint8)  # grey has no contrast, saturation or hue
    label = torch.zeros(32, 32, dtype=torch.uint8)
    transform = of_settings(size=(32, 32), jitter=0.2)
    values = {int(seen(transform, seed, (grey, label))[0][0, 0, 0]) for seed in range(100)}
    assert 79 <= min(values) < 85 and 115 < max(values) <= 121


def test_yaw_roll_moves_both_around_the_border():
    shifts = set()
    for seed in range(50):
        image, label = seen(of_settings(yaw_roll=True), seed)
        shift = int(label[0].argmin())
        assert image[0].equal(label) and label.equal(ramp()[1].roll(shift, -1))
        shifts.add(shift)
    assert min(shifts) < 16 and max(shifts) > WIDTH - 16


def test_yaw_roll_comes_before_the_crop():
    seams = 0
    for seed in range(40):
        _, label = seen(of_settings(size=(80, 80), fit="cover_crop", yaw_roll=True), seed)
        seams += bool((label[0, 1:].int() - label[0, :-1].int() < 0).any())
    assert 8 <= seams <= 32  # a crop of half the width shows the seam about every other time


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fit": "crop"}, "fit.*'crop'.*resize.*cover_crop.*scale_crop"),
        ({"flip": 1.5}, "flip is 1.5: .*less than or equal to 1"),
        ({"blur": -0.1}, "blur is -0.1: .*greater than or equal to 0"),
        ({"jitter": 2}, "jitter is 2: .*less than or equal to 1"),
        ({"flip": float("nan")}, "flip is nan: "),
        ({"size": (31, 64)}, r"size.0 is 31: .*greater than or equal to 32"),
        ({"size": (64.5, 64)}, r"size.0 is 64.5: "),
        ({"size": (64,)}, "size"),
        ({"fit": "scale_crop"}, "base=None with fit=scale_crop"),
        ({"base": 512}, "base=512 with fit=resize"),
        ({"fit": "scale_crop", "base": 8}, "base is 8: .*greater than or equal to 32"),
        ({"scale": (2.0, 0.5)}, "scale is .*first number must be at most its second"),
        ({"scale": (0, 1)}, "scale.0 is 0: .*greater than 0"),
        ({"fit": "scale_crop", "base": 64, "scale": (2.0, 0.5)}, "scale is "),
    ],
)
def test_bad_settings_are_refused_with_their_range(settings, words):
    with pytest.raises(ConfigError, match=words):
        of_settings(**settings)


def test_bad_evaluation_size_is_refused():
    with pytest.raises(ConfigError, match=r"size.1 is 0: .*greater than or equal to 32"):
        parse(EvalTransform, {"size": [2048, 0]}, "transform")
