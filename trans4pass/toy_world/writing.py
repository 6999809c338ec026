"""The settings of a toy world, its images, and the files that hold them."""

import fcntl
import functools
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from PIL import Image
from pydantic import NonNegativeFloat

from trans4pass.build import CONFIGS
from trans4pass.errors import ConfigError
from trans4pass.labels import LabelSpace
from trans4pass.settings import Natural, Positive, Share, parse
from trans4pass.sphere import Panorama, Pinhole
from trans4pass.storage import read_json, write_json, writing

from .rays import panorama_camera, pinhole_camera, trace
from .scene import build_scene, other_streets, streets_between
from .shading import STRENGTH_MAX, develop, draw_look, shade
from .weather import STRENGTHS, Weather, draw_weather, relight, weathered

RENDERER = 1  # part of the marker; raise it whenever the pictures change, so that a world from older code is noticed
MARKER = "toy_world.json"
UNFINISHED = ".unfinished"  # there until the marker is: what lies beside it is a toy world's own and may be deleted
TREES = ("cityscapes", "DensePASS", "synthetic")  # of the domains
CITIES = {"train": "bricktown", "val": "blockford"}  # disjoint, as Cityscapes' are
DOMAINS = ("source", "target", "synthetic")  # the first in Cityscapes' layout, the others in DensePASS's
LATER = ("things", "synthetic_train", *STRENGTHS)  # settings that older worlds' markers lack; 0 in those worlds
CITYSCAPES = LabelSpace.from_yaml(CONFIGS / "labels" / "cityscapes19.yaml")
Progress = Callable[[int, int], None]  # called with (images done, images in all)


# --------------------------------------------------------------------------------------------------- the public face

COUNTS = ("source_train", "source_val", "target_train", "target_val", "synthetic_train")


@dataclass(frozen=True)
class ToyWorld:
    """The settings of one toy world; the images of each domain and split are numbered from 0.

    Raises `ConfigError` for a size, count or strength that cannot work.
    """

    seed: Natural = 0
    pinhole_size: tuple[Positive, Positive] = (128, 64)  # width, height of source images, pixels
    pinhole_fov: Annotated[float, Interval(gt=0, lt=180)] = 75.0  # horizontal field of view of source images, degrees
    panorama_size: tuple[Positive, Positive] = (320, 64)  # of target images: 360 x 360*height/width degrees
    source_train: Natural = 300  # number of images
    source_val: Natural = 60
    target_train: Natural = 200
    target_val: Natural = 60
    appearance: NonNegativeFloat = 1.0  # strength of the gap in looks
    geometry: Share = 1.0  # strength of the gap in geometry
    # Of the target alone, strengths of what no map of colours undoes; 0 = none.
    fog: NonNegativeFloat = 0.0
    night: NonNegativeFloat = 0.0
    rain: NonNegativeFloat = 0.0
    low_sun: NonNegativeFloat = 0.0
    dirt: NonNegativeFloat = 0.0
    things: Share = 0.0  # other densities and shapes of things
    synthetic_train: Natural = 0  # labelled panoramas of another source: the target's streets, the source's looks

    def __post_init__(self) -> None:
        width, height = self.panorama_size
        if 2 * height >= width:
            raise ConfigError(f"panorama_size={self.panorama_size}: the width must be more than twice the height")

    def images(self) -> list[tuple[str, str, int]]:
        """Every image of the world as (domain, split, index)."""
        names = [(name, *name.split("_")) for name in COUNTS]
        return [(domain, split, i) for name, domain, split in names for i in range(getattr(self, name))]

    def render(self, root: Path, progress: Progress | None = None, workers: int = 1) -> None:
        """Write every image and label file below `root`, in `workers` processes if more than 1.

        Workers are spawned, not forked, since the caller may hold a GPU or threads; a script that asks for them needs
        the usual `if __name__ == "__main__":`.
        """
        images, write = self.images(), functools.partial(_write_image, self, Path(root))
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, spawn) if workers > 1 else nullcontext() as pool:
            written = map(write, images) if pool is None else pool.map(write, images, chunksize=8)
            for done, _ in enumerate(written, start=1):
                if progress is not None:
                    progress(done, len(images))


