from pathlib import Path

from .conftest import stages_of


def test_a_checkpoint_does_not_need_the_files_that_its_run_started_from(tmp_path: Path) -> None:
    overrides = ["experiment=pin2pan_toy", "model.weights=gone.pth"]
    run = next(iter(stages_of(tmp_path, *overrides).values())).run
    assert run.settings.model["weights"] == "gone.pth"
    assert "gone" not in str(run.meta())
    assert "gone" not in str(run.meta({"weights": "gone.pth"}))
    assert run.meta()["model"]["name"] == run.settings.model["name"]
