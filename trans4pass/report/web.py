"""The web application behind `trans4pass serve`.

FastAPI and not Gradio: the viewer is there already, what is missing is an upload and three files to fetch; Gradio would
put a front end of its own around it. An upload is the body of its request, so that no file's name ever arrives here.
"""

import re
import secrets
import shutil
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from string import Template
from threading import BoundedSemaphore
from typing import Annotated

from annotated_types import Interval
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from trans4pass.data import Size
from trans4pass.data.files import image_size
from trans4pass.errors import DataError, UserError
from trans4pass.inference import LoadedModel, write_label, write_picture
from trans4pass.inference.images import ModelSettings
from trans4pass.settings import Positive

from .viewer import Map, Seen, Span, asset, viewer_page

UPLOAD = "upload"
RESULTS = {"view.html": "text/html", "labels.png": "image/png", "overlay.png": "image/png"}
DOWNLOADS = """<p><a href="/">another panorama</a> ·
download <a href="labels.png" download>labels</a> (class numbers), <a href="overlay.png" download>overlay</a></p>"""


@dataclass(frozen=True, kw_only=True)
class ServeSettings(ModelSettings):
    """See configs/serve.yaml."""

    host: str
    port: Annotated[int, Interval(ge=0, le=65535)]
    size: Size | None
    megabytes: Positive
    pixels: Positive
    at_once: Positive | None
    kept: Positive


def make_app(model: LoadedModel, folder: Path, settings: ServeSettings, at_once: int) -> FastAPI:
    """The page of a model, which predicts `at_once` pictures at a time.

    Requests that call another name than the `host` that is listened on are refused, so that no other site can make its
    name lead here; 0.0.0.0 takes any name.

    Args:
        folder: where uploads and results lie, the latest `settings.kept` of them; nothing is written elsewhere.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # its pages load scripts from elsewhere
    names = ["*"] if settings.host == "0.0.0.0" else ["127.0.0.1", "localhost", settings.host]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=names)
    free, results = BoundedSemaphore(at_once), deque[Path]()
    texts = {"style": asset("style.css"), "megabytes": str(settings.megabytes), "pixels": f"{settings.pixels:,}"}
    start = Template(asset("serve.html")).substitute(texts)

    @app.get("/")
    def first_page() -> HTMLResponse:
        return HTMLResponse(start)

    @app.post("/panoramas")
    async def upload(request: Request) -> dict[str, str]:
        content = await body(request, settings.megabytes)
        if not free.acquire(blocking=False):
            raise HTTPException(503, "busy with other panoramas; try again in a moment", {"Retry-After": "5"})
        place = folder / secrets.token_hex(16)
        try:
            await run_in_threadpool(predict, model, content, place, settings.pixels, settings.size)
        except Exception as error:
            shutil.rmtree(place)
            if not isinstance(error, UserError):
                raise
            raise HTTPException(422, str(error).replace(str(place / UPLOAD), "the picture")) from error
        finally:
            free.release()
        results.append(place)
        if len(results) > settings.kept:
            shutil.rmtree(results.popleft())
        return {"page": f"/panoramas/{place.name}/view.html"}

    @app.get("/panoramas/{token}/{name}")
    def result(token: str, name: str) -> Response:
        path = folder / token / name
        if not re.fullmatch(r"[0-9a-f]{32}", token) or name not in RESULTS or not path.is_file():
            raise HTTPException(404, "there is no such result, or it was deleted after newer ones")
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return FileResponse(path, media_type=RESULTS[name], headers=headers)

    return app


async def body(request: Request, megabytes: int) -> bytes:
    """What was uploaded; HTTPException for what says that it is no picture, and at the first byte too many."""
    # A browser lets no other site send this type without asking here first, which is not answered.
    if not request.headers.get("content-type", "").startswith("image/"):
        raise HTTPException(
            415, "not an image: send an image with its type (image/png, image/jpeg, image/bmp, image/tiff, image/webp)"
        )
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > megabytes << 20:
            raise HTTPException(413, f"the file is larger than {megabytes} MB, the setting megabytes of this page")
    return bytes(content)


def predict(model: LoadedModel, content: bytes, place: Path, pixels: int, size: tuple[int, int] | None) -> None:
    """Write the upload and its `RESULTS` into a new folder; DataError for what is no picture, or too large a one."""
    place.mkdir()
    upload = place / UPLOAD
    upload.write_bytes(content)
    width, height = image_size(upload)  # from its header: nothing is decoded of what is too large
    if width * height > pixels:
        raise DataError(
            f"the picture has {width}x{height} pixels; {pixels:,} are taken, the setting pixels of this page"
        )
    found = model.predict(upload, size=size)
    upload.unlink()
    photo = Image.fromarray(found.image)
    write_label(place / "labels.png", found.labels, photo.size)
    write_picture(place / "overlay.png", found.overlay())
    seen = Seen("panorama", photo, [Map("prediction", found.labels)], Span.of(width, height))
    (place / "view.html").write_text(viewer_page([seen], model.labels, "Prediction", DOWNLOADS))
