"""What a run leaves for its report: scores of its last evaluation, chosen pictures, pseudo-labels' quality."""

import json
import logging
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.table import Table

from tests.pipeline.conftest import composed
from trans4pass.console import Loudness, setup_logging
from trans4pass.data import SegmentationDataset
from trans4pass.errors import DataError
from trans4pass.inference import Predictor, open_checkpoint
from trans4pass.interrupts import Interrupts
from trans4pass.labels import IGNORE, LabelSpace
from trans4pass.pipeline import RunContext
from trans4pass.pipeline.evaluator import ScoreSheet
from trans4pass.pipeline.evidence import choose, look, note, pictured, places
from trans4pass.pipeline.folder import refuse_or_clear
from trans4pass.pipeline.outcome import print_and_log
from trans4pass.pipeline.run import make_stages, run_settings
from trans4pass.pipeline.stage import Stage
from trans4pass.report.viewer import Map


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_a_finished_run_has_a_report_and_what_it_is_made_of(finished: Path) -> None:
    page, evidence = (finished / "report.html").read_text(), read(finished / "report" / "report.json")
    assert len(page) < 5_000_000
    for title in ("Look around", "Classes", "Confusion", "Around the panorama", "Pseudo-labels", "Prototypes"):
        assert f"<h2>{title}</h2>" in page
    assert "experiment=pin2pan_toy" in evidence["command"] and evidence["command"] in page.replace("&#x27;", "'")
    panoramas = evidence["panoramas"]
    assert [entry["note"].split(",")[0] for entry in panoramas] == ["best of 3", "number 2 of 3", "worst of 3"]
    assert [one["name"] for one in panoramas[0]["maps"]] == ["source", "mpa", "truth"]
    assert panoramas[0]["span"] == {"top": 36.0, "bottom": -36.0, "fov": 360.0}
    similarity = torch.tensor(evidence["prototypes"], dtype=torch.float64)  # null is no number
    assert similarity.shape == (11, 11)


def test_a_run_ends_in_its_log_as_on_the_console(finished: Path) -> None:
    end = (finished / "run.log").read_text().partition("gain over source-only")
    assert "mIoU in %" in end[0] and end[1]
    for words in ("wrote ", "report: open ", "report.html in a browser", "next: python tools/predict.py "):
        assert end[2].count(words) >= 1, words


