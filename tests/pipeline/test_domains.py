"""What a training stage reads: opened once, however often it is looked at."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from trans4pass.data import cityscapes, densepass


@pytest.mark.slow
def test_every_data_set_is_opened_once_for_a_stage(
    run_here: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many evaluations there are; what models are scored on is opened once for all stages."""
    opened: Counter[str] = Counter()
    for family in (cityscapes, densepass):
        find = family.find_images

        def counted(name: str, root: str, folder: str, pattern: str, find: Callable = find) -> list[Path]:
            opened[f"{name} {Path(folder).name}"] += 1
            return find(name, root, folder, pattern)

        monkeypatch.setattr(family, "find_images", counted)
    off = [f"stages.{stage}.enabled=false" for stage in ("pseudo_labels", "mpa")]
    fast = [f"stages.{stage}.steps=2" for stage in ("source", "warmup")]
    assert run_here(tmp_path / "run", *off, *fast, "stages.source.eval_every=1") == 0
    assert opened == {"cityscapes train": 2, "cityscapes val": 1, "densepass train": 1, "densepass val": 1}
