"""report.html: what it says of a run's folder."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.report.runs import LABELS, write_run_with_everything
from tests.report.test_compare import write_run
from trans4pass.errors import ConfigError, DamagedFile
from trans4pass.interrupts import Interrupts
from trans4pass.report.charts import bars, labelled, lines, matrix, ticks
from trans4pass.report.page import report_page, report_runs, write_report
from trans4pass.report.predicted import write_viewer
from trans4pass.report.run_folder import read_run
from trans4pass.report.viewer import LARGEST, Map, Seen, Span, group, viewer_page

IDS = np.arange(32, dtype=np.uint8).reshape(4, 8) % 3
PICTURES = {"photo": np.full((4, 8, 3), 90, np.uint8), "adapted": IDS, "truth": IDS}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run_with_everything(tmp_path / "run", PICTURES)
    return tmp_path / "run"


def groups(page: str) -> list[dict[str, Any]]:
    (data,) = re.findall(r'<script type="application/json" id="panoramas">(.*?)</script>', page, re.DOTALL)
    return json.loads(data)


def test_a_run_is_shown_whole(run: Path) -> None:
    page = report_page([read_run(run)])
    for title in ("Look around", "Classes", "Training", "Confusion", "Around the panorama", "Pseudo-labels"):
        assert f"<h2>{title}</h2>" in page
    assert "40.0 → 50.0 (+10.0)" in page
    assert "<title>road, first: 33.3</title>" in page and "<title>road, adapted: 80.0</title>" in page
    assert "<title>50% of tree is predicted as sky</title>" in page
    assert "latitude 1/5: 45° to 27°" in page
    assert "<title>tree, coverage: 25.0</title>" in page
    assert "<title>road and tree: 50%</title>" in page
    assert "git checkout abc123\npython tools/train.py experiment=mine" in page
    assert "<td>labels: 50% of pixels kept</td><td></td>" in page
    assert "<td>51.00 @5</td>" in page and "on the target&#x27;s validation labels" in page
    assert "note: &lt;&amp;&gt;" in page and "<&>" not in page


def test_without_target_scores_it_leads_with_what_changed(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text()) | {"goal": None, "gain": None, "sides": ["source"]}
    for stage in summary["stages"].values():
        stage.pop("target", None)
    summary["stages"]["first"] |= {"confidence": 0.75}
    summary["stages"]["adapted"] |= {"changed": 0.25, "confidence": 0.875}
    (run / "summary.json").write_text(json.dumps(summary))
    page = report_page([read_run(run)])
    assert '<dl class="facts"><div><dt>changed</dt><dd>25.0%</dd></div><div><dt>confidence</dt><dd>87.5%' in page
    assert "<th>stage</th><th>changed</th><th>confidence</th><th>source, last</th>" in page
    assert "<td>first</td><td></td><td>75.0%</td><td>60.00</td>" in page
    assert "on images without labels" in page


def test_nothing_on_the_page_is_elsewhere(run: Path) -> None:
    page = report_page([read_run(run)])
    assert "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in re.sub(r"http-equiv", "", page)


def test_what_a_first_release_left_is_enough(tmp_path: Path) -> None:
    write_run(tmp_path / "old", 0, 40.0, labels=LABELS.to_dict())
    page = report_page([read_run(tmp_path / "old")])
    assert "<h2>Look around</h2>" not in page and "<h2>Confusion</h2>" not in page
    assert "45.00" in page


def test_two_runs_side_by_side_say_what_differs(tmp_path: Path) -> None:
    for name, weight in (("a", 0.5), ("b", 0.25)):
        write_run_with_everything(tmp_path / name, PICTURES, stages={"adapted": {"weight": weight}})
    report_runs({"run": None, "runs": [str(tmp_path / "a"), str(tmp_path / "b")], "output": str(tmp_path / "c.html")},
                device=None, interrupts=Interrupts())  # fmt: skip
    page = (tmp_path / "c.html").read_text()
    assert "<tr><td>stages.adapted.weight</td><td>0.5</td><td>0.25</td></tr>" in page
    assert len(groups(page)) == len(re.findall(r'<div class="viewer" data-group="\d"', page)) == 2
    assert "road, mine (1): adapted: 80.0" in page and "road, mine (2): adapted: 80.0" in page


def test_what_is_no_run_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match="no finished run"):
        write_report([tmp_path], tmp_path / "a.html")
    with pytest.raises(ConfigError, match="runs="):
        report_runs({"run": None, "runs": None, "output": None}, device=None, interrupts=Interrupts())
    (run / "report" / "report.json").write_text("{")
    with pytest.raises(DamagedFile, match="resume=true"):
        write_report([run], tmp_path / "a.html")


# ---- pictures ----


def test_pictures_are_scaled_and_the_labels_stay_labels() -> None:
    wide = Image.new("RGB", (2 * LARGEST, LARGEST))
    ids = np.zeros((LARGEST, 2 * LARGEST), np.uint8)
    ids[:, LARGEST:] = 255
    seen = Seen("a_", wide, [Map("truth", ids, truth=True)], Span.of(*wide.size))
    (picture,) = group([seen], LABELS)["panoramas"]
    assert picture["name"] == "a"  # DensePASS's files end in _
    assert picture["camera"] == {"top": 90.0, "bottom": -90.0, "fov": 360.0}
    assert len(picture["photo"]) + len(picture["maps"][0]["labels"]) < 100_000
    page = viewer_page([seen], LABELS, "</script><b>")
    assert groups(page)[0]["panoramas"][0] == picture
    assert page.count("</script>") == 2


def test_only_wide_pictures_are_taken_for_panoramas() -> None:
    assert Span.of(2048, 400) == Span(35.15625, -35.15625)
    assert Span.of(640, 480) is None


# ---- charts ----


def test_a_curve_goes_where_its_points_are() -> None:
    (path,) = re.findall(
        r'class="curve"[^>]* d="M([^"]*)"', lines("a", {"x": [(0, 0.0), (5, float("nan")), (10, 4.0)]})
    )
    (x0, y0), (x1, y1) = (map(float, point.split()) for point in path.split("L"))
    assert (x0, x1) == (46, 390) and (y0, y1) == (196, 8)
    assert lines("nothing", {"x": [(0, float("nan"))]}) == ""


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 4, [0, 1, 2, 3, 4]),
        (0.2, 0.9, [0.2, 0.4, 0.6, 0.8, 1]),
        (3, 3, [1, 2, 3, 4, 5]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], ["0", "0.5", "1"]),
        ([0, 0.00005, 0.0001, 0.00015], ["0", "5e-5", "1e-4", "1.5e-4"]),
        ([0, 500_000, 1_000_000], ["0", "5e5", "1e6"]),
    ],
)
def test_an_axis_has_one_notation_that_fits(values: list[float], expected: list[str]) -> None:
    assert labelled(values) == expected
    assert f">{expected[1]}<" in lines("a", {"x": [(0, values[0]), (9, values[-1])]})


def test_bars_are_as_long_as_their_numbers_and_the_unknown_has_none() -> None:
    drawn = bars("a", {"<road>": [50.0, None], "tree": [100.0, float("nan")]}, ["one", "two"])
    half, whole = (float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawn))
    assert half == pytest.approx(whole / 2, abs=0.1)
    assert "<road>" not in drawn and drawn.count("–") == 2


def test_a_matrix_is_as_dark_as_its_shares() -> None:
    drawn = matrix("a", ["x", "y"], [[1.0, 0.25], [None, -0.5]], "{row} to {column}: {value}")
    assert re.findall(r'fill-opacity="([\d.]+)"', drawn) == ["1.000", "0.250", "0.000"]
    assert "x to y: 25%" in drawn


# ---- predicted images ----


def test_predictions_become_a_viewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many images an even choice; wide ones are panoramas."""
    monkeypatch.setattr("trans4pass.report.predicted.MOST", 2)
    for number, size in enumerate([(8, 2), (8, 2), (4, 4)]):
        for folder in ("images", "out/labels"):
            path = tmp_path / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", size, number % 3).save(path)
    write_viewer(tmp_path / "images", tmp_path / "out", LABELS)
    first, last = groups((tmp_path / "out" / "viewer.html").read_text())[0]["panoramas"]
    assert (first["name"], last["name"]) == ("0", "2")
    assert first["camera"]["top"] == 45 and last["camera"] is None
    assert [one["name"] for one in first["maps"]] == ["prediction"]
