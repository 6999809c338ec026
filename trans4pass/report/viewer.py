"""Panoramas to look around in, as one HTML page that needs nothing else: photo, label maps, errors, classes."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from trans4pass.labels import LabelSpace
from trans4pass.sphere import Panorama

LARGEST = 2048  # width in pixels that pictures are scaled down to
QUALITY = 85  # of photos, as JPEG
LEAST_ASPECT = 2.0  # width / height from which an image that says nothing else is taken for a full panorama


@dataclass(frozen=True)
class Span:
    """What of the sphere a picture shows, in degrees: latitudes of its upper and lower border, and its width."""

    top: float
    bottom: float
    fov: float = 360.0

    @classmethod
    def of(cls, width: int, height: int) -> "Span | None":
        """Of a panorama with square pixels that goes once around; None for other pictures, which are narrower."""
        if width < LEAST_ASPECT * height:
            return None
        panorama = Panorama.of(height, width)
        return cls(panorama.top, panorama.bottom)


@dataclass(frozen=True)
class Map:
    """A label map to look at: class indices (H,W) uint8, 255 = no label; `truth`: the others are held against it."""

    name: str
    ids: np.ndarray
    truth: bool = False


@dataclass(frozen=True)
class Seen:
    """One picture with all that is known about it; all are scaled to its size.

    `span` is None for a picture that is no panorama: it is shown flat.
    """

    name: str
    photo: Image.Image
    maps: Sequence[Map]
    span: Span | None
    note: str = ""

    @property
    def title(self) -> str:
        """The name as it is shown: without what the file names of some data sets end in."""
        return self.name.removesuffix("_")


def viewer_page(seen: Sequence[Seen], labels: LabelSpace, title: str, links: str = "") -> str:
    """A page with a viewer of some pictures, whose maps hold classes of `labels`; `links` are HTML."""
    body = f'<h1>{html.escape(title)}</h1>{links}\n<div class="viewer" data-group="0"></div>'
    return page(title, body, [group(seen, labels)])


def page(title: str, body: str, groups: Sequence[Mapping[str, Any]]) -> str:
    """A whole page; `<div class="viewer" data-group="0">` and `class="panels"` in its body show the first group."""
    data = json.dumps(groups, separators=(",", ":")).replace("<", "\\u003c")  # no text can end the script element
    texts = {"title": html.escape(title), "body": body, "data": data, "style": asset("style.css")}
    return Template(asset("page.html")).substitute(texts, script=asset("viewer.js") if groups else "")


def asset(name: str) -> str:
    return (Path(__file__).parent / "assets" / name).read_text()


def group(seen: Sequence[Seen], labels: LabelSpace) -> dict[str, Any]:
    """What viewer.js takes: classes, and pictures with their maps as data URIs."""
    classes = [{"name": name, "colour": colour} for name, colour in labels.to_dict()["classes"].items()]
    return {"classes": classes, "panoramas": [_picture(one) for one in seen]}


def _picture(seen: Seen) -> dict[str, Any]:
    photo = shrunk(seen.photo.convert("RGB"))
    maps = []
    for one in seen.maps:
        ids = Image.fromarray(one.ids).resize(photo.size, Image.Resampling.NEAREST)
        maps.append({"name": one.name, "truth": one.truth, "labels": data_uri(ids, "PNG", optimize=True)})
    camera = None if seen.span is None else asdict(seen.span)
    uri = data_uri(photo, "JPEG", quality=QUALITY, subsampling=0)
    return {"name": seen.title, "note": seen.note, "camera": camera, "photo": uri, "maps": maps}


def shrunk(photo: Image.Image) -> Image.Image:
    """A picture at most `LARGEST` pixels wide."""
    if photo.width <= LARGEST:
        return photo
    return photo.resize((LARGEST, round(photo.height * LARGEST / photo.width)), Image.Resampling.LANCZOS)


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
