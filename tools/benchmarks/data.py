"""How long decoders take, and a sample from its files and from the cache, on pictures made for it.

Times are one thread's own, which other work disturbs less than the clock's.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from trans4pass.data import Folder, Size, TrainTransform
from trans4pass.data.files import read_image
from trans4pass.labels import LabelSpace

TWO = LabelSpace("two", ("a", "b"), np.array([[0, 0, 0], [255, 255, 255]]), {})


class Decoded(NamedTuple):
    milliseconds: float
    equal: bool  # its pixels, to Pillow's


def write_pictures(root: Path, count: int, size: Size) -> None:
    """`count` PNGs of (W,H) pixels and their labels, in Folder's layout, about as compressible as photographs."""
    for folder in ("images", "annotations"):
        (root / folder / "train").mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        # Smooth shapes with a little sensor noise; noise alone would not compress, shapes alone would too well.
        shapes = Image.fromarray(rng.integers(0, 256, (24, 48, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(shapes, np.int16) + rng.normal(0, 3, (size[1], size[0], 3)).round().astype(np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"images/train/{number}.png")
        classes = Image.fromarray(rng.integers(0, 2, (24, 48), np.uint8)).resize(size, Image.Resampling.NEAREST)
        classes.save(root / f"annotations/train/{number}.png")


def write_jpegs(root: Path) -> None:
    """The same pictures as JPEGs, in the folder `jpegs`."""
    (root / "jpegs").mkdir()
    for path in (root / "images/train").glob("*.png"):
        Image.open(path).save(root / "jpegs" / f"{path.stem}.jpg", quality=90)


def planes(pixels: Any) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()  # (H,W,3) -> (3,H,W)


def pillow(path: Path) -> Tensor:
    return planes(Image.open(path).convert("RGB"))


def pillow_at_half_size(path: Path) -> Tensor:
    picture = Image.open(path)
    picture.draft("RGB", (picture.width // 2, picture.height // 2))  # which JPEGs alone can
    return planes(picture.convert("RGB"))


def torchvision(path: Path) -> Tensor:
    return decode_image(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8), ImageReadMode.RGB)


def opencv(path: Path) -> Tensor:
    cv2 = import_module("cv2")
    cv2.setNumThreads(1)
    return planes(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB))


def simplejpeg(path: Path) -> Tensor:
    return planes(import_module("simplejpeg").decode_jpeg(path.read_bytes()))


def decoders(suffix: str) -> Mapping[str, Callable[[Path], Tensor]]:
    """Those that are installed and know the format, each from a path to uint8 (3,H,W); Pillow comes first."""
    found = {"Pillow": pillow, "torchvision.io": torchvision, "with all checks (`read_image`)": read_image}
    if find_spec("cv2") is not None:
        found["OpenCV"] = opencv
    if suffix == ".jpg":
        found["Pillow, at half the size"] = pillow_at_half_size
        if find_spec("simplejpeg") is not None:
            found["simplejpeg"] = simplejpeg
    return found


def decoding(files: list[Path], repeats: int) -> dict[str, Decoded]:
    """Median time for a picture of each decoder for the files' format; their repeats take turns."""
    known = decoders(files[0].suffix)
    times: dict[str, list[float]] = {name: [] for name in known}
    equal = dict.fromkeys(known, True)
    for path in files:
        expected = pillow(path)
        for name, decode in known.items():
            equal[name] &= torch.equal(decode(path), expected)
    for _ in range(repeats):
        for path in files:
            for name, decode in known.items():
                start = time.thread_time()
                decode(path)
                times[name].append(1000 * (time.thread_time() - start))
    return {name: Decoded(statistics.median(times[name]), equal[name]) for name in known}


def milliseconds_per_sample(root: Path, transform: TrainTransform, cache_size: Size) -> dict[str, float]:
    """Mean time per training sample in this process: from files, and from each kind of cache.

    "filled" is the first pass, which decodes and writes. The files and the cache may lie in the system's page cache.
    """

    def measured(passes: int = 1, **cache: Any) -> float:
        dataset = Folder(root, "train", TWO, transform=transform, **cache)
        start = time.thread_time()
        for position in range(passes * len(dataset)):
            dataset[position % len(dataset), position]
        return (time.thread_time() - start) / (passes * len(dataset)) * 1000

    full: dict[str, Any] = {"cache": root / "full"}
    small: dict[str, Any] = {"cache": root / "small", "cache_size": cache_size}
    width, height = cache_size
    measured()  # so that no first-time costs are counted
    return {
        "files, no cache": measured(2),
        "cache of the files' own size, filled": measured(**full),
        "cache of the files' own size": measured(4, **full),
        f"cache of {width}x{height}, filled": measured(**small),
        f"cache of {width}x{height}": measured(4, **small),
    }
