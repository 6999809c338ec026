"""The sheet of what training sees: every domain, with its views and its labels' colours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.methods import Batch, SumOfTerms
from trans4pass.pipeline import TrainStage
from trans4pass.pipeline.show_views import OPACITY, pairs, rows, sheet, show_views

from .conftest import composed, stages_of
from .test_recipes import recipe

LABELS = Path(__file__).parents[2] / "configs" / "labels"


def test_every_domain_is_shown_as_its_views_make_it(tiny: list[str], tmp_path: Path) -> None:
    bend = "{_target_: trans4pass.data.ToSphere, fov: [90,90], pitch: [0,0], roll: [0,0]}"
    stages = stages_of(tmp_path, *tiny, f"+stages.source.domains.source.transform.views.bend={bend}")
    trained = [stage for stage in stages.values() if isinstance(stage, TrainStage)]
    domains = [domain for stage in trained for domain in stage.domains.values()]
    found = dict(row for stage in trained for row in rows(stage, Interrupts()))
    assert [title.partition(":")[0] for title in found] == [domain.where for domain in domains]
    assert "labels from files, 64x32 pixels" in next(iter(found))
    words = " ".join(found)
    assert "warmup.domains.target: without labels, 64x32 pixels" in words
    assert "labels of stages.pseudo_labels, which are not written yet" in words
    first, second = (np.asarray(found[title][0]) for title in list(found)[:2])
    assert first.shape == second.shape == (2 * 160 + 2, 320, 3)
    assert (first[:3, :3] == 0).all() and not (second[:3, :3] == 0).all()  # a bent image's corner is not seen


def test_what_the_method_makes_is_shown_beside(tiny: list[str], tmp_path: Path) -> None:
    """The student's view and the mixture, whose pasted half has labels."""
    stages = stages_of(tmp_path, *recipe(tiny, "teacher", "teacher"))
    stage = stages["teacher"]
    assert isinstance(stage, TrainStage)
    found = dict(rows(stage, Interrupts()))
    target, source, mixed = found
    assert "domains.target: without labels; stages.teacher.method.derive.target: made of target, 64x32" in target
    assert "domains.source: labels from files" in source
    assert mixed.startswith("stages.teacher.method.derive.mixed: made of target, source, 64x32 pixels")
    assert [len(pictures) for pictures in found.values()] == [4, 4, 4]
    upper, lower = (np.asarray(found[mixed][0])[part].astype(int) for part in (slice(160), slice(162, None)))
    pale = (1 - OPACITY) * upper + OPACITY * 255  # where the target is, which has no label
    unlabelled = (np.abs(lower - pale) < 2).all(-1).mean()
    assert 0.1 < unlabelled < 0.9


def test_a_method_that_predicts_its_targets_is_shown_without(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def predict(method: SumOfTerms, phase: str, batch: Batch) -> Batch:
        return {phase: {**batch[phase], "label": method.network(batch[phase]["image"]).logits.argmax(1)}}

    stage = stages_of(tmp_path, *tiny)["source"]
    assert isinstance(stage, TrainStage)
    expected = dict(rows(stage, Interrupts()))
    monkeypatch.setattr(SumOfTerms, "targets", predict)
    found = dict(rows(stage, Interrupts()))
    assert found == expected
    (line,) = [record.getMessage() for record in caplog.records if "predict" in record.getMessage()]
    assert line.startswith("stages.source.method.targets needs weights to predict with")


def test_labels_are_coloured_and_ignored_pixels_pale() -> None:
    labels = LabelSpace.from_yaml(LABELS / "cityscapes19.yaml")
    batch = {"image": torch.full((1, 3, 1, 2), 100, dtype=torch.uint8), "label": torch.tensor([[[13, 255]]])}
    image, shown = next(pairs(batch, labels))
    assert (image == 100).all()
    expected = [OPACITY * np.asarray(colour) + (1 - OPACITY) * 100 for colour in (labels.palette[13], (255,) * 3)]
    np.testing.assert_allclose(shown[0], expected, atol=0.5)


def test_the_legend_has_every_class_s_colour() -> None:
    labels = LabelSpace.from_yaml(LABELS / "cityscapes19.yaml")
    pixels = np.asarray(sheet([("a title", [Image.new("RGB", (40, 20), "black")])], labels))
    colours = {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in labels.palette.tolist()} <= colours


def test_a_sheet_is_written_beside_the_run_and_nothing_else(tiny: list[str], tmp_path: Path) -> None:
    off = [f"stages.{name}.enabled=false" for name in ("warmup", "pseudo_labels", "mpa")]
    config = composed(*tiny, f"run_dir={tmp_path / 'run'}", *off)
    show_views(config, torch.device("cpu"), Interrupts())
    assert [path.name for path in tmp_path.iterdir()] == ["run_views.png"]
    with Image.open(tmp_path / "run_views.png") as picture:
        assert picture.width >= 640 and picture.height > 322
