"""A run's figures, and the table that it ends with."""

import io

from rich.console import Console

from trans4pass.report.summary import summarise, table

MODEL = {"parameters": 1}


def printed(results: dict, final: str, **more: dict) -> str:
    shown = Console(file=io.StringIO(), width=100)
    shown.print(table(summarise("a run", 0, results, final, MODEL, **more)))
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def result(best: str | None = None, **scores: float) -> dict:
    found = {"step": 12000, **scores} if best else {}
    means = {side: "19 of 19" for side in scores}
    return {"last": scores, "best": found, "judge": best, "seconds": 60.0, "classes_in_mean": means}


def test_a_table_of_many_sides_fits_a_hundred_columns() -> None:
    stage = {"source": 71.123, "target": 51.123, "synthetic": 61.123}
    results = {"source": result("target", **stage), "pseudo_labels": {"kept": 0.5, "seconds": 1.0}}
    results["prototypical_adaptation"] = result("target", **{**stage, "target": 56.5})
    text = printed(results, "prototypical_adaptation")
    assert max(map(len, text.splitlines())) <= 100
    assert "+5.38" in text and "gain over source-only" in text and "56.50 @12000" in text
    assert "50%" in text


def test_without_target_scores_it_says_what_changed() -> None:
    measured = {"source": {"confidence": 0.75}, "adapt": {"confidence": 0.875, "changed": 0.25}}
    text = printed({"source": result(source=60.0), "adapt": result(source=61.0)}, "adapt", unlabelled=measured)
    assert "gain" not in text
    for figure in ("60.00", "61.00", "75.0%", "87.5%", "25.0%"):
        assert figure in text
    assert "images without labels" in text


def test_a_final_stage_without_scores_has_no_gain() -> None:
    results = {"source": result(target=60.0), "more": result(target=61.0), "listing": {"seconds": 1.0}}
    assert summarise("a run", 0, results, "listing", MODEL)["gain"] is None
    assert "61.00" in printed(results, "listing")


def test_a_gain_is_over_what_the_run_began_with() -> None:
    first, later = result(target=60.0), result(target=61.0)
    assert "gain over adapt," in printed({"adapt": first, "more": later}, "more")
    assert "gain over the start of adapt," in printed({"adapt": {**first, "initial": {"target": 50.0}}}, "adapt")
