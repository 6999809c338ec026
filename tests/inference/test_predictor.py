"""Test-time augmentation against exact identities and a loop written out; the score of a set against counting."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.small import InMemory, Neighbourhood, Pixelwise, label_space
from trans4pass import create_model
from trans4pass.errors import ConfigError, DataError, NonFinite
from trans4pass.inference import TTA, Predictor, evaluate, predict_all
from trans4pass.interrupts import Interrupted, Interrupts
from trans4pass.models import input_size
from trans4pass.precision import Precision
from trans4pass.settings import parse

CPU = torch.device("cpu")
ALL = TTA(scales=(0.5, 1.0, 1.5), flip=True, yaw_rolls=3)
SPACE = label_space(["road", "sky", "car"])


def images(height: int = 64, width: int = 128, count: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(images).logits


# ---- views that undo exactly ----


@pytest.mark.parametrize("tta", [TTA(flip=True), TTA(yaw_rolls=4), TTA(flip=True, yaw_rolls=3)])
def test_mirrored_and_rolled_views_of_a_pixelwise_network_are_undone(tta: TTA) -> None:
    """Width 128 in 3 and 4 rolls: neither a roll nor twice a roll is a whole turn."""
    network, picture = Pixelwise(), images(count=2)
    assert (Predictor(network, CPU, tta)(picture) - logits_of(network, picture)).abs().max() < 1e-6


def test_scaled_views_of_a_ramp_are_undone() -> None:
    """Bilinear resizing keeps what is linear in both directions."""
    network = Pixelwise()
    ramp = (torch.arange(64)[:, None] + torch.arange(128)).to(torch.uint8).expand(1, 3, -1, -1)
    result = Predictor(network, CPU, TTA(scales=(0.5, 0.75, 1.75), flip=True))(ramp)
    assert (result - logits_of(network, ramp)).abs().max() < 1e-5


# ---- against the loop written out ----


def resized(x: Tensor, height: int, width: int, wrap: bool) -> Tensor:
    """Bilinear, by its definition: corners aligned; with `wrap`, columns are cells of a ring."""
    rows, columns = x.shape[2:]
    y = torch.arange(height) * (rows - 1) / (height - 1)
    x_ = (
        (torch.arange(width) + 0.5) * columns / width - 0.5
        if wrap
        else torch.arange(width) * (columns - 1) / (width - 1)
    )
    for axis, place, size, ring in ((2, y, rows, False), (3, x_, columns, wrap)):
        low, share = place.floor().long(), place - place.floor()
        first, second = (index % size if ring else index.clamp(max=size - 1) for index in (low, low + 1))
        share = share.view(-1, 1) if axis == 2 else share
        x = x.index_select(axis, first) * (1 - share) + x.index_select(axis, second) * share
    return x


def mean_over_views(network: nn.Module, images: Tensor, tta: TTA) -> Tensor:
    height, width = images.shape[2:]
    results = []
    for roll in range(tta.yaw_rolls):
        shift = width * roll // tta.yaw_rolls
        there = [(column - shift) % width for column in range(width)]  # the view's column is the image's
        back = [(column + shift) % width for column in range(width)]
        for scale in tta.scales:
            columns = round(width * scale / 32) * 32 if network.wrap else round(width * scale)
            view = resized(images[..., there] / 255, round(height * scale), columns, network.wrap)
            logits = resized(logits_of(network, view), height, width, network.wrap)
            results.append(logits[..., back])
            if tta.flip:
                mirror = range(columns - 1, -1, -1)
                logits = resized(logits_of(network, view[..., mirror]), height, width, network.wrap)
                results.append(logits[..., range(width - 1, -1, -1)][..., back])
    return torch.stack(results).mean(0)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(
    "tta",
    [TTA(), TTA(flip=True), TTA(yaw_rolls=3), TTA((0.6,)), TTA((1.6, 0.6)), ALL],
    ids=str,
)
def test_the_mean_over_views_is_the_loop(tta: TTA, wrap: bool) -> None:
    network, picture = Neighbourhood(wrap=wrap), images(count=2)
    result = Predictor(network, CPU, tta)(picture)
    assert (result - mean_over_views(network, picture, tta)).abs().max() < 1e-4
    if tta != TTA():
        assert (result - logits_of(network, picture)).abs().max() > 1e-2, "the views change nothing"


def test_a_network_without_wrap_does_not_wrap() -> None:
    silent, picture = Neighbourhood(), images()
    del silent.wrap
    assert torch.equal(Predictor(silent, CPU, ALL)(picture), Predictor(Neighbourhood(), CPU, ALL)(picture))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("yaw_rolls", [1, 3])
def test_the_network_sees_each_view_once(flip: bool, yaw_rolls: int) -> None:
    network, seen = Pixelwise(), []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    Predictor(network, CPU, TTA((0.5, 1.0), flip, yaw_rolls))(images())
    assert sorted(seen) == sorted([(1, 3, 32, 64), (1, 3, 64, 128)] * yaw_rolls * (1 + flip))


@pytest.mark.parametrize(
    ("size", "scale", "wrap", "expected"),
    [
        ((64, 128), 1.0, False, (64, 128)),
        ((64, 100), 0.77, False, (49, 77)),
        ((65, 100), 0.5, False, (32, 50)),  # 32.5 rounds to even
        ((67, 100), 0.5, False, (34, 50)),
        ((64, 128), 0.25, False, (32, 32)),  # no side below 32
        ((64, 128), 0.7, True, (45, 96)),  # 89.6 to a multiple of 32
        ((64, 128), 0.9, True, (58, 128)),
        ((64, 128), 0.1, True, (32, 32)),
    ],
)
def test_input_sizes(size: tuple, scale: float, wrap: bool, expected: tuple) -> None:
    assert input_size(Pixelwise(wrap=wrap), size, scale) == expected


# ---- precision, mode, gradients ----


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_network_computes_in_the_precision_asked_for(precision: Precision, dtype: torch.dtype) -> None:
    """Each view in half precision; resized and averaged in float32."""
    network, seen = Neighbourhood(), set()
    network.head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    picture, views = images(), TTA((1.0, 1.5), flip=True)
    single, half = (Predictor(network, CPU, views, kind)(picture) for kind in ("fp32", precision))
    assert seen == {torch.float32, dtype}
    assert half.dtype == torch.float32
    assert 0 < (single - half).abs().max() < 0.02
    rounded = half.to(dtype).float()
    assert (half != rounded).float().mean() > 0.5, "the mean itself was taken in half precision"
    network.head.to(dtype)
    wide = resized(network(picture).logits.float(), 64, 128, False)
    assert torch.equal(Predictor(network, CPU, precision=precision)(picture), wide)


def test_a_real_network_in_bf16_predicts_almost_the_same() -> None:
    torch.manual_seed(0)
    network = create_model("trans4pass_micro", 4, embed_dim=16)
    picture = images(32, 64)
    single, half = (Predictor(network, CPU, precision=kind)(picture) for kind in ("fp32", "bf16"))
    difference = (single - half).abs().max() / single.std()
    assert 1e-4 < difference < 0.2


def test_prediction_is_in_eval_mode_and_keeps_no_graph() -> None:
    network = Pixelwise()
    network.encoder = nn.Dropout(0.5)
    network.train()
    predictor, picture = Predictor(network, CPU), images()
    assert torch.equal(predictor(picture), predictor(picture))
    assert not predictor(picture).requires_grad


# ---- a whole set ----


class Broken(Pixelwise):
    """One logit of one image is not a number."""

    def forward(self, images: Tensor) -> Any:
        output = super().forward(images)
        if torch.equal(images[0], InMemory(SPACE, 3)[1]["image"]):
            output.logits[0, 0, 0, 0] = torch.nan
        return output


def test_a_prediction_that_is_not_finite_is_named() -> None:
    dataset = InMemory(SPACE, 3)
    with pytest.raises(NonFinite, match=r"prediction of image1 is not finite"):
        list(predict_all(Predictor(Broken(), CPU), dataset))
    assert len(list(predict_all(Predictor(Pixelwise(), CPU), dataset))) == 3


def test_all_are_logits_or_their_classes() -> None:
    predictor, dataset = Predictor(Pixelwise(), CPU), InMemory(SPACE, 2)
    classes = list(predict_all(predictor, dataset, classes=True))
    for (batch, logits), (_, chosen) in zip(predict_all(predictor, dataset), classes, strict=True):
        assert torch.equal(logits, predictor(batch["image"]))
        assert chosen.dtype == torch.uint8 and torch.equal(chosen.long(), logits.argmax(1))


def test_a_signal_stops_between_two_images() -> None:
    interrupts, seen = Interrupts(), []
    with pytest.raises(Interrupted):
        for batch, _ in predict_all(Predictor(Pixelwise(), CPU), InMemory(SPACE, 3), interrupts=interrupts):
            seen += batch["name"]
            interrupts.number = 15
    assert seen == ["image0"]


class Stopped(Pixelwise):
    """A signal comes while it predicts."""

    def __init__(self, interrupts: Interrupts) -> None:
        super().__init__()
        self.interrupts = interrupts

    def forward(self, images: Tensor) -> Any:
        self.interrupts.number = 15
        return super().forward(images)


def test_an_image_that_is_finished_when_a_signal_comes_is_not_lost() -> None:
    interrupts, seen = Interrupts(), []
    with pytest.raises(Interrupted):
        for batch, _ in predict_all(Predictor(Stopped(interrupts), CPU), InMemory(SPACE, 3), interrupts=interrupts):
            seen += batch["name"]
    assert seen == ["image0"]


class Bar:
    """A progress bar that records its tasks and how far they are."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, float]] = []
        self.done = 0.0

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def add_task(self, description: str, total: float) -> int:
        self.tasks.append((description, total))
        return 0

    def advance(self, task: int, share: float) -> None:
        self.done += share


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_bar_counts_images(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bar, dataset = Bar(), InMemory(SPACE, 3)
    monkeypatch.setattr("trans4pass.inference.predictor.progress_bar", lambda: bar)
    list(predict_all(Predictor(Pixelwise(), CPU), dataset, description="label", batch_size=batch_size))
    assert (bar.tasks, bar.done) == ([("label", 3)], 3)
    evaluate(Predictor(Pixelwise(), CPU), dataset, SPACE)
    assert (bar.tasks[1:], bar.done) == ([("evaluate", 3)], 6)


class Unreadable(InMemory):
    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 1:
            raise DataError("image1 is cut off")
        return super().__getitem__(index)


def test_bad_samples_stop_or_are_left_out_and_told() -> None:
    predictor, reported = Predictor(Pixelwise(), CPU), []
    with pytest.raises(DataError, match="cut off"):
        list(predict_all(predictor, Unreadable(SPACE, 3)))
    results = predict_all(predictor, Unreadable(SPACE, 3), on_bad=lambda *sample: reported.append(sample))
    assert [batch["name"] for batch, _ in results] == [["image0"], ["image2"]]
    assert reported == [("image1", "image1 is cut off")]


def test_the_score_of_a_set_is_that_of_its_predictions() -> None:
    dataset, network, kept = InMemory(SPACE, 3), Pixelwise(), []
    confusion = evaluate(Predictor(network, CPU), dataset, SPACE, keep=lambda *values: kept.append(values))
    counts = np.zeros((3, 4), int)
    for number, (name, image, label, prediction) in enumerate(kept):
        sample = dataset[number]
        assert name == f"image{number}"
        assert torch.equal(image, sample["image"]) and torch.equal(label, sample["label"])
        assert torch.equal(prediction, logits_of(network, image[None]).argmax(1)[0])
        for truth, predicted in zip(label.flatten().tolist(), prediction.flatten().tolist()):
            if truth != 255:
                counts[truth, predicted] += 1
    assert len(kept) == 3
    assert confusion.counts.tolist() == counts.tolist()
    assert 0 < counts.trace() < counts.sum()


def test_predictions_are_mapped_into_the_sets_label_space() -> None:
    """Model road, sky, car; set sky, vehicle: road is ignored there, and 0 and 1 change places."""
    coarse = label_space(["sky", "vehicle"], "coarse", small={"sky": (1,), "vehicle": (2,), "ignored": (0, 255)})
    fine, mapped = InMemory(SPACE, 2), InMemory(coarse, 2)
    network = Pixelwise()
    counts = evaluate(Predictor(network, CPU), mapped, SPACE).counts
    expected = torch.zeros(2, 3, dtype=torch.long)
    for sample in mapped.samples:
        predicted = torch.tensor([2, 0, 1])[logits_of(network, sample["image"][None]).argmax(1)[0]]  # 2: ignored
        for truth in (0, 1):
            expected[truth] += torch.bincount(predicted[sample["label"] == truth], minlength=3)
    assert torch.equal(counts, expected)
    with pytest.raises(ConfigError, match="cannot be mapped"):
        evaluate(Predictor(network, CPU), fine, coarse)


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"scales": []}, "scales"),
        ({"scales": [0.0]}, "scales"),
        ({"scales": ["x"]}, "scales"),
        ({"scales": 1.0}, "scales"),
        ({"flip": "maybe"}, "flip"),
        ({"yaw_rolls": 0}, "yaw_rolls"),
        ({"yaw_rolls": 1.5}, "yaw_rolls"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse(TTA, settings, "")
