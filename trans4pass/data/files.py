"""From a folder to image and label files, and from a file to pixels; nothing that a file holds is trusted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as PILImage
from torch import Tensor
from torchvision.io import decode_image

from trans4pass.errors import PLACE, DataError, UserError

HELP = "datasets_layout.md shows the expected folders; `experiment=pin2pan_toy` needs no data at all"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# Of PIL's forty formats only those of data sets: some of the others start programs or are hardly ever tested.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
TURNED_BY = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
LABEL_MODES = ("L", "P", "I;16", "I")  # one raw value per pixel; in a paletted file the indices are the values

# What a header may claim before anything is decoded. PIL itself refuses from 1.79e8 pixels on.
MAX_PIXELS = 2**27  # 16384x8192
MAX_ASPECT = 100  # longer side over shorter side
MIN_SIDE = 8


def find_images(dataset: str, root: str | Path, folder: str, pattern: str) -> list[Path]:
    """Files under `root/folder` that match `pattern`, sorted; DataError if folder or files are missing.

    "**/<name>" stands for names in all folders, see `files_below`.
    """
    root = Path(root)
    searched = root / folder
    settings = f"set data_root=... or {PLACE}.root=... (now {root}); {HELP}"
    if not root.is_dir():
        raise DataError(f"{dataset}: there is no folder {root.absolute()}; {settings}")
    if not searched.is_dir():
        parent = searched.parent
        siblings = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
        found = f"{parent} has only {siblings}" if siblings else f"{parent} is missing or empty"
        raise DataError(f"{dataset}: there is no folder {searched.absolute()}; {found}; {settings}")
    # Archives packed on a Mac leave a "._x.png" beside every "x.png".
    found = files_below(searched, pattern[3:]) if pattern.startswith("**/") else searched.glob(pattern)
    images = sorted(path for path in found if not path.name.startswith("."))
    if not images:
        raise DataError(
            f"{dataset}: no image matches {searched.absolute()}/{pattern}, so the split is empty; {settings}"
        )
    return images


def files_below(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """Files under `folder` whose names match, those in linked folders too, which `Path.rglob` passes over.

    A link back to a folder around it is not followed. Raises DataError for a folder that may not be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot look into {error.filename} ({error.strerror}); have it opened to you") from error

    if not folder.is_dir():
        return
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        around = {os.path.realpath(path) for path in (place, *Path(place).parents)}
        folders[:] = [name for name in folders if os.path.realpath(Path(place, name)) not in around]
        yield from (Path(place, name) for name in names if fnmatchcase(name, pattern))