@pytest.mark.parametrize("quiet", [True, False])
def test_what_a_run_ends_with_is_printed_once_and_logged(
    quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(Loudness, "quiet", quiet)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    table = Table("stage")
    table.add_row("[red] 50%")
    setup_logging(tmp_path)
    print_and_log(table)
    print_and_log(f"wrote {'long/' * 50}[a].png")
    setup_logging()  # closes the file
    for text in (capsys.readouterr().out, (tmp_path / "run.log").read_text()):
        assert text.count("│ [red] 50% │") == 1
        assert text.count(f"wrote {'long/' * 50}[a].png\n") == 1


def test_a_stages_scores_are_those_of_its_summary(finished: Path) -> None:
    summary = read(finished / "summary.json")["stages"]
    for stage in ("source", "warmup", "mpa"):
        for side, sheet in read(finished / stage / "scores.json").items():
            counts = np.array(sheet["confusion"], float)
            correct = counts.diagonal()
            union = counts.sum(1) + counts[:, :-1].sum(0) - correct
            assert 100 * np.mean((correct / union)[union > 0]) == pytest.approx(summary[stage][side])
            assert len(sheet["images"]) == (3 if side == "target" else 2)
            assert bool(sheet["regions"]) == (side == "target")


def test_pseudo_labels_are_held_against_a_truth_that_is_there(finished: Path) -> None:
    quality = read(finished / "pseudo_labels" / "quality.json")
    for values in quality.values():
        shares = [value for value in values.values() if value is not None]
        assert shares and all(0 <= share <= 1 for share in shares)
    assert any(share > 0.4 for share in quality["coverage"].values() if share is not None)


# ---- parts ----

SPACE = LabelSpace("two", ("a", "b"), np.zeros((2, 3), np.uint8), {})


def test_a_sheet_has_counts_regions_and_images() -> None:
    sheet = ScoreSheet(SimpleNamespace(labels=SPACE, panorama=True), torch.device("cpu"))  # pyright: ignore
    image, label = torch.zeros(3, 5, 20, dtype=torch.uint8), torch.zeros(5, 20, dtype=torch.uint8)
    half = label.clone()
    half[0, 0] = 1  # in the seam, and in the uppermost band
    sheet.add("x", image, label, half)
    sheet.add("y", image, torch.full_like(label, IGNORE), half)
    confusion = SimpleNamespace(counts=torch.tensor([[3, 1, 0], [0, 0, 0]]))
    result = sheet.result(confusion)  # pyright: ignore
    assert result["confusion"] == [[3, 1, 0], [0, 0, 0]]
    assert result["images"] == {"x": pytest.approx(50 * 99 / 100), "y": None}
    assert result["regions"]["latitude 1/5"] == pytest.approx(50 * 19 / 20)
    assert result["regions"]["latitude 2/5"] == 100
    assert result["regions"]["seam"] == pytest.approx(50 * 9 / 10)


def test_pictures_are_chosen_from_the_best_to_the_worst(tmp_path: Path) -> None:
    dataset = [SimpleNamespace(name=f"{number}") for number in range(9)]
    fake = SimpleNamespace(items=dataset, __len__=lambda: 9)
    final = SimpleNamespace(folder=tmp_path)
    scores = {"target": {"images": {f"{number}": float(number) for number in range(9)}}}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    chosen = choose(final, "target", fake)  # pyright: ignore
    assert list(chosen) == [8, 6, 4, 2, 0]
    assert [chosen[index] for index in (8, 4, 0)] == ["best of 9", "number 5 of 9", "worst of 9"]


@pytest.mark.parametrize(
    ("images", "others", "expected"),
    [
        (("a/1.png", "b/2.png"), ("notes.txt",), (".",)),
        (("x/1/rgb/1.png", "x/2/rgb/2.png", "x/2/rgb/3.png"), ("x/2/depth/2.png",), ("x/1/rgb", "x/2/rgb")),
        (("x/rgb/1.png",), ("x/depth/1.png",), ("x/rgb",)),
        (("1/full/rgb.png", "2/full/rgb.png"), ("1/full/semantic.png",), ("1/full/rgb.png", "2/full")),
    ],
    ids=["nothing else", "beside other folders", "one folder", "beside other images"],
)
def test_panoramas_are_predicted_from_where_nothing_else_lies(
    tmp_path: Path, images: tuple[str, ...], others: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    for name in (*images, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert places([tmp_path / name for name in images]) == [tmp_path / name for name in expected]


def test_an_image_is_described_by_where_it_stands_and_its_scores() -> None:
    truth = np.zeros((2, 2), np.uint8)
    wrong = truth.copy()
    wrong[0] = 1
    maps = [Map("source", wrong), Map("mpa", truth), Map("truth", truth, truth=True)]
    assert note(maps, "best of 3", 2) == "best of 3, mIoU source 25.0, mpa 100.0"
    assert note(maps[:2], "", 2) == ""


@pytest.mark.parametrize(
    ("overrides", "side", "labelled"),
    [((), "target", True), (("evaluate.target=null",), "target", False)],
    ids=["scored", "not scored on the target"],
)
def test_panoramas_are_shown_whether_they_are_scored_or_not(
    tiny: list[str], tmp_path: Path, overrides: tuple[str, ...], side: str, labelled: bool
) -> None:
    config = composed(*tiny, f"run_dir={tmp_path}", *overrides)
    settings = run_settings({**config, "num_workers": 0})
    labels = LabelSpace.from_dict(config["labels"])
    run = RunContext(settings, config, tmp_path, labels, torch.device("cpu"), Interrupts())
    shown, dataset = pictured(run, make_stages(run)[-1])
    assert shown == side and dataset is not None and dataset.panorama
    assert dataset.labelled == labelled


def test_overwriting_a_run_takes_its_report_away(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report.html").touch()
    (tmp_path / "report" / "report.json").touch()
    (tmp_path / "mine.txt").touch()
    refuse_or_clear(tmp_path, resume=False, overwrite=True, stages=["source"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def unscored(finished: Path, tiny: list[str]) -> tuple[RunContext, dict[str, Stage]]:
    """A finished run as if its target were not scored, and its training stages."""
    config = composed(*tiny, f"run_dir={finished}", "evaluate.target=null")
    settings = run_settings({**config, "num_workers": 0})
    run = RunContext(
        settings, config, finished, LabelSpace.from_dict(config["labels"]), torch.device("cpu"), Interrupts()
    )
    return run, {stage.name: stage for stage in make_stages(run) if stage.trains}


@pytest.mark.parametrize("damaged", [1, 4])
def test_images_that_cannot_be_read_cost_no_report(
    damaged: int, finished: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, stages = unscored(finished, tiny)
    whole = SegmentationDataset.__getitem__

    def read(dataset: SegmentationDataset, key: Any) -> dict:
        if key < damaged:
            raise DataError(f"cannot decode {dataset.items[key].image}")
        return whole(dataset, key)

    monkeypatch.setattr(SegmentationDataset, "__getitem__", read)
    found = look(run, stages, "mpa")
    assert len(found.seen) == 4 - damaged
    assert caplog.text.count("the pictures go without it") == damaged


def test_without_target_scores_stages_are_held_against_each_other(finished: Path, tiny: list[str]) -> None:
    run, stages = unscored(finished, tiny)
    found = look(run, stages, "mpa")
    assert [[one.name for one in seen.maps] for seen in found.seen] == [["source", "mpa"]] * 4  # all that there are
    (folder,) = found.places
    assert folder.parts[-3:] == ("leftImg8bit", "train", "streets")
    confidences, maps = {}, {}
    for name in stages:
        network, _ = open_checkpoint(finished / name)
        files = [folder / f"{seen.name.split('/')[-1]}_.png" for seen in found.seen]
        images = [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None] for file in files]
        outputs = [Predictor(network, torch.device("cpu"))(image).softmax(1).max(1) for image in images]
        confidences[name] = torch.cat([output.values for output in outputs]).mean().item()
        maps[name] = torch.cat([output.indices for output in outputs])
    changed = {b: (maps[a] != maps[b]).float().mean().item() for a, b in pairwise(stages)}
    assert {name: one["confidence"] for name, one in found.unlabelled.items()} == pytest.approx(confidences)
    assert {name: one["changed"] for name, one in found.unlabelled.items() if "changed" in one} == pytest.approx(
        changed
    )
