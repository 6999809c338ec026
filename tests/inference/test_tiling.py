"""Windows and perspective views against whole images: known networks, weights that sum to one, bounded memory."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.inference import test_evaluation as evaluation
from tests.small import Neighbourhood, Pixelwise
from trans4pass.errors import ConfigError
from trans4pass.inference import TTA, Predictor, tiling
from trans4pass.inference.images import predict_images
from trans4pass.inference.tiling import (
    Perspectives,
    PerspectiveView,
    Window,
    Windows,
    covered,
    most_rows,
    rings,
    starts,
    taper,
)
from trans4pass.models import SegOutput
from trans4pass.models.alignment import Alignment
from trans4pass.sphere import Panorama, Pinhole, Warp, rotation

CPU = torch.device("cpu")
PLAIN = TTA()
data = evaluation.data  # a fixture: two labelled panoramas


def images(height: int = 96, width: int = 192, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def smooth(height: int, width: int) -> Tensor:
    """A panorama (1,3,H,W), uint8, that is a smooth function of direction."""
    x, y, z = Panorama.of(height, width).rays().unbind(-1)
    return (torch.stack((x, y, z)) * 100 + 128)[None].to(torch.uint8)


def windows(network: nn.Module, tta: TTA = PLAIN, closed: bool = False, size: Any = (64, 48), overlap: float = 0.25):
    return Windows(network, CPU, tta, "fp32", overlap, closed, window=size)


def perspectives(network: nn.Module, tta: TTA = PLAIN, overlap: float = 0.25, **settings: Any):
    return Perspectives(network, CPU, tta, "fp32", overlap, **settings)


# ---- windows ----


@pytest.mark.parametrize("tta", [TTA(), TTA(flip=True), TTA(yaw_rolls=3)])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (50, 37), (500, 500), (192, 40)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_windows_of_a_pixelwise_network_are_the_whole(tta: TTA, closed: bool, size: Any, overlap: float) -> None:
    """Whatever the weights are, they sum to one everywhere, over seams, too."""
    network, picture = Pixelwise(), images()
    expected = Predictor(network, CPU)(picture)
    assert (windows(network, tta, closed, size, overlap)(picture) - expected).abs().max() < 1e-5


def test_bands_are_the_rows_in_order_and_classes_their_argmax() -> None:
    predictor, picture = windows(Neighbourhood()), images()
    bands = list(predictor.bands(picture))
    assert [band.shape[2] for band in bands] == [24, 24, 48]  # windows of 48 rows begin at 0, 24 and 48
    assert torch.equal(predictor.logits(picture), torch.cat(bands, 2))
    assert torch.equal(predictor.classes(picture).long(), torch.cat(bands, 2).argmax(1))


def test_blending_is_the_weighted_mean() -> None:
    """Two windows of 64 columns side by side in 96: by the formula, column by column."""
    network, picture = Neighbourhood(), images(48, 96, 1)
    result = windows(network, size=(64, 48))(picture)
    left, right = (Predictor(network, CPU)(picture[..., a : a + 64]) for a in (0, 32))
    for column in (0, 31, 40, 50, 63, 80):
        weights = [
            math.sin(math.pi / 2 * min(1, min(c + 0.5, 63.5 - c) / 16)) ** 2 if 0 <= c < 64 else 0.0
            for c in (column, column - 32)
        ]
        parts = [x[..., c] for x, c, w in zip((left, right), (column, column - 32), weights) if w]
        expected = sum(w * x for w, x in zip([w for w in weights if w], parts)) / sum(weights)
        torch.testing.assert_close(result[..., column], expected)


def test_closed_windows_know_no_seam() -> None:
    """Rolled by the windows' stride, the image's prediction rolls along; without wrap it does not."""
    network, picture = Neighbourhood(), images(48, 192, 1)
    for closed in (True, False):
        predictor = windows(network, closed=closed, size=(64, 48))
        rolled = predictor(picture.roll(48, -1)).roll(-48, -1)
        assert ((rolled - predictor(picture)).abs().max() < 1e-5) == closed


def test_where_windows_begin() -> None:
    assert starts(100, 100, 0.25) == [0]
    assert starts(100, 60, 0.25) == [0, 40]
    assert starts(160, 40, 0.25) == [0, 30, 60, 90, 120]
    assert starts(120, 40, 0.25, closed=True) == [0, 30, 60, 90]
    assert starts(120, 40, 0.25, closed=True, sets=2) == [0, 15, 30, 45, 60, 75, 90, 105]
    assert starts(100, 100, 0.25, closed=True) == [0, 50]  # one window's borders are the other's middle


def test_weights_fall_smoothly_to_the_border() -> None:
    weights = taper(16, 0.25)
    assert torch.equal(weights, weights.flip(0))
    assert weights[:4].tolist() == pytest.approx([math.sin(math.pi / 2 * x / 4) ** 2 for x in (0.5, 1.5, 2.5, 3.5)])
    assert weights[4:12].tolist() == [1] * 8
    assert taper(3, 0.0).tolist() == pytest.approx([0.5, 1, 0.5])  # over a pixel at least


def test_a_window_is_added_where_it_was_taken() -> None:
    """To a map of the image's rows 1 to 5; its columns go on at the other side."""
    onto = torch.ones(1, 1, 5, 4)
    Window(2, torch.tensor([3, 0]), 2, 0.25).place(torch.tensor([[[[1.0, 2], [3, 4]]]]), onto, 1)
    assert onto[0, 0].tolist() == [[1, 1, 1, 1], [3, 1, 1, 2], [5, 1, 1, 4], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_pieces_are_predicted_in_the_chosen_precision() -> None:
    network, picture = Pixelwise(), images()
    full, half = (Predictor(network, CPU, PLAIN, precision)(picture) for precision in ("fp32", "bf16"))
    pieces = Windows(network, CPU, PLAIN, "bf16", 0.25, False, window=(192, 96))(picture)
    assert (pieces - half).abs().max() < (full - half).abs().max() / 10


def test_memory_holds_begun_rows_only() -> None:
    pieces = windows(Pixelwise(), size=(64, 48)).pieces(960, 192)
    assert most_rows(pieces) == 48
    assert len({piece.top for piece in pieces}) == 27


# ---- perspective views ----


@pytest.mark.parametrize("fov", [60.0, 90.0, 120.0])
@pytest.mark.parametrize(("height", "width", "horizon"), [(90, 180, 0.5), (64, 181, 0.5), (40, 200, 0.3)])
def test_views_of_a_pixelwise_network_are_nearly_the_whole(fov: float, height: int, width: int, horizon: float) -> None:
    """A smooth panorama, there and back through bilinear warps: all directions are seen, and seen in their place."""
    network, picture = Pixelwise(), smooth(height, width)
    result = perspectives(network, fov=fov, horizon=horizon)(picture)
    expected = Predictor(network, CPU)(picture)
    assert (result - expected).abs().max() < 0.1 * expected.std()
    assert (result - expected).abs().mean() < 0.01 * expected.std()


def test_views_know_no_seam() -> None:
    """Turned by one view, the prediction turns along."""
    network = Neighbourhood()
    picture = smooth(40, 240)
    predictor = perspectives(network)
    ((_, around),) = rings(Panorama.of(40, 240), 90.0, 0.25)
    shift = 240 // around
    assert 240 % around == 0
    rolled = predictor(picture.roll(shift, -1)).roll(-shift, -1)
    assert (rolled - predictor(picture)).abs().max() < 1e-2


def test_a_view_is_weighted_by_solid_angle_and_taper() -> None:
    """In the middle of a side beyond the taper: cos^3 of the angle off the axis."""
    (piece, *_) = perspectives(Pixelwise(), side=64).pieces(40, 200)
    piece.look(smooth(40, 200))
    weight = piece.weight()
    assert 0.9 < weight.max() <= 1 + 1e-3 and weight.min() > 0
    cosine = 1 / math.sqrt(1 + (2 * (15.5 / 64)) ** 2)
    assert (weight[31, 47] / weight[31, 31]).item() == pytest.approx(cosine**3, rel=0.01)


def test_a_view_takes_what_it_sees_of_the_panorama_and_little_more() -> None:
    """92 degrees are 46 to each side, and 2 to spare; where it sees a pole it takes all columns, and is turned."""
    panorama, view = Panorama(180, 720), Pinhole(8, 8, 92.0)  # a row is a degree, and two columns are
    piece = PerspectiveView(panorama, view, 540, 0.0, 0.25)
    assert (piece.top, piece.bottom) == (90 - 48, 90 + 48)
    assert piece.columns.tolist() == [*range(540 - 96, 540 + 96)]
    assert piece.fov == 96 and torch.equal(piece.turn, rotation())
    assert PerspectiveView(panorama, view, 700, 0.0, 0.25).columns.tolist() == [*range(604, 720), *range(76)]
    polar = PerspectiveView(panorama, view, 540, 60.0, 0.25)
    assert polar.top == 0 and polar.columns.tolist() == [*range(720)]
    assert polar.fov == 360 and torch.equal(polar.turn, rotation(90.0, 60.0))


def test_a_view_is_added_row_by_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are warped at a time."""
    piece, x = PerspectiveView(Panorama(90, 180), Pinhole(16, 16, 92.0), 90, 0.0, 0.25), torch.ones(1, 2, 16, 16)
    at_once, in_parts = torch.zeros(1, 2, 60, 180), torch.zeros(1, 2, 60, 180)
    piece.place(x, at_once, 15)
    monkeypatch.setattr(tiling, "ROWS", 7)
    piece.place(x, in_parts, 15)
    assert at_once.max() == pytest.approx(1)
    torch.testing.assert_close(at_once, in_parts)


def test_views_stand_evenly_around_from_the_middle_on() -> None:
    for rolls in (1, 2):
        pieces = perspectives(Pixelwise(), TTA(yaw_rolls=rolls)).pieces(40, 240)
        middles = sorted(int(piece.columns[len(piece.columns) // 2]) for piece in pieces)
        assert middles == [*range(0, 240, 40 // rolls)]


def test_views_look_up_and_down_from_the_horizon() -> None:
    """Of 48 rows, 72 degrees, a third lies above the horizon: one ring of views, which looks 12 degrees down."""
    pieces = perspectives(Pixelwise(), horizon=1 / 3).pieces(48, 240)
    assert [piece.pitch for piece in pieces] == pytest.approx([-12] * len(pieces))


@pytest.mark.parametrize(
    ("high", "low", "apart", "sees"),
    [(10, -10, 89, True), (10, -10, 91, False), (44, -44, 2, True), (46, 0, 2, False), (0, -46, 2, False),
     (10, -10, 360, False)],
)  # fmt: skip
def test_a_view_of_90_degrees_covers_45_to_each_side(high: float, low: float, apart: float, sees: bool) -> None:
    assert covered(high, low, 0.0, 90.0, apart) == sees


class Sides(nn.Module):
    """Notes what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> SegOutput:
        self.seen.append(tuple(x.shape))
        return SegOutput(x.float(), x, {})


def test_views_are_as_sharp_as_the_panorama_or_of_the_given_side() -> None:
    """90 degrees of 360 pixels: the focal length is 360 / (2 pi), the side twice that."""
    for side, expected in ((None, 115), (64, 64)):
        network = Sides()
        perspectives(network, TTA(flip=True), side=side)(smooth(80, 360))
        ((_, around),) = rings(Panorama.of(80, 360), 90.0, 0.25)
        assert network.seen == [(1, 3, expected, expected)] * 2 * around


@pytest.mark.parametrize(("fov", "overlap"), [(30.0, 0.15), (60.0, 0.1), (90.0, 0.25), (150.0, 0.75)])
@pytest.mark.parametrize("panorama", [Panorama(90, 180), Panorama.of(40, 200), Panorama.of(40, 200, 0.1)], ids=str)
def test_every_direction_is_seen_by_a_view(fov: float, overlap: float, panorama: Panorama) -> None:
    seen = torch.zeros(panorama.height, panorama.width, dtype=torch.bool)
    for pitch, around in rings(panorama, fov, overlap):
        for number in range(around):
            seen |= Warp(Pinhole(8, 8, fov), panorama, rotation(360 * number / around, pitch).T).seen
    assert seen.all()


@pytest.mark.parametrize(
    ("height", "width", "fov", "overlap"),
    [(64, 320, 30.0, 0.0), (48, 97, 20.0, 0.05), (100, 400, 40.0, 0.0), (64, 320, 30.0, 0.2)],
)
def test_every_pixel_is_seen_although_views_are_centred_on_columns(
    height: int, width: int, fov: float, overlap: float
) -> None:
    predicted = perspectives(Pixelwise(), fov=fov, overlap=overlap)(smooth(height, width))
    assert predicted.isfinite().all()


class Aligned(Pixelwise):
    """Aligns all the way, as a `Segmentor` does."""

    def __init__(self) -> None:
        super().__init__()
        self.alignment = Alignment(1.0, [0.5, 0.4, 0.3], [0.1, 0.2, 0.3])

    def forward(self, images: Tensor) -> SegOutput:
        return super().forward(self.alignment(images.float() / 255))


@pytest.mark.parametrize("closed", [False, True])
def test_a_pieces_colours_are_moved_as_the_images(closed: bool) -> None:
    """Not by its own statistics: the upper half is dark here, and a border is black."""
    image, network = images(600, 96), Aligned()
    image[:, :, :300] //= 4
    image[:, :, :, :5] = 0
    whole = Predictor(network, CPU)(image)
    assert torch.allclose(windows(network, closed=closed)(image), whole, atol=1e-4)
    assert torch.allclose(Predictor(network, CPU)(image), whole)  # nothing stays


def test_no_more_views_than_are_needed() -> None:
    """Of 90 degrees, overlapping by a quarter: 180 / 67.5 rings of 360 cos(latitude) / 67.5 views."""
    assert rings(Panorama(90, 180), 90.0, 0.25) == [(60.0, 5), (0.0, 6), (-60.0, 5)]
    assert rings(Panorama.of(40, 240), 90.0, 0.25) == [(0.0, 6)]


# ---- what is refused ----


def test_a_circular_network_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"wrap=true.*views=whole"):
        windows(Pixelwise(wrap=True))


