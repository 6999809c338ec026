"""Settings that follow from somebody's folders: experiment=mine source=<...> panoramas=<...>.

Layouts, label space and sizes become settings as if they were typed, so that a run keeps the plain, full configuration.
"""

import logging
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from trans4pass.build import CONFIGS, build
from trans4pass.data import SegmentationDataset, Size
from trans4pass.data.files import IMAGE_SUFFIXES, files_below, image_size, is_image, read_image, read_label
from trans4pass.data.folder import WIDE
from trans4pass.errors import ConfigError, DataError
from trans4pass.labels import LabelSpace
from trans4pass.settings import Positive, converted

log = logging.getLogger(__name__)
T = TypeVar("T")

# File of configs/data -> images that lie in such a folder; where two fit, the first is meant.
LAYOUTS = {
    "cityscapes": "leftImg8bit/{split}/*/*_leftImg8bit.png",
    "densepass": "leftImg8bit/{split}/*/*.png",
    "synpass": "img/*/{split}/*/*.jpg",
    "stanford_panorama": "area_*/pano/rgb/*.png",
    "stanford_pinhole": "area_*/data/rgb/*.png",
    "structured3d": "scene_*/2D_rendering/*/panorama/full/rgb_rawlight.png",
}
# Class of a data set -> the classes that it is labelled with.
LABELS = {
    "Cityscapes": "cityscapes19", "DensePASS": "cityscapes19", "SynPASS": "synpass22", "Stanford2D3D": "indoor13",
    "Structured3D": "indoor8",
}  # fmt: skip
ANY = LabelSpace("any", ("any",), np.zeros((1, 3), np.uint8), {})  # to see what data sets are labelled in
SIDES = {"source": "source", "panoramas": "target", "scored": "scored"}  # what is typed -> the side that it is
IMAGES = ("images", "image", "img", "photos", "rgb")  # what folders of images and of their labels are called
ANNOTATIONS = ("labels", "annotations", "masks", "label", "mask", "semantic", "gt")

EXPERIMENT = "mine"
# What is chosen besides data sets; an experiment that goes on from `mine` may set it, too.
CHOSEN = (
    "crop", "source_base", "panorama_size", "borders_meet", "evaluate.source", "data.source.eval_size",
    "data.target.eval_size",
)  # fmt: skip
LONGEST, SHORTEST = 2048, 1024  # pixels: panoramas are at most so wide, source images' short sides at most so long
CROP, STRIDE = 512, 32  # pixels
LOOKED_AT, DECODED = 200, 8  # images whose size is read, and whose borders are compared


class Choice(NamedTuple):
    """A setting as it would be typed, and why."""

    key: str
    value: Any
    why: str

    @property
    def typed(self) -> str:
        return f"{self.key}={as_typed(self.value)}"