def is_image(path: Path) -> bool:
    """Whether a file's name is an image's, and not hidden as what a Mac leaves beside it."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def read_path_list(dataset: str, root: str | Path, path: str | Path) -> set[Path]:
    """The files named in a text file, one path relative to `root` a line; blank lines and # comments are skipped.

    Raises DataError if the list cannot be read or is empty, or for an entry that leaves `root` or does not exist.
    """
    root, path = Path(root), Path(root) / path
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{dataset}: cannot read the list {path} ({error})") from error
    entries = {number: line for number, line in enumerate(lines, start=1) if line and not line.startswith("#")}
    if not entries:
        raise DataError(f"{dataset}: the list {path} names no file")
    return {_listed(f"{dataset}: {path}, line {number}: {entry!r}", root, entry) for number, entry in entries.items()}


def _listed(where: str, root: Path, entry: str) -> Path:
    # By its letters: a folder of the data set may be a link to another disk.
    path = Path(os.path.normpath(entry))
    if path.is_absolute() or path.parts[:1] == (os.pardir,):
        raise DataError(f"{where} leads out of {root}; a list holds paths relative to the data set's root, inside it")
    if not os.path.isfile(root / path):  # noqa: PTH113 a name too long is an error to `Path.is_file`
        raise DataError(f"{where} is no file under {root}; copy it there, or remove the line")
    return root / path


def read_image(path: Path) -> Tensor:
    """An RGB picture of any common PIL mode as uint8 (3,H,W); 16-bit grey keeps its upper 8 bits, alpha is dropped."""
    with refusing(path):
        if (pixels := _decoded_by_torchvision(path, ("PNG", "RGB"), ("JPEG", "RGB"))) is not None:
            return pixels
        picture = _decoded(path)
        if picture.mode.startswith("I"):
            picture = PILImage.fromarray((_sixteen_bits(path, picture) >> 8).astype(np.uint8))
        elif picture.mode == "F":
            raise DataError(f"the image {path} holds floating-point values of unknown range; save it as 8-bit RGB")
        picture.info.pop("transparency", None)  # else PIL warns about every palette with alpha
        return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()  # (H,W,3) -> (3,H,W)


def read_label(path: Path) -> np.ndarray:
    """Raw label values (H,W), uint8 or uint16."""
    with refusing(path):
        if (pixels := _decoded_by_torchvision(path, ("PNG", "L"))) is not None:
            return pixels[0].numpy()
        picture = _decoded(path)
        _refuse_lossy(path, picture)
        if picture.mode not in LABEL_MODES:
            raise DataError(
                f"the label {path} has {len(picture.getbands())} channel(s) of mode {picture.mode}; a label is a grey "
                "or paletted PNG (8 or 16 bits) whose values are class ids, so this may be a coloured picture of it"
            )
        return np.asarray(picture) if picture.mode in ("L", "P") else _sixteen_bits(path, picture)


def read_colour_label(path: Path) -> np.ndarray:
    """A label whose colours are the values: (H,W,3) uint8; alpha is dropped."""
    with refusing(path):
        picture = _decoded(path)
        _refuse_lossy(path, picture)
        if picture.mode not in ("RGB", "RGBA"):
            raise DataError(f"the label {path} has mode {picture.mode}; this data set's labels are RGB PNGs of 8 bits")
        return np.asarray(picture)[..., :3]


def image_size(path: Path) -> tuple[int, int]:
    """(W,H) in pixels as the file's header says; nothing is decoded."""
    with refusing(path), PILImage.open(path, formats=FORMATS) as picture:
        _check_header(path, picture)
        return picture.size


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Around the reading of a picture: whatever is wrong with the file is a DataError."""
    try:
        # Opening a pipe would wait for ever.
        if not path.is_file():
            raise DataError(f"{path} is gone; it was there, or expected, when the data set was made")
        yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path} is not an image that can be read ({', '.join(IMAGE_SUFFIXES)}); if it should be one, copy it anew"
        ) from error
    except Exception as error:  # PIL's decoders let nearly every type through for a damaged file
        raise DataError(
            f"cannot decode {path} ({error or type(error).__name__}); the file is truncated or damaged, so copy it anew"
        ) from error


def _decoded_by_torchvision(path: Path, *kinds: tuple[str, str]) -> Tensor | None:
    """Of a file of these formats and modes of PIL's, with 8 bits, the pixels that PIL makes, uint8 (C,H,W); else None.

    In four fifths of the time for a PNG and a third for a JPEG (tools/benchmark_data.py). Raises DataError as
    `_decoded` does for what both refuse.
    """
    data = path.read_bytes()
    with PILImage.open(BytesIO(data), formats=FORMATS) as picture:
        png = picture.format == "PNG"
        # PIL decodes a whole PNG to look for its orientation, which may stand in any of these.
        special = png and (data[24:25] != b"\x08" or any(chunk in data for chunk in TURNED_BY))
        if special or (picture.format, picture.mode) not in kinds or "transparency" in picture.info:
            return None
        _check_header(path, picture)
        if png:
            picture.verify()  # checksums, some of which decoders skip
        else:
            _refuse_turned(path, picture)
    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def _decoded(path: Path) -> PILImage.Image:
    with PILImage.open(path, formats=FORMATS) as picture:
        _check_header(path, picture)
        if picture.format == "PNG":
            picture.verify()  # checksums, some of which `load` skips; it uses the picture up
    with PILImage.open(path, formats=FORMATS) as picture:
        if picture.format != "TIFF":  # which turns itself while it is loaded, and forgets it
            picture.load()
        _refuse_turned(path, picture)
        picture.load()
        return picture


def _refuse_lossy(path: Path, picture: PILImage.Image) -> None:
    if picture.format in ("JPEG", "MPO"):
        raise DataError(f"the label {path} is a JPEG, which changes values; a label is a PNG: write it anew")


def _sixteen_bits(path: Path, picture: PILImage.Image) -> np.ndarray:
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 2**16 - 1:
        raise DataError(f"{path} holds values {values.min()} to {values.max()}; at most 16 bits (0..65535) can be read")
    return values.astype(np.uint16)


def _check_header(path: Path, picture: PILImage.Image) -> None:
    """Raise DataError for what cannot be meant: a size out of bounds, several pictures in one file."""
    short, long = sorted(picture.size)
    if short < MIN_SIDE or long > MAX_ASPECT * short or short * long > MAX_PIXELS:
        raise DataError(
            f"{path} claims {picture.size[0]}x{picture.size[1]} pixels; sides of at least {MIN_SIDE}, at most "
            f"{MAX_ASPECT}:1 and {MAX_PIXELS} pixels can be read, so resize it if it is right"
        )
    frames = getattr(picture, "n_frames", 1)
    if picture.format != "MPO" and frames > 1:  # a camera's MPO is a JPEG with a preview behind it
        raise DataError(f"{path} holds {frames} pictures; save the one that is meant in a file of its own")


def _refuse_turned(path: Path, picture: PILImage.Image) -> None:
    # Turning the image would part it from its label and its prediction, which are stored as the pixels are.
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # many cameras write broken EXIF data, which says nothing
        return
    if orientation in range(2, 9):
        raise DataError(
            f"{path} is stored turned or mirrored (EXIF orientation {orientation}), so it is unclear which way a label "
            "or a prediction belongs; turn its pixels for good, e.g. `mogrify -auto-orient`"
        )
