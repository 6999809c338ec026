"""`trans4pass serve`: uploads of all kinds, without a network or a browser."""

import io
import re
import socket
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient
from httpx2 import Response
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor, nn

from tests.pipeline.conftest import ROOT
from tests.report.runs import LABELS
from trans4pass.errors import ConfigError
from trans4pass.inference import LoadedModel
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.models import SegOutput
from trans4pass.pipeline.launch import resolved
from trans4pass.report import serve
from trans4pass.report.web import ServeSettings, make_app

SETTINGS = ServeSettings(
    checkpoint="", host="127.0.0.1", port=0, size=None, megabytes=1, pixels=128 * 64, at_once=1, kept=2
)
PNG = {"Content-Type": "image/png"}


class Brightest(nn.Module):
    """The brightest of a pixel's three channels is its class."""

    wrap = False
    encoder = head = None  # what every opened network has

    def forward(self, image: Tensor) -> SegOutput:
        return SegOutput(image.float(), image.float(), {})


MODEL = LoadedModel(Brightest(), LABELS, torch.device("cpu"), "fp32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(make_app(MODEL, folder, SETTINGS, at_once=1), base_url="http://localhost") as client:
        yield client


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def panorama(size: tuple[int, int] = (64, 32)) -> Image.Image:
    """Its three thirds are red, green and blue."""
    values = np.zeros((size[1], size[0], 3), np.uint8)
    for channel, columns in enumerate(np.array_split(np.arange(size[0]), 3)):
        values[:, columns, channel] = 200
    return Image.fromarray(values)


def upload(client: TestClient, content: bytes, **headers: str) -> Response:
    return client.post("/panoramas", content=content, headers=PNG | headers)


def test_a_panorama_becomes_a_page_labels_and_an_overlay(client: TestClient, folder: Path) -> None:
    answer = upload(client, encoded(panorama()))
    assert answer.status_code == 200
    page = answer.json()["page"]
    shown = client.get(page)
    assert shown.headers["content-type"].startswith("text/html") and '"name":"prediction"' in shown.text
    links = re.findall(r'<a href="(\w+\.png)" download', shown.text)
    labels, overlay = (Image.open(io.BytesIO(client.get(page.replace("view.html", link)).content)) for link in links)
    assert labels.mode == "L" and [labels.getpixel((x, 9)) for x in (0, 32, 63)] == [0, 1, 2]
    assert overlay.size == (64, 32) and overlay.getpixel((0, 9)) == (164, 32, 64)  # half red, half the class's colour
    assert {path.name for path in folder.rglob("*.*")} == {"view.html", "labels.png", "overlay.png"}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A small PNG of a header that claims so many pixels, and of little else."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


WHOLE = encoded(panorama())
HOSTILE = {
    "empty": b"",
    "truncated": WHOLE[: len(WHOLE) // 2],
    "damaged": WHOLE[:50] + b"\0\0\0\0" + WHOLE[54:],
    "text": b"<script>alert(1)</script>",
    "a path": b"/etc/passwd",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n",
    "GIF": encoded(panorama(), "GIF"),
    "larger than taken": encoded(panorama((192, 96))),
    "claims 4 gigapixels": bomb(65536, 65536),
    "claims 100 megapixels": bomb(10**4, 10**4),
    "a line": encoded(panorama((8000, 1))),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_picture_is_refused_in_words_and_leaves_nothing(kind: str, client: TestClient, folder: Path) -> None:
    answer = upload(client, HOSTILE[kind])
    assert answer.status_code == 422
    assert "the picture" in answer.json()["detail"] and str(folder) not in answer.text
    assert not list(folder.iterdir())


def test_a_picture_whose_type_the_browser_does_not_know_is_taken(client: TestClient) -> None:
    (fallback,) = re.findall(r'file\.type \|\| "([^"]+)"', client.get("/").text)
    assert upload(client, encoded(panorama(), "TIFF"), **{"Content-Type": fallback}).status_code == 200


def test_other_types_and_larger_files_are_refused_unread(client: TestClient, folder: Path) -> None:
    assert upload(client, WHOLE, **{"Content-Type": "text/plain"}).status_code == 415
    refused = client.post("/panoramas", content=WHOLE)
    assert refused.status_code == 415 and "with its type (image/png," in refused.json()["detail"]
    pieces = iter([bytes(2**19)] * 3)  # of a length that is not said before
    assert client.post("/panoramas", content=pieces, headers=PNG).status_code == 413
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "path", ["../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "{token}/upload", "{token}/..%2f..%2fsecret.txt"]
)
def test_no_path_leads_to_another_file(path: str, client: TestClient, folder: Path) -> None:
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "secret.txt").write_text("secret")
    token = upload(client, WHOLE).json()["page"].split("/")[2]
    (folder / token / "upload").write_text("secret")
    answer = client.get(f"/panoramas/{path.format(token=token)}")
    assert answer.status_code in (404, 405) and "secret" not in answer.text.replace("secret.txt", "")


def test_a_name_that_leads_here_from_elsewhere_is_refused(client: TestClient) -> None:
    """Another site's name may be made to resolve to 127.0.0.1, and its scripts would then read what is answered."""
    assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 400
    assert client.get("/", headers={"Host": "127.0.0.1:8000"}).status_code == 200


def test_only_the_latest_results_are_kept(client: TestClient, folder: Path) -> None:
    pages = [upload(client, WHOLE).json()["page"] for _ in range(3)]
    assert [client.get(page).status_code for page in pages] == [404, 200, 200]
    assert len(list(folder.iterdir())) == 2


def test_one_more_than_there_are_cores_is_asked_to_come_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(image: Tensor) -> SegOutput:
        begun.set()
        assert go_on.wait(20)
        return SegOutput(image.float(), image.float(), {})

    monkeypatch.setattr(MODEL.network, "forward", slow)
    with TestClient(make_app(MODEL, folder, SETTINGS, at_once=1), base_url="http://localhost") as client:
        statuses: list[int] = []
        first = threading.Thread(target=lambda: statuses.append(upload(client, WHOLE).status_code))
        first.start()
        assert begun.wait(20)
        busy = upload(client, WHOLE)
        go_on.set()
        first.join()
        assert (busy.status_code, busy.headers["Retry-After"], statuses) == (503, "5", [200])
        assert upload(client, WHOLE).status_code == 200


def test_a_failure_of_ours_gives_its_place_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(image: Tensor) -> SegOutput:
        raise MemoryError

    app = make_app(MODEL, folder, SETTINGS, at_once=1)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        with monkeypatch.context() as patched:
            patched.setattr(MODEL.network, "forward", broken)
            assert upload(client, WHOLE).status_code == 500
        assert not list(folder.iterdir())
        assert upload(client, WHOLE).status_code == 200


def test_the_tool_serves_on_this_machine_alone_until_a_signal_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What configs/serve.yaml composes to; uvicorn's part is a visitor."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    network = Brightest()

    def opened(settings: ServeSettings, wrap: bool) -> tuple[Brightest, LabelSpace]:
        network.wrap = wrap
        return network, LABELS

    monkeypatch.setattr(ServeSettings, "open", opened)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)

    def visit(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        assert sockets[0].getsockname()[0] == "127.0.0.1"
        with TestClient(server.config.app, base_url="http://127.0.0.1") as client:
            assert upload(client, WHOLE).status_code == 200
        assert len(list(tmp_path.rglob("view.html"))) == 1

    monkeypatch.setattr(uvicorn.Server, "run", visit)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = resolved(compose("serve", ["checkpoint=a", "port=0", "wrap=true"]))
    del config["device"]  # read by what starts every tool
    serve.serve(config, torch.device("cpu"), Interrupts())
    assert network.wrap and not list(tmp_path.iterdir())
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="or port"):
        serve.serve({**config, "port": taken.getsockname()[1]}, torch.device("cpu"), Interrupts())
    with pytest.raises(
        ConfigError, match=r"cannot listen on no\.such\.address:0 .*choose another address of this machine"
    ):
        serve.serve({**config, "host": "no.such.address"}, torch.device("cpu"), Interrupts())
    for key, value in {"port": 99999, "at_once": -1, "size": [64], "kept": 0, "precision": "fp8"}.items():
        with pytest.raises(ConfigError, match=rf"^{key}"):
            serve.serve({**config, key: value}, torch.device("cpu"), Interrupts())
