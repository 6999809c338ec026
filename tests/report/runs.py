"""A run's folder with all that a report shows, without a training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from trans4pass.labels import LabelSpace

LABELS = LabelSpace("few", ("road", "tree", "sky"), np.array([[128, 64, 128], [100, 140, 30], [70, 130, 180]]), {})
COUNTS = [[8, 1, 1, 0], [0, 5, 5, 0], [0, 0, 10, 0]]  # IoU 80, 45.45, 62.5
FIRST = [[5, 5, 0, 0], [5, 5, 0, 0], [0, 0, 10, 0]]  # 33.3, 33.3, 100


def write_run_with_everything(
    folder: Path, pictures: Mapping[str, np.ndarray], name: str = "mine", **settings: Any
) -> None:
    """Stages `first`, `labels` and `adapted`; the pictures (H,W,3) `photo` and (H,W) label maps twice."""
    stage = {"source": 60.0, "target": 50.0, "seconds": 60, "seconds_per_step": 0.25, "steps": 9, "best": {}}
    adapted = {**stage, "best": {"step": 5, "target": 51.0}, "judge": "target"}
    stages = {"first": {**stage, "target": 40.0}, "labels": {"seconds": 1.0, "kept": 0.5}, "adapted": adapted}
    model = {"config": {}, "parameters": 3_000_000, "gmacs": 1.5, "size": [8, 4]}
    facts = {"name": name, "seed": 0, "sides": ["source", "target"], "goal": "target", "gain": 10.0, "final": "adapted"}
    write(folder / "summary.json", {**facts, "stages": stages, "model": model})
    config = {"name": name, "run_dir": str(folder), "seed": 0, "labels": LABELS.to_dict(), "stages": {}, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write(folder / "environment.json", {"revision": "abc123", "dirty": True, "gpu": None, "packages": {"torch": "2"}})
    for one, counts in (("first", FIRST), ("adapted", COUNTS)):
        scores = {"confusion": counts, "regions": {"seam": 30.0, "latitude 1/5": 20.0}, "images": {"a": 60.0}}
        write(folder / one / "scores.json", {"target": scores})
        write(folder / one / "settings.json", {"stage": {"steps": 9, "note": "<&>"}})
        lines = ["step,name,value", "5,source/loss,1.5", "9,source/loss,1.25", "9,miou/target,40", "5,lr/network,0.1"]
        (folder / one / "metrics.csv").write_text("\n".join(lines))
    share = {"road": 0.5, "tree": 0.25, "sky": None}
    write(folder / "labels" / "quality.json", {"coverage": share, "accuracy": share})
    entries = []
    for number in range(2):
        maps = []
        for key, picture in pictures.items():
            file = f"{number}_{key}.png"
            path = folder / "report" / file
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(path)
            if key != "photo":
                maps.append({"name": key, "truth": key == "truth", "file": file})
        span = {"top": 45.0, "bottom": -45.0, "fov": 360.0}
        entry = {"name": f"street/{number}", "note": "best of 2", "span": span, "photo": f"{number}_photo.png"}
        entries.append({**entry, "maps": maps})
    similar = [[1.0, 0.5, None], [0.5, 1.0, None], [None, None, None]]
    typed = "python tools/train.py experiment=mine"
    write(folder / "report" / "report.json", {"command": typed, "panoramas": entries, "prototypes": similar})


def write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
