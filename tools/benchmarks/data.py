"""How long a sample takes from its files and from the cache, on pictures made for it."""

import time
from pathlib import Path

import numpy as np
from PIL import Image

from trans4pass.data import Folder, Size, TrainTransform
from trans4pass.labels import LabelSpace


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


def milliseconds_per_sample(root: Path, cache_size: Size) -> dict[str, float]:
    """Time per training sample, resized to `cache_size`, in this process: from files, and from each kind of cache.

    "filled" is the first pass, which decodes and writes. The files and the cache may lie in the system's page cache.
    """
    labels = LabelSpace("two", ("a", "b"), np.array([[0, 0, 0], [255, 255, 255]]), {})
    transform = TrainTransform(cache_size)

    def measured(**cache) -> float:
        dataset = Folder(root, "train", labels, transform=transform, **cache)
        start = time.perf_counter()
        for index in range(len(dataset)):
            dataset[index]
        return (time.perf_counter() - start) / len(dataset) * 1000

    own, small = {"cache": root / "own"}, {"cache": root / "small", "cache_size": cache_size}
    width, height = cache_size
    measured()  # so that no first-time costs are counted
    return {
        "files, no cache": measured(),
        "cache of the files' own size, filled": measured(**own),
        "cache of the files' own size": measured(**own),
        f"cache of {width}x{height}, filled": measured(**small),
        f"cache of {width}x{height}": measured(**small),
    }
