"""The toy world: procedural streets as pinhole images and as panoramas, in the layouts of Cityscapes and DensePASS.

It stands in for the real data sets where there is only a laptop: a few hundred small images, rendered in seconds, on
which adaptation from pinhole images to panoramas runs from end to end and visibly helps. Eleven of Cityscapes' classes
occur (`CLASSES`); the ego car is ignored.

Every image is one scene: a street (`Street`), upright boxes and ellipsoids (`SHAPE`) on it, a camera and a look. No
camera tilts, so that a ray's direction in plan depends on its column only and its rise on its row only: a box is then
an outer maximum of a column vector and a row vector, which makes the ray caster fast (`trace`). Colours are worked out
afterwards, once per ray (`shade`).

The two domains differ in two ways, each with a strength:

`appearance` (0 = none, 1 = default, any value >= 0)
    Light, colour cast, contrast, saturation, haze, noise and the hue of materials (`Shift`). Each target image draws
    its own strength uniformly from 0 to 1.3 times the setting. Labels do not depend on it. At 0 the target looks like
    the source, which keeps its natural variation from scene to scene.
`geometry` (0 = none, 1 = default, 0 <= value <= 1)
    Sizes of streets and buildings, densities of objects, camera height and the range of camera headings go linearly
    from `SOURCE_STREETS` to `TARGET_STREETS`. The projection cannot be interpolated: any value above 0 gives
    equirectangular panoramas of `panorama_size`. At 0 the target has the source's pinhole camera, image size and
    street statistics, and is still stored in DensePASS's layout.

An image depends on (seed, domain, split, index) and the settings above alone, never on the counts or the order of
rendering, and is the same to the byte on one machine; another processor or NumPy may round single pixels differently.
"""

import fcntl
import functools
import json
import math
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image

from trans4pass.errors import ConfigError

RENDERER = 1  # part of the marker; raise it whenever the pictures change, so that a world from older code is noticed
MARKER = "toy_world.json"
UNFINISHED = ".unfinished"  # there until the marker is: what lies beside it is a toy world's own and may be deleted
TREES = ("cityscapes", "DensePASS")
CITIES = {"train": "bricktown", "val": "blockford"}  # disjoint, as Cityscapes' are
FOLDER = "streets"
Progress = Callable[[int, int], None]  # called with (images done, images in all)


class ToyClass(NamedTuple):
    name: str
    label_id: int  # as in Cityscapes' labelIds
    train_id: int  # as in Cityscapes' labelTrainIds
    colour: tuple[int, int, int]  # of the label maps in previews


CLASSES = (
    ToyClass("road", 7, 0, (128, 64, 128)),
    ToyClass("sidewalk", 8, 1, (244, 35, 232)),
    ToyClass("building", 11, 2, (70, 70, 70)),
    ToyClass("wall", 12, 3, (102, 102, 156)),
    ToyClass("pole", 17, 5, (153, 153, 153)),
    ToyClass("traffic sign", 20, 7, (220, 220, 0)),
    ToyClass("vegetation", 21, 8, (107, 142, 35)),
    ToyClass("terrain", 22, 9, (152, 251, 152)),
    ToyClass("sky", 23, 10, (70, 130, 180)),
    ToyClass("person", 24, 11, (220, 20, 60)),
    ToyClass("car", 26, 13, (0, 0, 142)),
)
EGO, IGNORED = 1, 255  # the ego car's label id; its train id
ROAD, SIDEWALK, BUILDING, WALL, POLE, SIGN, VEGETATION, TERRAIN, SKY, PERSON, CAR = (c.label_id for c in CLASSES)

TRAIN_IDS = np.full(256, IGNORED, np.uint8)  # label id -> train id
TRAIN_IDS[[c.label_id for c in CLASSES]] = [c.train_id for c in CLASSES]
PALETTE = np.zeros((256, 3), np.uint8)  # label id -> preview colour
PALETTE[[c.label_id for c in CLASSES]] = [c.colour for c in CLASSES]


# ------------------------------------------------------------------------------- the two domains: everything to tune

Range = tuple[float, float]


@dataclass(frozen=True)
class Streets:
    """What the streets of a domain are like; every value is a (low, high) range, drawn from uniformly once a scene."""

    road: Range  # half the carriageway's width, m
    verge: Range  # grass between road and sidewalk, m
    sidewalk: Range  # m
    lawn: Range  # grass between sidewalk and building line, m
    bend: Range  # amplitude of the street's winding, m
    storeys: Range  # of a building
    walls: Range  # share of the lots that have a garden wall at the front and their house further back
    pitch: Range  # distance between two objects at the kerb, m
    trees: Range  # share of trees in those objects; of the rest 3 in 5 are signs and 2 in 5 are lamp posts
    bushes: Range  # along the building line, per 10 m of street
    cars: Range  # parked or driving, per 10 m of street
    people: Range  # per 10 m of street
    camera: Range  # the camera's height, m
    heading: Range  # of the camera against the street's direction, degrees


SOURCE_STREETS = Streets(
    road=(3.2, 4.4),
    verge=(0.6, 1.4),
    sidewalk=(2.8, 4.4),
    lawn=(1.0, 3.0),
    bend=(0.0, 4.0),
    storeys=(2, 4),
    walls=(0.35, 0.65),
    pitch=(4.5, 7.0),
    trees=(0.25, 0.5),
    bushes=(0.5, 1.5),
    cars=(0.8, 1.6),
    people=(2.5, 4.5),
    camera=(1.3, 1.5),
    heading=(-5, 5),
)
TARGET_STREETS = Streets(
    road=(4.2, 5.6),
    verge=(0.6, 1.8),
    sidewalk=(2.4, 4.0),
    lawn=(0.7, 2.2),
    bend=(0.0, 6.0),
    storeys=(2, 6),
    walls=(0.3, 0.6),
    pitch=(4.0, 6.0),
    trees=(0.2, 0.5),
    bushes=(0.5, 1.5),
    cars=(1.2, 2.2),
    people=(3.0, 5.0),
    camera=(2.0, 2.5),
    heading=(-180, 180),
)