def filled(config: DictConfig) -> DictConfig:
    """A composed configuration with what its `source` and `panoramas` ask for; any without these as it is.

    Raises:
        ConfigError, DataError: folders that are none, or hold no images, or no labels where these are needed.
    """
    if "panoramas" not in config or not HydraConfig.initialized():
        return config
    hydra = HydraConfig.get()
    typed = [*(word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath")), *hydra.overrides.task]
    own = [source.path for source in hydra.runtime.config_sources if "command-line" in source.provider]
    folders = [CONFIGS, *map(Path, own)]
    names = {path.stem for folder in folders for path in (folder / "data").glob("[!_]*.yaml")}

    keys = {word.lstrip("+~").partition("=")[0] for word in typed}
    if hydra.runtime.choices["experiment"] != EXPERIMENT:
        keys |= changed_by_experiment(config, hydra.runtime.choices, str(hydra.job.config_name))

    choices: list[Choice] = []

    def composed(more: Iterator[Choice]) -> DictConfig:
        choices.extend(choice for choice in more if choice.key.lstrip("+") not in keys)
        return compose(hydra.job.config_name, [*(choice.typed for choice in choices), *typed])

    config = composed(sides(config, names))
    config = composed(labels_of(config, keys, folders))
    config = composed(sizes(config, keys))
    log.info("%s", in_words(choices))
    return config


def changed_by_experiment(config: DictConfig, groups: Mapping[str, str], name: str) -> set[str]:
    """What an experiment that goes on from `mine` sets itself, of what could be chosen: keys of a command line."""
    base = compose(name, [f"experiment={EXPERIMENT}"], return_hydra_config=True)
    before = base.hydra.runtime.choices
    changed = {group for group in ("labels", "data@data.source", "data@data.target") if groups[group] != before[group]}
    return changed | {key for key in CHOSEN if OmegaConf.select(config, key) != OmegaConf.select(base, key)}


def as_typed(value: Any) -> str:
    """A value in the grammar of Hydra's command line."""
    if not isinstance(value, str):
        return "null" if value is None else str(value).lower().replace(" ", "")
    meant_otherwise = value.lower() in ("null", "true", "false", "nan", "inf")
    if re.fullmatch(r"\.|(\.\.?/)*[A-Za-z_/][\w./-]*", value, re.ASCII) and not meant_otherwise:
        return value
    return QuotedString(value, Quote.double).with_quotes()


def in_words(choices: Sequence[Choice]) -> str:
    words = [shlex.quote(choice.typed) if '"' in choice.typed else choice.typed for choice in choices]
    width = max((len(word) for word in words if len(word) < 60), default=0)
    lines = (f"  {word:<{width}}  {choice.why}".rstrip() for word, choice in zip(words, choices))
    return "\n".join(("chosen (type a setting to have another value):", *lines))


# ---- where the images are ----


def sides(config: DictConfig, names: Collection[str]) -> Iterator[Choice]:
    """Which data sets `source`, `panoramas` and `scored` are; `names` are those of configs/data."""
    for key in ("source", "panoramas"):
        if config[key] is None:
            example = "source=/data/cityscapes panoramas=/data/my_panoramas"
            raise ConfigError(f"{key} is missing: name a folder or a data set, e.g. experiment=mine {example}")
    for key in SIDES:
        if not isinstance(config[key], str | None):
            raise ConfigError(
                f"{key} is {config[key]}, which is no text: a folder whose name looks like something else needs quotes "
                f"of its own, e.g. '{key}=\"2024_05\"'"
            )
    for key in SIDES:
        if config[key] is not None:
            yield from side(key, config[key], names)
    if config.scored is not None:
        yield Choice("+evaluate.scored", "val", "where the gain is measured")


def side(key: str, word: str, names: Collection[str]) -> Iterator[Choice]:
    """The data set that `word` means as a key of `SIDES`."""
    name, split = SIDES[key], "val" if key == "scored" else "train"
    new = "+" if key == "scored" else ""  # the configuration has no such side
    if word in names:
        yield Choice(f"{new}data@data.{name}", word, f"{key} is a file of configs/data")
        return
    root = Path(word)
    if not root.is_dir():
        known = {**{name: name for name in names}, **{path.name: str(path) for path in root.parent.glob("*/")}}
        near = [known[name] for name in get_close_matches(root.name, known, 1, cutoff=0.75)]
        raise ConfigError(
            f"{key}={word} is neither a folder nor a data set{f'; did you mean {near[0]}?' if near else '.'} Give the "
            f"path of a folder (looked for {root.absolute()}), or one of {', '.join(sorted(names))}"
        )
    order = sorted(LAYOUTS, key=lambda layout: layout == "stanford_panorama" and key == "source")
    layout = next((one for one in order if any(root.glob(LAYOUTS[one].format(split=split)))), None)
    if layout is not None:
        yield Choice(f"{new}data@data.{name}", layout, f"{key} has {LAYOUTS[layout].format(split=split)}")
        yield Choice(f"data.{name}.dataset.root", word, "")
        return
    values, why = plain_folder(key, root, split, labelled=key != "panoramas")
    yield Choice(f"{new}data@data.{name}", "folder", why)
    for setting, value in {"root": word, **values}.items():
        yield Choice(f"data.{name}.dataset.{setting}", value, "")


def plain_folder(key: str, root: Path, split: str, labelled: bool) -> tuple[dict[str, Any], str]:
    """Settings of `Folder` for a folder of images, with their labels or without, and what was found."""
    images, annotations = (subfolder(root, names, split) for names in (IMAGES, ANNOTATIONS))
    if labelled and (images is None or annotations is None):
        raise ConfigError(
            f"{key}={root} has no labels that are known: put images into {root / IMAGES[0]} and label maps of the same "
            f"names into {root / ANNOTATIONS[0]}, or use the layout of a data set ({', '.join(LAYOUTS)}; "
            "datasets_layout.md shows them)"
        )
    where = root / (images or ".").replace("{split}", split)
    found = [file for file in sorted(files_below(where)) if is_image(file)]
    if not found:
        raise DataError(f"{key}={root} holds no images ({', '.join(IMAGE_SUFFIXES)}) in {where}: name their folder")
    if not labelled:
        return {"images": images or ".", "annotations": None}, f"{key} is searched for images"
    assert annotations is not None
    suffix = label_suffix(key, found[:LOOKED_AT], where, root / annotations.replace("{split}", split))
    values = {"images": images, "annotations": annotations, "label_suffix": suffix}
    return values, f"{key} has {images}/ and {annotations}/"


def label_suffix(key: str, images: Sequence[Path], where: Path, labels: Path) -> str:
    """What follows the name of an image below `where` in that of its label map below `labels`, of most images.

    Where several fit as many, as where pictures in colour lie beside label maps, it is one that can be a label map, and
    of these the one with Cityscapes' own classes, or the shortest.
    """
    stems = [labels / image.relative_to(where).with_suffix("") for image in images]
    beside = sorted(stems[0].parent.iterdir()) if stems[0].parent.is_dir() else []
    found = [file for file in beside if is_image(file) and file.name.startswith(stems[0].name)]
    if not found:
        raise DataError(f"{key}: {images[0]} has no label; looked for {stems[0]}*.png: add it")

    def order(file: Path) -> tuple[int, bool, bool, int]:
        ending = file.name.removeprefix(stems[0].name)
        fits = sum(stem.with_name(stem.name + ending).is_file() for stem in stems)
        return fits, is_label(file), "TrainIds" in ending, -len(ending)

    return max(found, key=order).name.removeprefix(stems[0].name)


def is_label(path: Path) -> bool:
    try:
        read_label(path)
    except DataError:
        return False
    return True


def subfolder(root: Path, names: Sequence[str], split: str) -> str | None:
    """The subfolder of one of these names, as `Folder` takes it: with {split} where it has a folder for the split."""
    name = next((name for name in names if (root / name).is_dir()), None)
    return f"{name}/{{split}}" if name and (root / name / split).is_dir() else name


# ---- what they are ----


def labels_of(config: DictConfig, typed: Collection[str], folders: Sequence[Path]) -> Iterator[Choice]:
    """The label space that the source is labelled with, and what can be scored; `folders` are like configs/."""
    dataset = config.data.source.dataset
    kind = str(dataset._target_).rsplit(".", 1)[-1]
    if "labels" not in typed:
        known = {path.stem: path for folder in folders for path in sorted((folder / "labels").glob("*.yaml"))}
        if kind not in LABELS:
            raise ConfigError(
                f"what the labels of source={config.source} mean must be said: labels=<label space>, one of "
                f"{', '.join(known)} or one of your own (docs/own_data.md)"
            )
        choice = Choice("labels", LABELS[kind], "the classes that the source is labelled with")
        if "scored" in config.data:
            choice = shared_labels(config, choice, [LabelSpace.from_yaml(path) for path in known.values()])
        yield choice
    if kind == "Folder" and "{split}" not in dataset.images:
        yield Choice("evaluate.source", None, "the source has no folder val of its own: it is not scored")


def shared_labels(config: DictConfig, first: Choice, spaces: Sequence[LabelSpace]) -> Choice:
    """The first choice where the set to score on can be read with it, too, else the one label space that fits both.

    Raises:
        ConfigError: none fits, or several do.
    """
    fitting: dict[str, set[str]] = {}
    for name, split in (("source", "train"), ("scored", config.evaluate.scored)):
        # A plain folder's labels are in the label space's own train ids, whichever is chosen.
        wanted = {item.encoding for item in opened(config, name, split, ANY).found} - {ANY.name}
        fitting[name] = {space.name for space in spaces if wanted <= {space.name, *space.encodings}}
    both = sorted(fitting["source"] & fitting["scored"])
    if first.value in both:
        return first
    if len(both) == 1:
        return Choice("labels", both[0], "the one label space that source and scored have in common")
    known = " and ".join(f"{key}={config[key]} in {', '.join(sorted(fitting[key])) or 'none'}" for key in fitting)
    fix = f"choose one, labels={both[0]}" if both else "leave scored out, or write one for both (docs/own_data.md)"
    raise ConfigError(
        f"source and scored have {', '.join(both) or 'no label space'} in common, and the labels must be of one: "
        f"there is {known}; {fix}"
    )


def sizes(config: DictConfig, typed: Collection[str]) -> Iterator[Choice]:
    """Sizes to train and to predict at, from the images' own and from those that are typed."""
    labels = LabelSpace.from_dict(to_container(config.labels))
    source, target = (opened(config, name, "train", labels) for name in ("source", "target"))
    skip = config.on_bad_sample == "skip"
    if config.evaluate.source is not None and not has_split(config, "source", config.evaluate.source, labels):
        yield Choice("evaluate.source", None, f"the source has no labelled split {config.evaluate.source}")
    (width, height), note = commonest(source, skip)
    short = min(width, height, SHORTEST)
    if "source_base" in typed:
        short = converted(Positive, config.source_base, "source_base")
    yield Choice("source_base", short, f"source images are {width}x{height}{note}")
    size, at = None, "their own size"
    if short < min(width, height):
        size, at = [round(side * short / min(width, height)) for side in (width, height)], "the size of training"
    yield Choice("data.source.eval_size", size, f"source images are scored at {at}")
    (width, height), note = commonest(target, skip)
    size = fitted(width, height)
    if "panorama_size" in typed:
        size = [*converted(Size, to_container(config.panorama_size), "panorama_size")]
    stretched = ", and all are brought to this" if note else ""
    yield Choice("panorama_size", size, f"panoramas are {width}x{height}{note}{stretched}")
    yield Choice("data.target.eval_size", size, "")
    side = max(STRIDE, min(CROP, short, size[1]) // STRIDE * STRIDE)
    yield Choice("crop", [side, side], "")
    meet, why = closed(config, typed, target, width / height)
    yield Choice("borders_meet", meet, why)
    if "panorama" in config.data.target.dataset:
        yield Choice("data.target.dataset.panorama", meet, "")
    if "scored" in config.data:
        scored = opened(config, "scored", config.evaluate.scored, labels)
        (width, height), note = commonest(scored, skip)
        yield Choice("data.scored.eval_size", fitted(width, height), f"scored panoramas are {width}x{height}{note}")
        if "panorama" in config.data.scored.dataset:
            yield Choice("data.scored.dataset.panorama", borders(scored, width / height, skip)[0], "")


def closed(config: DictConfig, typed: Collection[str], target: SegmentationDataset, shape: float) -> tuple[bool, str]:
    """Whether the panoramas' borders meet, and why: as typed, as their data set knows, or as they look."""
    place = "data.target.dataset.panorama"
    if "borders_meet" in typed:
        return bool(config.borders_meet), ""
    if place in typed:
        return bool(config.data.target.dataset.panorama), f"as {place} has it"
    if target.panorama:
        return True, "known of this data set"
    if "panorama" not in config.data.target.dataset:
        return False, f"{target.name} holds pinhole images; name a flat folder of panoramas"
    return borders(target, shape, config.on_bad_sample == "skip")


def to_container(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def opened(
    config: DictConfig, side: str, split: str, labels: LabelSpace, labelled: bool = False
) -> SegmentationDataset:
    dataset = {**to_container(config.data[side].dataset), "cache": None}
    return build(dataset, f"data.{side}.dataset", split=split, labels=labels, labelled=labelled)


def has_split(config: DictConfig, side: str, split: str, labels: LabelSpace) -> bool:
    try:
        opened(config, side, split, labels, labelled=True)
    except DataError:
        return False
    return True


def commonest(dataset: SegmentationDataset, skip: bool) -> tuple[tuple[int, int], str]:
    """The commonest size (W,H) of the images of the commonest shape, and in words whether others have another."""
    found = Counter(of_each(image_size, spread(dataset, LOOKED_AT), skip))
    shapes = Counter(round(w / h, 1) for w, h in found.elements())
    (width, height), _ = max(found.items(), key=lambda one: (shapes[round(one[0][0] / one[0][1], 1)], one[1]))
    others = sum(count for (w, h), count in found.items() if abs(w * height / (h * width) - 1) > 0.05)
    return (width, height), f" ({others} of {found.total()} have another shape)" if others else ""


def spread(dataset: SegmentationDataset, count: int) -> list[Path]:
    """At most `count` images, evenly spread over the set."""
    step = -(-len(dataset.items) // count)
    return [item.image for item in dataset.items[::step]]


def of_each(read: Callable[[Path], T], images: Sequence[Path], skip: bool) -> list[T]:
    """What `read` makes of images, without those that cannot be read where they are to be skipped, as in training."""
    found, errors = [], []
    for image in images:
        try:
            found.append(read(image))
        except DataError as error:
            if not skip:
                raise DataError(f"{error}, or leave it out with on_bad_sample=skip") from error
            log.warning("left out of what is chosen from: %s", error)
            errors.append(error)
    if not found:
        raise DataError(f"none of {len(images)} images can be read; the first one: {errors[0]}")
    return found


def fitted(width: int, height: int) -> list[int]:
    """A panorama's size [W,H] for the network: at most `LONGEST` wide, its width a multiple of `STRIDE`."""
    wide = max(STRIDE, min(width, LONGEST) // STRIDE * STRIDE)
    return [wide, max(STRIDE, round(height * wide / width))]


def borders(dataset: SegmentationDataset, shape: float, skip: bool) -> tuple[bool, str]:
    """Whether the left and right borders of a set's images, `shape` times as wide as high, meet, and why."""
    if shape < WIDE:
        return False, f"{shape:.2f} times as wide as high: they do not go all round"
    closed = of_each(lambda path: borders_meet(read_image(path)), spread(dataset, DECODED), skip)
    whole = "the whole sphere" if shape < 2.1 else "a band of it"
    if sum(closed) * 2 >= len(closed):
        return True, f"{shape:.2f} times as wide as high, {whole}"
    apart = len(closed) - sum(closed)
    return False, f"wide, but the right border does not go on at the left in {apart} of {len(closed)}"


def borders_meet(image: Tensor) -> bool:
    """Whether the last column of an image (3,H,W) goes on in the first one as columns side by side do."""
    columns = image.float()

    def difference(shift: int) -> Tensor:
        return (columns - columns.roll(shift, 2)).abs().mean((0, 1))

    near, far = difference(1)[1:].mean(), difference(image.shape[2] // 2).mean()
    return bool(difference(1)[0] <= (near * far).sqrt())  # nearer to neighbours than to strangers