def render_image(world: ToyWorld, domain: str, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Render image `index` of a domain (one of `DOMAINS`) and split ("train" or "val").

    Returns the image, uint8 (H,W,3), and its Cityscapes label ids, uint8 (H,W): those named in `scene`. A pixel's label
    is that of the one ray through its centre; its colour is a weighted mean of nine rays.
    """
    key = (world.seed, DOMAINS.index(domain), ("train", "val").index(split), index)
    # Only `layout` moves things.
    layout, looks, noise, sky = (np.random.default_rng((*key, stream)) for stream in range(4))
    geometry = world.geometry if domain != "source" else 0.0
    appearance, things = (world.appearance, world.things) if domain == "target" else (0.0, 0.0)

    streets = other_streets(streets_between(geometry), things)
    scene = build_scene(layout, streets, unusual=0.7 * things)
    position = np.array([0.4 * scene.street.road, 0.0, layout.uniform(*streets["camera"])])  # mid-lane, right
    heading = scene.street.angle(0.0) + np.deg2rad(layout.uniform(*streets["heading"]))
    if geometry > 0:
        camera = panorama_camera(Panorama.of(*world.panorama_size[::-1]), position, heading)
    else:
        width, height = world.pinhole_size
        camera = pinhole_camera(Pinhole(height, width, world.pinhole_fov), position, heading)

    look = draw_look(looks, appearance * looks.uniform(0, STRENGTH_MAX))
    strengths = {name: getattr(world, name) for name in STRENGTHS}
    weather = draw_weather(sky, **strengths) if domain == "target" else Weather()
    look = relight(look, weather, scene, sky)
    colours, labels = shade(scene, camera, *trace(scene.shapes, camera), look)
    colours = weathered(colours, labels, camera, weather, sky, wraps=geometry > 0)
    return develop(colours, look, noise), labels[1::2, 1::2]  # odd samples are the pixels' centres


def ensure(root: Path, progress: Progress | None = None, workers: Positive = 1, **settings: Any) -> ToyWorld:
    """Make sure that `root` holds the finished toy world of these `settings` (`ToyWorld`'s), rendering it if need be.

    Any number of processes may call this at once: one renders, the others wait. Files are written in place, and only
    the marker, written last, makes a world count as finished: what an interruption left is deleted and rendered anew,
    which takes seconds. A finished world is only read. Raises `ConfigError` if `root` holds another toy world, or data
    that is not a toy world's, `DamagedFile` for a damaged marker, `StorageError` where it cannot be written.
    """
    root, world = Path(root), parse(ToyWorld, settings, "the toy world's settings")
    if _is_finished(root, world):
        return world
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        with (root / ".lock").open("w") as lock:
            # A POSIX lock ends with this process; `flock` would live on in workers that inherit it.
            fcntl.lockf(lock, fcntl.LOCK_EX)
            if _is_finished(root, world):
                return world
            _clear(root)
            world.render(root, progress, workers)
            os.sync()  # a power loss must not leave a marker without its images
            write_json(root / MARKER, _description(world))
            (root / UNFINISHED).unlink()
    return world


def preview(world: ToyWorld, rows: int = 4) -> np.ndarray:
    """A contact sheet, uint8 (H,W,3): `rows` images of the source, then of the target, beside their label colours."""
    width = 2 * max(world.pinhole_size[0], world.panorama_size[0])
    strips = []
    for domain in ("source", "target"):
        for index in range(rows):
            image, label_ids = render_image(world, domain, "train", index)
            strip = np.concatenate([image, CITYSCAPES.colorize(_train_ids(label_ids))], axis=1)
            strips.append(np.pad(strip, ((0, 2), (0, width - strip.shape[1]), (0, 0)), constant_values=255))
    return np.concatenate(strips)


# ------------------------------------------------------------------------------------------------------------- files


def image_paths(root: Path, domain: str, split: str, index: int) -> dict[str, Path]:
    """The files of one image: `image` and `trainIds`, in the source also `labelIds`."""
    layout = root / TREES[DOMAINS.index(domain)]
    folder = CITIES[split] if domain == "source" else "streets"
    images, labels = (layout / tree / split / folder for tree in ("leftImg8bit", "gtFine"))
    if domain != "source":
        return {"image": images / f"{index}_.png", "trainIds": labels / f"{index}_labelTrainIds.png"}
    stem = f"{folder}_{index:06d}_000019"  # 19: the frame that Cityscapes labels in each of its snippets
    return {
        "image": images / f"{stem}_leftImg8bit.png",
        "labelIds": labels / f"{stem}_gtFine_labelIds.png",
        "trainIds": labels / f"{stem}_gtFine_labelTrainIds.png",
    }


def _write_image(world: ToyWorld, root: Path, image: tuple[str, str, int]) -> None:
    rgb, label_ids = render_image(world, *image)
    contents = {"image": rgb, "labelIds": label_ids, "trainIds": _train_ids(label_ids)}
    for kind, path in image_paths(root, *image).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(contents[kind]).save(path)


def _train_ids(label_ids: np.ndarray) -> np.ndarray:
    return CITYSCAPES.decode(label_ids, "cityscapes_ids", "the toy world")


def _description(world: ToyWorld) -> dict:
    return json.loads(json.dumps({"renderer": RENDERER, **asdict(world)}))  # through JSON, so that tuples equal lists


def _is_finished(root: Path, world: ToyWorld) -> bool:
    """Whether `root` holds this finished toy world; ConfigError if it holds another one."""
    old, new = read_json(root / MARKER, ("renderer",), f"delete {root} to render it anew"), _description(world)
    if old is None:
        return False
    old = {**dict.fromkeys(LATER, 0), **old}
    changed = [f"{key}: {old.get(key)} there, {new[key]} asked for" for key in new if old.get(key) != new[key]]
    if changed:
        raise ConfigError(
            f"{root} holds a toy world with other settings ({'; '.join(changed)}); give it another root "
            "(prepare_data.root=... in training, root=... of tools/make_toy_world.py), or delete that folder"
        )
    return True


def _clear(root: Path) -> None:
    """Delete what an interrupted rendering left, nothing else, and mark `root` as unfinished."""
    present = [tree for tree in TREES if (root / tree).exists()]
    if present and not (root / UNFINISHED).exists():
        raise ConfigError(f"{root} holds {' and '.join(present)}, but no toy world; give the toy world its own root")
    (root / UNFINISHED).touch()
    for tree in present:
        shutil.rmtree(root / tree)
