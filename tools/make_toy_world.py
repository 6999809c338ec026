"""Render the toy world, a stand-in for real data: python tools/make_toy_world.py [setting=value ...]."""

from pathlib import Path

from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trans4pass.data import toy_world
from trans4pass.engine.command import resolved, tool
from trans4pass.engine.pictures import write_picture


@tool("make_toy_world")
def main(config: DictConfig) -> None:
    console = Console(soft_wrap=True)
    plain = resolved(config)
    root = Path(plain["root"])
    with Progress(TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task("", total=None)
        world = toy_world.ensure(
            root,
            lambda done, total: bar.update(task, completed=done, total=total),
            **plain["world"],
        )
    preview = root / "preview.png"
    write_picture(preview, Image.fromarray(toy_world.preview(world, plain["preview_rows"])))
    for name in (*toy_world.TREES, toy_world.MARKER):
        console.print(root / name)
    console.print(f"a look at it: {preview}")


if __name__ == "__main__":
    main()