@dataclass(frozen=True)
class Shift:
    """How the target's look moves at strength 1; at strength s gains act to the power of s, all others s times."""

    sun: float = 0.45  # gain of the direct light: dim and soft
    ambient: float = 0.92  # gain of the sky's light
    cast: tuple[float, float, float] = (1.22, 1.0, 0.74)  # gains of red, green and blue
    contrast: float = 0.72  # gain around middle grey
    saturation: float = 0.62  # gain
    haze: float = 0.014  # added share of the light lost per metre
    noise: float = 0.025  # added standard deviation of the pixels' noise, full scale 1
    hue: float = 35.0  # rotation of the materials' colours, degrees


SHIFT = Shift()
STRENGTH_MAX = 1.3  # a target image's strength is uniform from 0 to this times the setting: always strong is too hard

REACH = 64.0  # m of street that are built up, before and behind the camera
FAR = 1e4  # m, the sky's distance


# --------------------------------------------------------------------------------------------------- the public face

COUNTS = ("source_train", "source_val", "target_train", "target_val")


@dataclass(frozen=True)
class ToyWorld:
    """The settings of one toy world; the images of each domain and split are numbered from 0.

    Raises `ConfigError` for a size, count or strength that cannot work.
    """

    seed: int = 0
    pinhole_size: tuple[int, int] = (128, 64)  # width, height of source images, pixels
    pinhole_fov: float = 75.0  # horizontal field of view of source images, degrees, 0 < fov < 180
    panorama_size: tuple[int, int] = (320, 64)  # width, height of target images: 360 and 360*height/width degrees
    source_train: int = 300  # number of images
    source_val: int = 60
    target_train: int = 200
    target_val: int = 60
    appearance: float = 1.0  # strength of the gap in looks, >= 0
    geometry: float = 1.0  # strength of the gap in geometry, 0 .. 1

    def __post_init__(self) -> None:
        width, height = self.panorama_size
        checks = {
            "seed": (self.seed >= 0, "0 or more"),
            "pinhole_size": (min(self.pinhole_size) > 0, "a positive width and height"),
            "pinhole_fov": (0 < self.pinhole_fov < 180, "degrees between 0 and 180"),
            "panorama_size": (0 < 2 * height < width, "a width of more than twice the height"),
            "appearance": (self.appearance >= 0, "0 or more"),
            "geometry": (0 <= self.geometry <= 1, "between 0 and 1"),
            **{name: (getattr(self, name) >= 0, "0 or more") for name in COUNTS},
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise ConfigError(f"{name}={getattr(self, name)} in the toy world's settings; expected {expected}")

    def images(self) -> list[tuple[str, str, int]]:
        """Every image of the world as (domain, split, index)."""
        return [(*name.split("_"), index) for name in COUNTS for index in range(getattr(self, name))]

    def render(self, root: Path, progress: Progress | None = None, workers: int = 1) -> None:
        """Write every image and label file below `root`, in `workers` processes if more than 1.

        Workers are spawned, not forked, since the caller may hold a GPU or threads; a script that asks for them needs
        the usual `if __name__ == "__main__":`.
        """
        images, write = self.images(), functools.partial(_write_image, self, Path(root))
        if workers == 1:
            _drain(map(write, images), len(images), progress)
            return
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            _drain(pool.map(write, images, chunksize=8), len(images), progress)


def render_image(world: ToyWorld, domain: str, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Render image `index` of a domain ("source" or "target") and split ("train" or "val").

    Returns the image, uint8 (H,W,3), and its Cityscapes label ids, uint8 (H,W): those of `CLASSES` and `EGO`. A pixel's
    label is that of the one ray through its centre; its colour is a weighted mean of nine rays.
    """
    key = (world.seed, ("source", "target").index(domain), ("train", "val").index(split), index)
    layout, looks, noise = (np.random.default_rng((*key, stream)) for stream in range(3))  # looks never move an object
    geometry, appearance = (world.geometry, world.appearance) if domain == "target" else (0.0, 0.0)

    streets = _mix(SOURCE_STREETS, TARGET_STREETS, geometry)
    scene = build_scene(layout, streets)
    position = np.array([0.4 * scene.street.road, 0.0, layout.uniform(*streets.camera)])  # mid-lane, right
    heading = scene.street.angle(0.0) + np.deg2rad(layout.uniform(*streets.heading))
    if geometry > 0:
        camera = panorama_camera(world.panorama_size, position, heading)
    else:
        camera = pinhole_camera(world.pinhole_size, world.pinhole_fov, position, heading)

    look = draw_look(looks, appearance * looks.uniform(0, STRENGTH_MAX))
    colours, labels = shade(scene, camera, *trace(scene.shapes, camera), look)
    return develop(colours, look, noise), labels[1::2, 1::2]  # odd samples are the pixels' centres


def ensure(root: Path, progress: Progress | None = None, workers: int = 1, **settings) -> ToyWorld:
    """Make sure that `root` holds the finished toy world of these `settings` (`ToyWorld`'s), rendering it if need be.

    Any number of processes may call this at once: one renders, the others wait. Files are written in place, and only
    the marker, written last, makes a world count as finished: what an interruption left is deleted and rendered anew,
    which takes seconds. Raises `ConfigError` if `root` holds another toy world, or data that is not a toy world's.
    """
    root, world = Path(root), ToyWorld(**settings)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / ".lock"):
        if (root / MARKER).exists():
            _check_same(json.loads((root / MARKER).read_text()), _description(world), root)
            return world
        _clear(root)
        world.render(root, progress, workers)
        temporary = root / f"{MARKER}.tmp"
        temporary.write_text(json.dumps(_description(world), indent=2) + "\n")
        temporary.replace(root / MARKER)
        (root / UNFINISHED).unlink()
    return world


def preview(world: ToyWorld, rows: int = 4) -> np.ndarray:
    """A contact sheet, uint8 (H,W,3): `rows` images of the source, then of the target, beside their label colours."""
    width = 2 * max(world.pinhole_size[0], world.panorama_size[0])
    strips = []
    for domain in ("source", "target"):
        for index in range(rows):
            image, label_ids = render_image(world, domain, "train", index)
            strip = np.concatenate([image, PALETTE[label_ids]], axis=1)
            strips.append(np.pad(strip, ((0, 2), (0, width - strip.shape[1]), (0, 0)), constant_values=255))
    return np.concatenate(strips)


# ------------------------------------------------------------------------------------------------------------- files


def image_paths(root: Path, domain: str, split: str, index: int) -> dict[str, Path]:
    """The files of one image: `image` and `trainIds`, in the source also `labelIds`."""
    if domain == "source":
        city = CITIES[split]
        stem = f"{city}_{index:06d}_000019"  # 19: the frame that Cityscapes labels in each of its snippets
        images, labels = (root / "cityscapes" / tree / split / city for tree in ("leftImg8bit", "gtFine"))
        return {
            "image": images / f"{stem}_leftImg8bit.png",
            "labelIds": labels / f"{stem}_gtFine_labelIds.png",
            "trainIds": labels / f"{stem}_gtFine_labelTrainIds.png",
        }
    images, labels = (root / "DensePASS" / tree / split / FOLDER for tree in ("leftImg8bit", "gtFine"))
    return {"image": images / f"{index}_.png", "trainIds": labels / f"{index}_labelTrainIds.png"}


def _write_image(world: ToyWorld, root: Path, image: tuple[str, str, int]) -> None:
    rgb, label_ids = render_image(world, *image)
    contents = {"image": rgb, "labelIds": label_ids, "trainIds": TRAIN_IDS[label_ids]}
    for kind, path in image_paths(root, *image).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(contents[kind]).save(path)


def _drain(results: Iterator, total: int, progress: Progress | None) -> None:
    for done, _ in enumerate(results, start=1):
        if progress is not None:
            progress(done, total)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's POSIX lock, which ends with this process; `flock` would live on in workers that inherit it."""
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _description(world: ToyWorld) -> dict:
    return json.loads(json.dumps({"renderer": RENDERER, **asdict(world)}))  # through JSON, so that tuples equal lists


def _check_same(old: dict, new: dict, root: Path) -> None:
    changed = [f"{key}: {old.get(key)} there, {new[key]} asked for" for key in new if old.get(key) != new[key]]
    if changed:
        mend = "use another root, or delete that folder"
        raise ConfigError(f"{root} holds a toy world with other settings ({'; '.join(changed)}); {mend}")


def _clear(root: Path) -> None:
    """Delete what an interrupted rendering left, nothing else, and mark `root` as unfinished."""
    present = [tree for tree in TREES if (root / tree).exists()]
    if present and not (root / UNFINISHED).exists():
        raise ConfigError(f"{root} holds {' and '.join(present)}, but no toy world; give the toy world its own root")
    (root / UNFINISHED).touch()
    for tree in present:
        shutil.rmtree(root / tree)


# ------------------------------------------------------------------------------------------------------------- scene


class Street(NamedTuple):
    """A winding street along y, x to its right, crossed by another at y = `crossing`; metres, see `Streets`."""

    road: float
    verge: float
    sidewalk: float
    lawn: float
    bend: float
    phase: float  # of the winding, radians
    crossing: float
    crossing_road: float

    def middle(self, y):
        """x of the street's middle line at y; 0 at y = 0."""
        return self.bend * (np.sin(y / 22 + self.phase) - math.sin(self.phase))

    def angle(self, y):
        """The street's direction at y, radians clockwise from +y."""
        return np.arctan(self.bend / 22 * np.cos(y / 22 + self.phase))

    @property
    def front(self) -> float:
        """Distance of the building line from the kerb, m."""
        return self.verge + self.sidewalk + self.lawn

    def place(self, side: int, beyond: float, along: float) -> "Place":
        """The spot `beyond` m beyond the kerb of the right (side 1) or left (-1); its right is away from the street."""
        yaw = self.angle(along) + (0 if side > 0 else np.pi)
        return Place(self.middle(along) + side * (self.road + beyond), along, yaw)

    def blocks(self) -> list[tuple[float, float]]:
        """The stretches of y with houses: one, or one on either side of a crossing."""
        gap = self.crossing_road + self.front
        if self.crossing > REACH:
            return [(-REACH, REACH)]
        return [(-REACH, self.crossing - gap), (self.crossing + gap, REACH)]

    def crossed(self, along: float, margin: float) -> bool:
        """Whether the crossing street, `margin` m on either side included, is at y = `along`."""
        return abs(along - self.crossing) < self.crossing_road + margin


class Place(NamedTuple):
    """A spot on the ground and a direction: x, y in m, yaw in radians clockwise from +y."""

    x: float
    y: float
    yaw: float

    def offset(self, right: float, forward: float) -> "Place":
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return Place(self.x + right * cos + forward * sin, self.y - right * sin + forward * cos, self.yaw)


BOX, ELLIPSOID = range(2)  # forms
PLAIN, FACADE, BRICKS, LEAVES, CARBODY, DISC = range(6)  # textures
SHAPE = np.dtype(
    [
        ("form", np.uint8),
        ("texture", np.uint8),
        ("label", np.uint8),
        ("centre", np.float32, 3),  # x, y, z in m
        ("half", np.float32, 3),  # half the extent along the shape's own right, forward and up, m
        ("yaw", np.float32),  # of the shape's forward, radians clockwise from +y
        ("colour", np.float32, 3),  # red, green, blue, 0 .. 1
    ]
)


class Scene(NamedTuple):
    street: Street
    shapes: np.ndarray  # (N,) of SHAPE


def _colours(codes: str) -> np.ndarray:
    """Space-separated RRGGBB codes as float32 (n,3) from 0 to 1."""
    return np.array([list(bytes.fromhex(code)) for code in codes.split()], np.float32) / 255


# Hues overlap between classes on purpose: texture and place have to tell a wall from a house and a sign from a coat.
HOUSES = _colours("9e5c47 b89970 b3a899 808c9e bd8c5c 8f7066")
STONES = _colours("858078 8c6b57 998f75")
METALS = _colours("383b40 4d4f52 3d332b")
SIGNS = _colours("cc1a1a 1a38b8 dbb31a")
GREENS = _colours("29571f 3d6624 244724 576624")
TRUNKS = _colours("4d3624")
CLOTHES = _colours("b32929 263880 d9ccb8 292933 bf731a 733373")
SKINS = _colours("d19e80 8c6147")
PAINTS = _colours("bf1414 1a338c d1d1d6 1a1a1f 8c9199 1f614d")
GLASS, PANES = _colours("1f2630"), _colours("293040 8599b0")[..., None]  # of cars (1,3); darkest and brightest (2,3,1)
LAMPS = _colours("f2edcc bf0d0d")[..., None]  # (2,3,1) front and back
GROUND = _colours("4f4f57 998c82 6b7333")  # of road, sidewalk and terrain
ZENITH, HORIZON = _colours("6b9ef2 ebf2ff")[..., None]  # (3,1) each


class Builder:
    """Collects the shapes of a scene; each method sets up one thing at a place."""

    def __init__(self, rng: Generator):
        self.rng = rng
        self.rows: list[tuple] = []

    def pick(self, colours: np.ndarray) -> np.ndarray:
        """One of the colours, each channel varied by up to 12%."""
        return colours[self.rng.integers(len(colours))] * self.rng.uniform(0.88, 1.12, 3)

    def add(self, form, texture, label, place: Place, size, bottom: float, colour) -> None:
        """A shape of `size` = (width, length, height) in m, `bottom` m above the ground."""
        half = tuple(extent / 2 for extent in size)
        self.rows.append((form, texture, label, (place.x, place.y, bottom + half[2]), half, place.yaw, colour))

    def building(self, place: Place, width: float, depth: float, storeys: float) -> None:
        """Its facade, `width` m wide, stands at `place`; its depth goes to the right."""
        centre, height, colour = place.offset(depth / 2, 0), 3 * round(storeys) + 0.6, self.pick(HOUSES)
        self.add(BOX, FACADE, BUILDING, centre, (depth, width, height), 0, colour)
        self.add(BOX, PLAIN, BUILDING, centre, (depth + 0.7, width + 0.5, 0.6), height, colour * 0.55)  # the eaves

    def wall(self, place: Place, width: float) -> None:
        self.add(BOX, BRICKS, WALL, place, (0.4, width, self.rng.uniform(1.8, 2.6)), 0, self.pick(STONES))

    def tree(self, place: Place, height: float) -> None:
        self.add(BOX, PLAIN, VEGETATION, place, (0.4, 0.4, height * 0.6), 0, self.pick(TRUNKS))
        colour = self.pick(GREENS)
        for _ in range(4):
            right, forward = (height * self.rng.uniform(-0.17, 0.17) for _ in range(2))
            wide, high, bottom = (height * self.rng.uniform(low, 0.55) for low in (0.38, 0.38, 0.35))
            self.add(ELLIPSOID, LEAVES, VEGETATION, place.offset(right, forward), (wide, wide, high), bottom, colour)

    def bush(self, place: Place) -> None:
        size, colour = self.rng.uniform(0.8, 1.5), self.pick(GREENS)
        for shift in (-0.3, 0.3):
            extent = (size, size, size * self.rng.uniform(0.8, 1.2))
            self.add(ELLIPSOID, LEAVES, VEGETATION, place.offset(0, shift * size), extent, -0.1, colour)

    def lamp(self, place: Place) -> None:
        """A lamp post whose arm reaches out to the left of its place."""
        height, colour = self.rng.uniform(4.5, 6.5), self.pick(METALS)
        self.add(BOX, PLAIN, POLE, place, (0.34, 0.34, height), 0, colour)
        self.add(BOX, PLAIN, POLE, place.offset(-0.9, 0), (2.0, 0.3, 0.26), height, colour)

    def sign(self, place: Place) -> None:
        """A disc or a board on a pole, its face along the street."""
        bottom, size = self.rng.uniform(2.2, 2.8), self.rng.uniform(1.1, 1.4)
        self.add(BOX, PLAIN, POLE, place, (0.28, 0.28, bottom + 0.05), 0, self.pick(METALS))
        disc, board = (ELLIPSOID, (size, 0.4, size)), (BOX, (1.15 * size, 0.3, 0.8 * size))
        form, extent = disc if self.rng.random() < 0.5 else board
        self.add(form, DISC, SIGN, place, extent, bottom, self.pick(SIGNS))

    def person(self, place: Place) -> None:
        size, trousers = self.rng.uniform(0.95, 1.15), self.pick(CLOTHES) * 0.7
        for side in (-1, 1):
            leg = place.offset(side * 0.16, side * 0.14)
            self.add(BOX, PLAIN, PERSON, leg, (0.26 * size, 0.3 * size, 0.85 * size), 0, trousers)
        torso, head = (0.7 * size, 0.52 * size, 1.0 * size), (0.34 * size, 0.34 * size, 0.4 * size)
        self.add(ELLIPSOID, PLAIN, PERSON, place, torso, 0.6 * size, self.pick(CLOTHES))
        self.add(ELLIPSOID, PLAIN, PERSON, place, head, 1.46 * size, self.pick(SKINS))

    def car(self, place: Place) -> None:
        paint, height, length = self.pick(PAINTS), self.rng.uniform(1.4, 1.7), self.rng.uniform(3.8, 4.5)
        cabin = place.offset(0, -0.2)
        self.add(BOX, CARBODY, CAR, place, (1.8, length, height * 0.58), 0, paint)
        self.add(BOX, PLAIN, CAR, cabin, (1.6, 2.3, height * 0.36), height * 0.58, self.pick(GLASS))
        self.add(BOX, PLAIN, CAR, cabin, (1.62, 2.0, height * 0.06), height * 0.94, paint)  # the roof


def build_scene(rng: Generator, streets: Streets) -> Scene:
    """Draw a street and everything on it; the ego car stands at y = 0 in the middle of the right lane."""

    def draw(*names: str) -> list[float]:
        return [rng.uniform(*getattr(streets, name)) for name in names]

    crossing = rng.uniform(14, 40) * rng.choice((-1, 1)) if rng.random() < 0.6 else 1e6  # 1e6 m: none in sight
    street = Street(
        *draw("road", "verge", "sidewalk", "lawn", "bend"), rng.uniform(0, 2 * np.pi), crossing, *draw("road")
    )
    builder = Builder(rng)
    for side in (-1, 1):
        _add_lots(builder, street, side, *draw("walls"), streets.storeys)
        _add_kerb(builder, street, side, *draw("pitch", "trees"))
        _add_sidewalk(builder, street, side, *draw("people", "bushes"))
    _add_cars(builder, street, *draw("cars"))
    _add_corners(builder, street, streets.storeys)
    _add_surroundings(builder)
    ego = Place(0.4 * street.road, 0.0, street.angle(0.0))
    builder.add(ELLIPSOID, PLAIN, EGO, ego, (1.9, 6.0, 2.1), -1.05, builder.pick(PAINTS))
    return Scene(street, np.array(builder.rows, SHAPE))


def _add_lots(builder: Builder, street: Street, side: int, walls: float, storeys: Range) -> None:
    """Houses from end to end: at the building line, or behind a garden with a wall and a tree."""
    rng = builder.rng
    for start, stop in street.blocks():
        count = round((stop - start) / rng.uniform(8, 13)) or 1
        width = (stop - start) / count
        for along in start + width * (np.arange(count) + 0.5):
            place, gap = street.place(side, street.front, along), rng.choice((0.0, 2.0))
            garden = rng.random() < walls
            if garden:
                builder.wall(place, width)
                builder.tree(place.offset(3.5, rng.uniform(-2, 2)), rng.uniform(4, 6))
            builder.building(place.offset(9 if garden else 0, 0), width - gap, 11, rng.uniform(*storeys))


def _add_corners(builder: Builder, street: Street, storeys: Range) -> None:
    """The houses along the crossing street."""
    for side in (-1, 1) if street.crossing < REACH else ():
        for bank in (-1, 1):
            edge = street.crossing + bank * (street.crossing_road + street.front)
            for number in range(3):
                x = street.middle(edge) + side * (street.road + street.front + 18 + 13 * number)
                builder.building(Place(x, edge, -bank * np.pi / 2), 12, 10, builder.rng.uniform(*storeys))


def _add_kerb(builder: Builder, street: Street, side: int, pitch: float, trees: float) -> None:
    rng = builder.rng
    for slot in np.arange(-REACH / 2, 0.75 * REACH, pitch):
        along, kind = slot + pitch * rng.uniform(-0.3, 0.3), rng.random()
        place = street.place(side, rng.uniform(0.4, 0.8), along)
        if street.crossed(along, 0.5):
            continue
        if kind < trees:
            builder.tree(place, rng.uniform(4, 6.5))
        elif kind < trees + 0.6 * (1 - trees):
            builder.sign(place)
        else:
            builder.lamp(place)


def _add_sidewalk(builder: Builder, street: Street, side: int, people: float, bushes: float) -> None:
    """People and bushes of one side, as many as `people` and `bushes` per 10 m of both sides ask for."""
    rng, start, length = builder.rng, -REACH / 2, REACH
    for _ in range(rng.poisson(people * length / 20)):
        beyond = street.verge + rng.uniform(0.1, 0.9) * street.sidewalk
        place = street.place(side, beyond, rng.uniform(start, start + length))
        builder.person(place._replace(yaw=rng.uniform(0, 2 * np.pi)))
    for _ in range(rng.poisson(bushes * length / 20)):
        along = rng.uniform(start, start + length)
        if not street.crossed(along, street.front):
            builder.bush(street.place(side, street.front - 0.5, along))


def _add_cars(builder: Builder, street: Street, cars: float) -> None:
    """Cars parked at both kerbs and driving in both lanes, `cars` per 10 m in all, with room around the ego car."""
    rng, slot_length = builder.rng, 6.5
    # (side, m beyond the kerb, m to stay away from the ego car): parked right and left, oncoming, ahead or behind
    lanes = ((1, -1.1, 7.0), (-1, -1.1, 4.0), (-1, -0.65 * street.road, 4.0), (1, -0.6 * street.road, 16.0))
    for slot in np.arange(-REACH / 2, REACH, slot_length):
        for side, beyond, room in lanes:
            along = slot + rng.uniform(-1, 1)
            wanted = rng.random() < cars * slot_length / 10 / len(lanes)
            if wanted and abs(along) > room and not street.crossed(along, 3):
                builder.car(street.place(side, beyond, along))


def _add_surroundings(builder: Builder) -> None:
    """A ring of far houses and woods that closes the view."""
    rng = builder.rng
    for angle in np.linspace(0, 2 * np.pi, 28, endpoint=False):
        distance = rng.uniform(85, 110)
        place = Place(distance * np.sin(angle), distance * np.cos(angle), angle - np.pi / 2)
        if rng.random() < 0.5:
            builder.building(place, rng.uniform(12, 22), 10, rng.uniform(2, 5))
        else:
            builder.add(ELLIPSOID, LEAVES, VEGETATION, place, (26, 26, rng.uniform(9, 18)), -1, builder.pick(GREENS))


def _mix(source: Streets, target: Streets, share: float) -> Streets:
    """Every bound of every range, `share` of the way from source to target."""
    ranges = ((f.name, getattr(source, f.name), getattr(target, f.name)) for f in fields(Streets))
    return Streets(**{name: tuple(a + share * (b - a) for a, b in zip(old, new)) for name, old, new in ranges})


# ------------------------------------------------------------------------------------------------- cameras and rays


class Camera(NamedTuple):
    """Rays, two per pixel each way and one more: odd rows and columns are the pixels' centres, even ones their borders.

    A ray reaches position + t * (plan[0,c], plan[1,c], rise[r]) for t >= 0.
    """

    position: np.ndarray  # (3,) x, y, z in m
    plan: np.ndarray  # (2,C) float32, x and y direction, C = 2 * width + 1
    rise: np.ndarray  # (R,) float32, z direction, R = 2 * height + 1


def pinhole_camera(size: tuple[int, int], fov: float, position: np.ndarray, heading: float) -> Camera:
    """A level pinhole camera of `size` (width, height) pixels, `fov` degrees wide, that looks along `heading`."""
    width, height = size
    focal = width / 2 / np.tan(np.deg2rad(fov) / 2)  # pixels
    right = (np.arange(2 * width + 1) - width) / 2 / focal
    sin, cos = np.sin(heading), np.cos(heading)
    plan = np.stack([sin + right * cos, cos - right * sin])
    rise = (height - np.arange(2 * height + 1)) / 2 / focal
    return Camera(position, plan.astype(np.float32), rise.astype(np.float32))


def panorama_camera(size: tuple[int, int], position: np.ndarray, heading: float) -> Camera:
    """A level equirectangular camera of `size` (width, height) pixels, 360 degrees wide, centred on `heading`."""
    width, height = size
    # The first and the last sample both lie on the seam; the modulo makes their directions exactly equal.
    turns = np.arange(2 * width + 1) % (2 * width) / (2 * width) - 0.5
    yaw = heading + 2 * np.pi * turns
    rise = np.tan((height - np.arange(2 * height + 1)) * np.pi / width)
    return Camera(position, np.stack([np.sin(yaw), np.cos(yaw)]).astype(np.float32), rise.astype(np.float32))


def trace(shapes: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Find what every ray meets first.

    Returns t, float32 (R,C), and the index into `shapes`, int32 (R,C), where N stands for the ground and N+1 for the
    sky.
    """
    rise = np.where(np.abs(camera.rise) < 1e-6, np.float32(1e-6), camera.rise)  # no division by zero at the horizon
    ground = np.where(rise < 0, -camera.position[2] / rise, FAR).clip(max=FAR).astype(np.float32)
    depth = np.repeat(ground[:, None], camera.plan.shape[1], axis=1)
    hit = np.where(depth < FAR, len(shapes), len(shapes) + 1).astype(np.int32)

    # In its own frame, in half extents, a box is the cube [-1, 1]^3 and an ellipsoid the unit ball.
    half, yaw = shapes["half"].T, shapes["yaw"]
    x, y, z = camera.position.astype(np.float32)[:, None] - shapes["centre"].T
    start = np.stack([*_turn(x, y, yaw), z]) / half  # (3,N)
    plan = np.stack(_turn(*camera.plan[:, None], yaw[:, None])) / half[:2, :, None]  # (2,N,C)
    lift = rise / half[2, :, None]  # (N,R)
    enter, leave = _cross_in_plan(shapes["form"], start, plan)  # (N,C) each
    rise_in, rise_out = _cross_slab(start[2, :, None], lift)  # (N,R) each
    for i, rows, columns in _windows(enter, leave, rise_in, rise_out):
        if shapes["form"][i] == BOX:
            t = np.maximum(rise_in[i, rows, None], enter[i, columns])
            met = (t > 0) & (t < np.minimum(rise_out[i, rows, None], leave[i, columns]))
        else:
            t, met = _cross_ball(start[:, i], plan[:, i, columns], lift[i, rows])
        met &= t < depth[rows, columns]
        np.copyto(depth[rows, columns], t, where=met)
        np.copyto(hit[rows, columns], i, where=met)
    return depth, hit


def _turn(x: np.ndarray, y: np.ndarray, yaw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vector (x, y) as (right, forward) of a frame whose forward is `yaw` radians clockwise from +y."""
    return x * np.cos(yaw) - y * np.sin(yaw), x * np.sin(yaw) + y * np.cos(yaw)


def _cross_slab(start: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """t at which start + t * direction enters and leaves [-1, 1]."""
    inverse = 1 / np.where(np.abs(direction) < 1e-9, np.float32(1e-9), direction)
    middle, spread = -start * inverse, np.abs(inverse)
    return middle - spread, middle + spread


def _cross_in_plan(form: np.ndarray, start: np.ndarray, plan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """t at which each column enters and leaves each shape seen from above, (N,C) each; enter >= leave for a miss.

    `start` (3,N) and `plan` (2,N,C) are the rays in the shapes' own scaled frames.
    """
    enter, leave = np.zeros((2, *plan.shape[1:]), np.float32)
    box, ball = form == BOX, form == ELLIPSOID
    sides = _cross_slab(start[:2, box, None], plan[:, box])
    enter[box], leave[box] = sides[0].max(axis=0), sides[1].min(axis=0)

    origin, direction = start[:2, ball, None], plan[:, ball]
    a, b, c = (direction**2).sum(axis=0), (direction * origin).sum(axis=0), (origin**2).sum(axis=0) - 1
    reach = np.sqrt((b * b - a * c).clip(0))  # 0 for a miss
    enter[ball], leave[ball] = (-b - reach) / a, (-b + reach) / a
    return enter, leave


def _cross_ball(start: np.ndarray, plan: np.ndarray, lift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First t on the unit ball of rays from `start` (3,) along `plan` (2,c) and `lift` (r,), and where they meet it."""
    a = (plan**2).sum(axis=0) + lift[:, None] ** 2
    b = start[:2] @ plan + lift[:, None] * start[2]
    root = b * b - a * ((start**2).sum() - 1)
    t = (-b - np.sqrt(root.clip(0))) / a
    return t, (root > 0) & (t > 0)


def _windows(enter, leave, rise_in, rise_out) -> Iterator[tuple[int, slice, slice]]:
    """(shape, rows, columns) of the part of the image each shape may be seen in; two parts if it lies across a seam.

    The arguments are the t at which columns (N,C) and rows (N,R) enter and leave the shapes.
    """
    seen = leave > np.maximum(enter, 0)
    nearest = np.where(seen, enter, FAR).min(axis=1, keepdims=True).clip(0)
    farthest = np.where(seen, leave, 0).max(axis=1, keepdims=True)
    level = (rise_in < farthest) & (rise_out > nearest)  # (N,R), one run of rows for each shape
    top, bottom = level.argmax(axis=1), level.shape[1] - level[:, ::-1].argmax(axis=1)
    seen &= level.any(axis=1, keepdims=True)
    shape, edge = np.nonzero(np.diff(seen, prepend=False, append=False, axis=1))  # starts and ends of runs take turns
    for i, first, end in zip(shape[::2], edge[::2], edge[1::2]):
        yield i, slice(top[i], bottom[i]), slice(first, end)


# ----------------------------------------------------------------------------------------------- colours: (3,n) each


@dataclass(frozen=True)
class Look:
    """Light, air and camera of one image."""

    sun: float  # strength of the direct light
    towards_sun: np.ndarray  # (3,) unit vector
    ambient: float  # strength of the sky's light
    clouds: float  # threshold, 0 few .. 1 many
    hue: float  # rotation of the materials' colours, degrees
    haze: float  # share of the light lost per metre
    cast: np.ndarray  # (3,) gains of red, green and blue
    contrast: float  # gain around middle grey
    saturation: float  # gain
    noise: float  # standard deviation, full scale 1
    ground: np.ndarray  # (3,3) gains of red, green and blue (columns) of road, sidewalk and terrain (rows)
    drift: np.ndarray  # (2,1) offset of the clouds, cells of the noise map


def draw_look(rng: Generator, strength: float) -> Look:
    """The source's natural variation, moved by `strength` times `SHIFT`."""
    azimuth, elevation = np.deg2rad(rng.uniform((0, 25), (360, 60)))
    level = np.cos(elevation)
    return Look(
        sun=rng.uniform(0.45, 0.75) * SHIFT.sun**strength,
        towards_sun=np.array([level * np.sin(azimuth), level * np.cos(azimuth), np.sin(elevation)], np.float32),
        ambient=rng.uniform(0.55, 0.75) * SHIFT.ambient**strength,
        clouds=rng.uniform(0, 1),
        hue=rng.uniform(-8, 8) + SHIFT.hue * strength,
        haze=rng.uniform(0.001, 0.004) + SHIFT.haze * strength,
        cast=np.float32(rng.uniform(0.95, 1.05, 3) * np.asarray(SHIFT.cast) ** strength),
        contrast=rng.uniform(0.95, 1.1) * SHIFT.contrast**strength,
        saturation=rng.uniform(0.9, 1.15) * SHIFT.saturation**strength,
        noise=rng.uniform(0.005, 0.015) + SHIFT.noise * strength,
        ground=rng.uniform(0.85, 1.15, (3, 1)) * rng.uniform(0.95, 1.05, (3, 3)),
        drift=np.float32(rng.uniform(0, 256, (2, 1))),
    )


def shade(
    scene: Scene, camera: Camera, depth: np.ndarray, hit: np.ndarray, look: Look
) -> tuple[np.ndarray, np.ndarray]:
    """Colours, float32 (3,R,C) from 0 upwards, and label ids, uint8 (R,C), of what `trace` found."""
    rays = np.stack(np.broadcast_arrays(*camera.plan, camera.rise[:, None])).reshape(3, -1)  # (3,R*C)
    length, t, found, count = np.sqrt((rays**2).sum(axis=0)), depth.ravel(), hit.ravel(), len(scene.shapes)
    points, distance = camera.position.astype(np.float32)[:, None] + t * rays, t * length
    shapes, ground, sky = (np.flatnonzero(kind) for kind in (found < count, found == count, found > count))

    colours, labels = np.empty_like(rays), np.full(found.shape, SKY, np.uint8)
    labels[shapes] = scene.shapes["label"][found[shapes]]
    colours[:, shapes] = _shade_shapes(scene.shapes, found[shapes], points[:, shapes], distance[shapes], look)
    labels[ground], colours[:, ground] = _shade_ground(scene.street, points[:, ground], distance[ground], look)
    colours[:, sky] = _shade_sky(rays[:, sky] / length[sky], look)
    distance[sky] = 0  # the haze is in its colours
    glow = HORIZON * (look.ambient + 0.3 * look.sun)
    colours = glow + (colours - glow) * np.exp(-look.haze * distance)
    return colours.reshape(3, *hit.shape), labels.reshape(hit.shape)


def _shade_sky(rays: np.ndarray, look: Look) -> np.ndarray:
    """The sky in the directions of the unit vectors `rays` (3,n): a gradient, and clouds on a plane high above."""
    blue = np.sqrt(rays[2].clip(0))
    clear = HORIZON + (ZENITH - HORIZON) * blue
    clouds = (look.clouds - 0.8 + 0.6 * _noise(*(rays[:2] / (rays[2] + 0.15) * 12 + look.drift))).clip(0, 0.8)
    return (clear * (1 - clouds) + clouds) * (look.ambient + 0.3 * look.sun)


def _shade_ground(
    street: Street, points: np.ndarray, distance: np.ndarray, look: Look
) -> tuple[np.ndarray, np.ndarray]:
    """Label ids (n,) and colours (3,n) of `points` (3,n) on the ground, `distance` (n,) m away."""
    x, y, _ = points
    across = x - street.middle(y)
    beside, before = np.abs(across) - street.road, np.abs(y - street.crossing) - street.crossing_road
    beyond = np.minimum(beside, before)  # m beyond the kerb of the nearer street
    zone = np.searchsorted((0, street.verge, street.verge + street.sidewalk), beyond, side="right")
    road, walk, grass = zone == 0, zone == 2, zone % 2 == 1

    fine = np.exp(-distance / 30)  # what is finer than a pixel fades
    lines = (np.abs(across) < 0.12) & (y % 6 < 3) & (before > 3) | (np.abs(beside + 0.25) < 0.1) & (before > 0)
    zebra = (np.abs(before - 1.8) < 1.3) & (across % 1.2 < 0.6)
    joints = walk & ((x % 1 < 0.1) | (y % 1 < 0.1))
    kerb = walk & (beyond < street.verge + 0.25)
    tone = 1 + 0.06 * fine * _noise(x * 9, y * 9) + 0.05 * _noise(x, y)
    tone[grass] += 0.1 * _noise(x[grass] * 5, y[grass] * 5)
    tone[joints] -= 0.2 * fine[joints]
    tone[kerb] += 0.2
    tone *= 1 - 0.35 * np.exp(-np.abs(street.front - beyond) / 0.5)  # the foot of the houses is dark

    surfaces = _rotate_hue(GROUND * look.ground, look.hue)
    albedo = np.take(surfaces.T, np.where(road, 0, np.where(walk, 1, 2)), axis=1) * tone
    albedo[:, road & (lines | zebra)] = 0.85
    label = np.where(road, ROAD, np.where(walk, SIDEWALK, TERRAIN)).astype(np.uint8)
    return label, albedo * (look.ambient + look.sun * look.towards_sun[2])


class Surface(NamedTuple):
    """Points on the surfaces of shapes."""

    seed: np.ndarray  # (n,) the shape's number, float32: tells its texture from its neighbours'
    local: np.ndarray  # (3,n) right, forward and up from the shape's centre, m
    unit: np.ndarray  # (3,n) the same in half extents, -1 .. 1
    half: np.ndarray  # (3,n) the half extents, m
    face: np.ndarray  # (n,) the axis a box's face is square to: 0 = left or right, 1 = front or back, 2 = top or bottom
    height: np.ndarray  # (n,) above the ground, m
    fine: np.ndarray  # (n,) visibility of detail finer than a distant pixel, 1 near .. 0 far

    @property
    def run(self) -> np.ndarray:
        """(n,) metres along the face, sideways."""
        return np.where(self.face == 0, self.local[1], self.local[0])


def _shade_shapes(
    shapes: np.ndarray, index: np.ndarray, points: np.ndarray, distance: np.ndarray, look: Look
) -> np.ndarray:
    """Colours (3,n) of `points` (3,n) on the surfaces of `shapes[index]`, `distance` (n,) m away."""
    centre, half, colour = (
        np.take(values.T, index, axis=1)
        for values in (shapes["centre"], shapes["half"], _rotate_hue(shapes["colour"], look.hue))
    )  # (3,n) each
    x, y, z = points - centre
    local = np.stack([*_turn(x, y, shapes["yaw"][index]), z])
    unit = local / half
    face = np.abs(unit).argmax(axis=0)
    normal = np.where(shapes["form"][index] == BOX, np.sign(unit) * (np.arange(3)[:, None] == face), unit / half)
    normal /= np.sqrt((normal**2).sum(axis=0))

    texture, seed = shapes["texture"][index], index.astype(np.float32)
    height, fine = points[2], np.exp(-distance / 30)
    albedo = colour * (1 + 0.08 * fine * _noise((points[0] + points[1]) * 8, height * 8))
    for kind, paint in TEXTURES.items():
        at = np.flatnonzero(texture == kind)
        surface = Surface(seed[at], local[:, at], unit[:, at], half[:, at], face[at], height[at], fine[at])
        albedo[:, at] = paint(albedo[:, at], surface)

    sun = np.stack([*_turn(*look.towards_sun[:2], shapes["yaw"]), np.full(len(shapes), look.towards_sun[2])])
    direct = (normal * np.take(sun, index, axis=1)).sum(axis=0).clip(0)
    return albedo * (look.ambient * (0.8 + 0.2 * normal[2]) + look.sun * direct)


def _facade(albedo: np.ndarray, at: Surface) -> np.ndarray:
    """Windows 2.2 m apart, a storey every 3 m with a ledge, and doors at the foot."""
    column, storey = at.run / 2.2 + at.seed * 7, at.height / 3
    u, v = np.abs(column % 1 - 0.5), storey % 1
    chance = _chance(column, storey + at.seed * 3)
    door = (storey < 1) & (chance < 0.3) & (u < 0.26) & (v < 0.78)
    window = (u < 0.26) & (np.abs(v - 0.55) < 0.27) & (at.face < 2) & ~door
    albedo = albedo * np.where(door, 0.45, np.where(v < 0.08, 0.8, 1)).astype(np.float32)
    return np.where(window, PANES[0] + (PANES[1] - PANES[0]) * chance**2, albedo)


def _bricks(albedo: np.ndarray, at: Surface) -> np.ndarray:
    """Courses of stones in many tones with dark joints, and a light coping."""
    course = at.height / 0.45
    stone = at.run / 0.9 + 0.5 * (np.floor(course) % 2)
    joint = (course % 1 < 0.16) | (stone % 1 < 0.1)
    tone = 0.75 + 0.45 * _chance(stone + at.seed * 5, course)
    tone[joint] -= 0.35 * at.fine[joint]
    tone[at.local[2] > at.half[2] - 0.22] = 1.35
    return albedo * tone


def _leaves(albedo: np.ndarray, at: Surface) -> np.ndarray:
    """Light and dark clumps, lighter towards the top."""
    clumps = _noise((at.local[0] + at.local[1]) * 5 + at.seed * 9, at.height * 5) * (0.4 + 0.6 * at.fine)
    return albedo * (0.95 + 0.3 * at.unit[2] + 0.28 * clumps).clip(0.25)


def _carbody(albedo: np.ndarray, at: Surface) -> np.ndarray:
    """Wheels, a dark underside, white lamps at the front and red ones at the back."""
    wheel = (at.face == 0) & (np.hypot(np.abs(at.local[1]) - 0.62 * at.half[1], at.height - 0.34) < 0.36)
    lamp = (at.face == 1) & (np.abs(at.unit[0]) > 0.55) & (np.abs(at.height - 0.65) < 0.14)
    albedo = np.where(lamp, np.where(at.unit[1] > 0, *LAMPS), albedo)
    return np.where(wheel | (at.height < 0.24), 0.06, albedo)


def _disc(albedo: np.ndarray, at: Surface) -> np.ndarray:
    """A white field with a dark bar in a coloured frame."""
    albedo = np.where(np.hypot(at.unit[0], at.unit[2]) < 0.6, 0.92, albedo)
    return np.where((np.abs(at.unit[0]) < 0.5) & (np.abs(at.unit[2]) < 0.15), 0.15, albedo)


TEXTURES = {FACADE: _facade, BRICKS: _bricks, LEAVES: _leaves, CARBODY: _carbody, DISC: _disc}


@functools.cache
def _noise_map() -> np.ndarray:
    """A cloudy random field of 256 x 256 cells with a 1/f spectrum, mean 0, standard deviation 1, without a seam."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    frequency[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(np.random.default_rng(0).standard_normal((256, 256))) / frequency).real
    return (field / field.std()).astype(np.float32).ravel()


@functools.cache
def _chance_map() -> np.ndarray:
    return np.random.default_rng(1).random(256 * 256, np.float32)


def _cell(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The index of the cell at u, v in a map of 256 x 256 cells that repeats."""
    return (np.floor(u).astype(np.int32) & 255) * 256 + (np.floor(v).astype(np.int32) & 255)


def _noise(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Smooth noise, mean 0 and standard deviation 1, at positions u, v in cells."""
    return _noise_map()[_cell(u, v)]


def _chance(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each cell u, v, unrelated to its neighbours'."""
    return _chance_map()[_cell(u, v)]


def _rotate_hue(colours: np.ndarray, degrees: float) -> np.ndarray:
    """Colours (n,3) turned about the grey axis by Rodrigues' formula, nothing below 0; float32."""
    angle, axis = np.deg2rad(degrees), np.full(3, 3**-0.5)
    along = (colours @ axis)[:, None] * axis * (1 - np.cos(angle))
    return (colours * np.cos(angle) + np.cross(axis, colours) * np.sin(angle) + along).clip(0).astype(np.float32)


def develop(colours: np.ndarray, look: Look, rng: Generator) -> np.ndarray:
    """Rays' colours (3,2H+1,2W+1) as an image, uint8 (H,W,3); a pixel weighs its nine rays 1-2-1 in both directions."""
    rows = (colours[:, :-2:2] + 2 * colours[:, 1:-1:2] + colours[:, 2::2]) / 4
    image = (rows[..., :-2:2] + 2 * rows[..., 1:-1:2] + rows[..., 2::2]) / 4 * look.cast.reshape(3, 1, 1)
    grey = image.mean(axis=0)
    image = 0.5 + (grey + (image - grey) * look.saturation - 0.5) * look.contrast
    image += look.noise * rng.standard_normal(image.shape, np.float32)
    return (image.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)  # (3,H,W) -> (H,W,3)