def test_what_is_no_panorama_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be"):
        perspectives(Pixelwise())(images(64, 64))


def test_views_that_leave_gaps_are_refused() -> None:
    with pytest.raises(ConfigError, match="unseen: make fov larger, or overlap"):
        rings(Panorama(90, 180), 30.0, 0.0)


def test_progress_sums_to_one() -> None:
    shares: list[float] = []
    windows(Pixelwise()).classes(images(), step=shares.append)
    assert len(shares) == 12 and sum(shares) == pytest.approx(1)


# ---- the tools ----


@pytest.mark.parametrize(
    ("views", "settings"),
    [("windows", ["window=[48,32]", "wrap=true"]), ("perspective", ["fov=140", "window=[64,64]", "flip=true"])],
)
def test_pieces_are_predicted_scored_and_kept_apart(views: str, settings: list[str], data: Path) -> None:
    """In a folder of their own; predict.py says the same of the same image."""
    path = evaluation.save_checkpoint(data / "last.pt", "cityscapes19")
    chosen = [f"views={views}", *settings]
    assert evaluation.evaluate(data, path, "output=null", "save_predictions=true", *chosen) == 0
    (folder,) = data.glob(f"eval_densepass_val*_{views}")
    assert json.loads((folder / "metrics.json").read_text())["settings"]["views"] == views
    saved = np.asarray(Image.open(folder / "labels/a/1.png"))
    image = data / "DensePASS/leftImg8bit/val/a/1_.png"
    fixed = [f"checkpoint={path}", "num_workers=0", f"input={image}", f"output={data / 'pieces'}"]
    assert evaluation.run("predict", predict_images, *fixed, *chosen) == 0
    assert np.array_equal(np.asarray(Image.open(data / "pieces/labels/1_.png")), saved)
    whole = (
        Predictor(evaluation.network_of(path), torch.device("cpu"))(evaluation.read(data, 1)[0]).argmax(1)[0].numpy()
    )
    assert (whole != saved).any()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (["views=perspective", "window=[64,32]"], "are square"),
        (["views=perspective", "fov=180"], "fov"),
        (["views=windows", "overlap=1"], "overlap"),
        (["views=windows", "window=[300000,200000]"], "window: 300000x200000 pixels predicted at once need more than"),
        (["views=perspective", "window=[200000,200000]"], "a smaller window, or smaller scales"),
        (["size=[300000,200000]"], "views=windows, or a smaller size, or smaller scales"),
    ],
)
def test_pieces_that_cannot_be_are_named(
    settings: list[str], word: str, data: Path, capsys: pytest.CaptureFixture
) -> None:
    assert evaluation.evaluate(data, evaluation.save_checkpoint(data / "last.pt", "cityscapes19"), *settings) == 2
    assert word in " ".join(capsys.readouterr().out.split())
