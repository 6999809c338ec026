"""The toy world as a tool: render it, and show what it looks like."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trans4pass.console import console, progress_callback
from trans4pass.inference import write_picture
from trans4pass.interrupts import Interrupts
from trans4pass.settings import Positive, checked, converted
from trans4pass.toy_world import MARKER, TREES, ensure, preview


def make_toy_world(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Render what configs/make_toy_world.yaml describes."""
    settings, root = checked(ensure, config["world"], "world"), Path(config["world"]["root"])
    rows = converted(Positive, config["preview_rows"], "preview_rows")
    with progress_callback("images", interrupts.check_locally) as progress:
        world = ensure(progress=progress, **settings)
    write_picture(root / "preview.png", Image.fromarray(preview(world, rows)))
    for path in filter(Path.exists, (root / name for name in (*TREES, MARKER))):
        console.print(path)
    console.print(f"a look at it: {root / 'preview.png'}", soft_wrap=True)
