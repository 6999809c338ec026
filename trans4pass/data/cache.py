"""A folder of decoded samples, so that the second epoch reads pixels instead of PNGs."""

import functools
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from trans4pass.errors import ConfigError, DataError
from trans4pass.labels import IGNORE

from .files import image_size, refusing
from .views import EvalTransform, Size, View, resize

VERSION = 1  # to be raised with every change of what an entry holds
log = logging.getLogger(__name__)

Pair = tuple[Tensor, Tensor]


class DecodeCache:
    """Decoded samples in `folder`, one .npy each: uint8 (4,H,W), image and label, or (3,H,W) without label.

    `size` is (W,H) in pixels; None keeps the files' own. An entry's name is a digest of the files' paths, sizes and
    times and of all settings, so a changed one is another entry; what is no longer used stays until the folder is
    deleted, which is safe at any time. Several processes may share a folder. A disk that cannot be written to is a
    warning; what is there already is still read. Raises ConfigError for a wrong size or folder.
    """

    def __init__(self, folder: str | Path, size: Size | None = None):
        self.folder = Path(folder)
        self.size = None if size is None else (size[0], size[1])
        self.writing = True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cache={folder} cannot be a folder: {error.strerror}") from error

    def serves(self, transform: View | None) -> bool:
        """Whether a sample for `transform` may come from here.

        Training may see images of the cache's size. What is scored or used as it is must not depend on a cache.
        """
        if self.size is None:
            return True
        return transform.size == self.size if isinstance(transform, EvalTransform) else transform is not None

    def announce(self, dataset: str, images: Sequence[Path], labelled: bool) -> None:
        """Log once how much disk the whole data set takes; without `size`, judged by the first image."""
        try:
            width, height = self.size or image_size(images[0])
        except DataError:
            return  # it is named when it is read
        _log_size(self.folder, dataset, len(images), width * height * (4 if labelled else 3))

    def fetch(self, settings: Any, files: Sequence[Path], labelled: bool, load: Callable[[], Pair]) -> Pair:
        """The sample from the cache, else from `load`, at the cache's size.

        `settings` are plain values, all that the sample depends on besides `files`. Raises what `load` raises, and
        DataError if a file is gone.
        """
        key = json.dumps([VERSION, self.size, labelled, settings, [_stamp(path) for path in files]], sort_keys=True)
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        path = self.folder / name[:2] / f"{name}.npy"
        planes = self._read(path, 4 if labelled else 3)
        if planes is None:
            image, label = load()
            if self.size is not None:
                image, label = (x[0] for x in resize({"image": image[None], "label": label[None]}, self.size).values())
            planes = np.concatenate([image.numpy(), label.numpy()[None]] if labelled else [image.numpy()])
            self._write(path, planes)
        pixels = torch.from_numpy(planes)
        return pixels[:3], pixels[3] if labelled else torch.full(pixels.shape[1:], IGNORE, dtype=torch.uint8)

    def _read(self, path: Path, channels: int) -> np.ndarray | None:
        try:
            planes = np.load(path, mmap_mode="c")  # a private copy of each page that is written to
        except (OSError, ValueError, EOFError):  # not there, or cut short by a crash
            return None
        fits = planes.dtype == np.uint8 and planes.ndim == 3 and planes.shape[0] == channels
        return planes if fits and self.size in (None, planes.shape[:0:-1]) else None

    def _write(self, path: Path, planes: np.ndarray) -> None:
        if not self.writing:
            return
        try:
            path.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as own:
                temporary = Path(own, path.name)
                with temporary.open("wb") as file:
                    np.save(file, planes)
                temporary.replace(path)  # whole or not there, whoever else writes it
        except OSError as error:
            self.writing = False
            # Every worker finds out by itself; one of them logs it.
            worker = get_worker_info()
            if worker is None or worker.id == 0:
                log.warning("cannot write to the cache %s (%s); going on without filling it", self.folder, error)


@functools.cache
def _log_size(folder: Path, dataset: str, count: int, size: int) -> None:
    needed, free = count * size / 2**30, shutil.disk_usage(folder).free / 2**30
    log.info(
        "cache %s: %s takes %d x %.1f MiB = %.1f GiB once it is filled; %.1f GiB are free",
        folder, dataset, count, size / 2**20, needed, free,
    )  # fmt: skip


def _stamp(path: Path) -> tuple[str, int, int]:
    """What changes when the file does: where it is, its length in bytes and its time in ns."""
    with refusing(path):
        status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns
