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

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from trans4pass.data.files import image_size
from trans4pass.errors import DataError, UserError
from trans4pass.inference import LoadedModel, write_label, write_picture

from .viewer import Map, Seen, Span, asset, group, page

UPLOAD = "upload"
RESULTS = {"view.html": "text/html", "labels.png": "image/png", "overlay.png": "image/png"}
DOWNLOADS = """<p><a href="/">another panorama</a> ·
download <a href="labels.png" download>labels</a> (class numbers), <a href="overlay.png" download>overlay</a></p>"""


@dataclass(frozen=True)
class Limits:
    """What is taken: megabytes of a file, pixels of a picture, panoramas predicted at once, results kept."""

    megabytes: int
    pixels: int
    at_once: int
    kept: int


def make_app(
    model: LoadedModel, folder: Path, limits: Limits, host: str = "127.0.0.1", size: tuple[int, int] | None = None
) -> FastAPI:
    """The page of a model.

    Args:
        folder: where uploads and results lie, the latest `limits.kept` of them; nothing is written elsewhere.
        host: the address that is listened on. Requests that call another name are refused, so that no other site can
            make its name lead here; 0.0.0.0 takes any name.
        size: (width, height) in pixels at which pictures are predicted; None: their own.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # its pages load scripts from elsewhere
    names = ["*"] if host == "0.0.0.0" else ["127.0.0.1", "localhost", host]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=names)
    free, results = BoundedSemaphore(limits.at_once), deque[Path]()
    texts = {"style": asset("style.css"), "megabytes": str(limits.megabytes), "pixels": f"{limits.pixels:,}"}
    start = Template(asset("serve.html")).substitute(texts)

    @app.get("/")
    def first_page() -> HTMLResponse:
        return HTMLResponse(start)

    @app.post("/panoramas")
    async def upload(request: Request) -> dict[str, str]:
        content = await body(request, limits.megabytes)
        if not free.acquire(blocking=False):
            raise HTTPException(503, "busy with other panoramas; try again in a moment", {"Retry-After": "5"})
        place = folder / secrets.token_hex(16)
        try:
            await run_in_threadpool(predict, model, content, place, limits.pixels, size)
        except Exception as error:
            shutil.rmtree(place)
            if not isinstance(error, UserError):
                raise
            raise HTTPException(422, str(error).replace(str(place / UPLOAD), "the picture")) from error
        finally:
            free.release()
        results.append(place)
        if len(results) > limits.kept:
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
    title = "Prediction"
    shown = f'<h1>{title}</h1>{DOWNLOADS}\n<div class="viewer" data-group="0"></div>'
    (place / "view.html").write_text(page(title, shown, [group([seen], model.labels)]))
