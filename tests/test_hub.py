"""Weights by name, from a small server of this process that speaks the hub's file protocol."""

import dataclasses
import hashlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save
from timm.models import _registry

from tests.models import tiny_encoders  # noqa: F401 - timm's tiny ones
from tests.small import label_space
from trans4pass import create_model, hub, load_model
from trans4pass.errors import ConfigError, WeightsError

COMMITS = {"main": "1" * 40, "v2": "2" * 40}
CARD = b"---\nlicense: other\nlicense_link: https://example.org/terms\n---\n# A model\n"


@dataclass
class Hub:
    """What the server has: (repository, commit, file) -> content, and how it misbehaves."""

    files: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    cut: int = 0  # responses that break off before their last byte
    flip: bool = False  # send other bytes than the checksum says


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        repo, revision, file = "/".join(parts[:2]), parts[3] if len(parts) > 3 else "", "/".join(parts[4:])
        commit = COMMITS.get(revision, revision)
        content = self.hub.files.get((repo, commit, file))
        if body and parts[0] != "api":
            self.hub.asked.append(f"{repo}@{revision}/{file} {self.headers.get('Range', '')}".strip())
        if content is None:
            known = any(repo == name for name, _, _ in self.hub.files)
            wrong = "EntryNotFound" if commit in COMMITS.values() else "RevisionNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", wrong if known else "RepoNotFound")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not body:
            return
        part = bytes(byte ^ 1 for byte in content[start:]) if self.hub.flip else content[start:]
        if self.hub.cut:
            self.hub.cut -= 1
            part = part[: len(part) // 2]
            self.close_connection = True
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        pass


def move(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """As HF_ENDPOINT does, which is read only once."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    held = Hub()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": held}))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    move(monkeypatch, f"http://127.0.0.1:{httpd.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between two tries
    hub.log_licence.cache_clear()
    yield held
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def encoder_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """A micro encoder's, under SegFormer's names."""
    torch.manual_seed(seed)
    state = create_model("trans4pass_micro", 3, deform=(False,) * 4).encoder.state_dict()
    return {key: value.clone() for key, value in state.items()}


def bin_file(state: dict[str, torch.Tensor], folder: Path) -> bytes:
    torch.save(state, folder / "x.bin")
    return (folder / "x.bin").read_bytes()


def first_of(model: torch.nn.Module) -> torch.Tensor:
    return model.state_dict()["encoder.patch_embed1.proj.weight"]


def test_what_is_a_name_and_what_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.hub_name("nvidia/mit-b2") == ("nvidia/mit-b2", None, None)
    assert hub.hub_name("hf://a/b@v2/sub/c.pt") == ("a/b", "v2", "sub/c.pt")
    assert hub.hub_name(Path("hf://smp-hub/mit_b2.imagenet")) == ("smp-hub/mit_b2.imagenet", None, None)
    for path in ("mit_b2.pth", "runs/last.pt", "weights/a.safetensors", "a/b/c", "/a/b", "./a", "../a"):
        assert hub.hub_name(path) is None, path
    monkeypatch.chdir(tmp_path)
    Path("nvidia/mit-b2").mkdir(parents=True)
    assert hub.hub_name("nvidia/mit-b2") is None, "what is there is no name"
    assert hub.hub_name("nvidia/mit-b3") is None, "nor is what is missing in a folder that is there"
    assert hub.hub_name("hf://nvidia/mit-b3") is not None


def test_an_encoder_by_name_is_downloaded_once_and_its_licence_said_once(
    server: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = encoder_weights()
    server.files = {
        ("nvidia/mit-x", COMMITS["main"], "pytorch_model.bin"): bin_file(state, tmp_path),
        ("nvidia/mit-x", COMMITS["main"], "README.md"): CARD,
    }
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            model = create_model("trans4pass_micro", 3, weights="nvidia/mit-x")
            assert torch.equal(first_of(model), state["patch_embed1.proj.weight"])
    assert sorted(server.asked) == ["nvidia/mit-x@main/README.md", "nvidia/mit-x@main/pytorch_model.bin"]
    said = [record.message for record in caplog.records if record.message.startswith("licence")]
    assert said == ["licence of hf://nvidia/mit-x: other, https://example.org/terms"]


def test_revision_and_file_are_taken(server: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    states = [encoder_weights(seed) for seed in (0, 1)]
    for commit, state in zip(COMMITS.values(), states, strict=True):
        server.files["a/b", commit, "sub/x.safetensors"] = save(state)
    with caplog.at_level(logging.INFO):
        for name, state in zip(("hf://a/b/sub/x.safetensors", "hf://a/b@v2/sub/x.safetensors"), states, strict=True):
            model = create_model("trans4pass_micro", 3, weights=name)
            assert torch.equal(first_of(model), state["patch_embed1.proj.weight"])
    assert "licence of hf://a/b@v2: not stated" in caplog.text


def test_a_broken_download_goes_on(server: Hub) -> None:
    content = save(encoder_weights())
    server.files["a/b", COMMITS["main"], "model.safetensors"] = content
    server.cut = 2
    assert hub.fetched("a/b").read_bytes() == content
    assert sum("model.safetensors" in asked for asked in server.asked) == 3


def test_a_download_that_stays_broken_leaves_nothing_and_is_reported(server: Hub, tmp_path: Path) -> None:
    server.files["a/b", COMMITS["main"], "model.safetensors"] = save(encoder_weights())
    server.cut = 1000
    with pytest.raises(WeightsError, match=r"could not be downloaded.*resolve/main/model\.safetensors"):
        hub.fetched("a/b")
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file() and path.stat().st_size > 200]
    server.cut = 0
    assert hub.fetched("a/b").is_file()


def test_a_wrong_checksum_is_refused_and_the_file_thrown_away(server: Hub) -> None:
    server.files["a/b", COMMITS["main"], "model.safetensors"] = content = save(encoder_weights())
    server.flip = True
    with pytest.raises(WeightsError, match=r"model\.safetensors of hf://a/b came damaged"):
        hub.fetched("a/b")
    server.flip = False
    assert hub.fetched("a/b").read_bytes() == content


def test_a_file_damaged_in_the_cache_is_noticed(server: Hub) -> None:
    server.files["a/b", COMMITS["main"], "model.safetensors"] = save(encoder_weights())
    path = hub.fetched("a/b")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.resolve().write_bytes(content)
    with pytest.raises(WeightsError, match="damaged"):
        hub.fetched("a/b")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a/b", r"hf://a/b has no file model\.safetensors or pytorch_model\.bin.*hf://a/b/<file>"),
        ("hf://a/b/other.pt", r"has no file other\.pt"),
        ("hf://a/b@v9", "a/b has no revision v9"),
        ("no/such", "no/such is no file or folder here, and no repository on http"),
    ],
)
def test_what_is_missing_is_named(name: str, said: str, server: Hub) -> None:
    server.files["a/b", COMMITS["main"], "README.md"] = CARD
    with pytest.raises(WeightsError, match=said):
        create_model("trans4pass_micro", 3, weights=name)


@pytest.mark.parametrize("offline", [False, True], ids=["no network", "HF_HUB_OFFLINE"])
def test_without_a_network_the_cache_is_used_and_what_lacks_is_named(
    offline: bool, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.files["a/b", COMMITS["main"], "pytorch_model.bin"] = bin_file(encoder_weights(), tmp_path)
    server.files["a/b", COMMITS["main"], "README.md"] = CARD
    path = hub.fetched("a/b")
    move(monkeypatch, "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    hub.log_licence.cache_clear()
    with caplog.at_level(logging.INFO):
        assert hub.fetched("a/b") == path
    assert "example.org/terms" in caplog.text
    with pytest.raises(WeightsError) as stopped:
        hub.fetched("hf://c/d@v2")
    said = str(stopped.value)
    assert "model.safetensors of hf://c/d@v2 is not in the cache" in said
    assert "http://127.0.0.1:9/c/d/resolve/v2/model.safetensors" in said
    assert str(tmp_path / "hub" / "models--c--d") in said
    assert ("HF_HUB_OFFLINE is set" in said) == offline


def test_a_whole_model_by_name(server: Hub, tmp_path: Path) -> None:
    network, space = create_model("trans4pass_micro", 3).eval(), label_space(["road", "sky", "car"])
    official = {key.replace("head.", "dede_head.", 1): value for key, value in network.state_dict().items()}
    server.files["a/b", COMMITS["main"], "pytorch_model.bin"] = bin_file(official, tmp_path)
    model = load_model("a/b", labels=space, device="cpu")
    image = torch.zeros(3, 32, 64, dtype=torch.uint8)
    with torch.no_grad():
        expected = network(image[None]).logits.argmax(1)[0]
    assert torch.equal(torch.from_numpy(model.predict(image).labels), expected.to(torch.uint8))


# ---- timm's own weights ----


def publish(name: str, classifier: str, server: Hub, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Give the server weights of one of timm's, with a classifier of 1000 classes, and make timm know of them."""
    known = {"hf_hub_id": f"timm/{name}.random", "license": "mit", "classifier": classifier}
    trained = dataclasses.replace(timm.get_pretrained_cfg(name), **known)
    monkeypatch.setitem(_registry._model_pretrained_cfgs, name, trained)
    torch.manual_seed(5)
    state = timm.create_model(name).state_dict()
    server.files[known["hf_hub_id"], COMMITS["main"], "model.safetensors"] = save(state)
    return state


def test_timms_weights_are_downloaded_once_and_their_licence_said_once(
    server: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = publish("tiny_resnet", "fc", server, monkeypatch)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            held = create_model("timm/tiny_resnet", 3, head="linear", pretrained=True).encoder.body.state_dict()
            assert all(torch.equal(held[key], state[key]) for key in held)
            assert held.keys() == {key for key in state if not key.startswith("fc.")}
    assert server.asked == ["timm/tiny_resnet.random@main/model.safetensors"]
    said = [record.message for record in caplog.records if record.message.startswith("licence")]
    assert said == ["licence of hf://timm/tiny_resnet.random: mit"]


def test_a_plain_transformers_pyramid_and_adapters_start_anew(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    state = publish("tiny_vit_patch16", "head", server, monkeypatch)
    body = create_model("timm/tiny_vit_patch16", 3, head="linear", pretrained=True, lora=True).encoder.body.model
    assert torch.equal(body.patch_embed.proj.weight, state["patch_embed.proj.weight"])
    assert torch.equal(body.blocks[1].attn.qkv.weight, state["blocks.1.attn.qkv.weight"])  # the adapters are zero


def test_timms_weights_that_cannot_be_had_are_named_with_their_place(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("tiny_resnet", "fc", server, monkeypatch)
    make = partial(create_model, "timm/tiny_resnet", 3, head="linear", pretrained=True)
    server.flip = True
    with pytest.raises(WeightsError, match=r"model\.safetensors of hf://timm/tiny_resnet\.random came damaged"):
        make()
    move(monkeypatch, "http://127.0.0.1:9")  # nobody listens
    with pytest.raises(WeightsError) as stopped:
        make()
    said = str(stopped.value)
    assert "model.safetensors of hf://timm/tiny_resnet.random is not in the cache" in said
    assert f"copy {tmp_path / 'hub' / 'models--timm--tiny_resnet.random'} from there to the same place here" in said


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("trans4pass_tiny", {}, r"\(MixTransformer\) is none of timm's: model\.weights=nvidia/mit-b1"),
        ("timm/tiny_convnext", {"head": "linear"}, "timm has no weights of tiny_convnext on the hub. Set it to false"),
        ("timm/tiny_resnet", {"head": "linear", "weights": "a.pt"}, r"weights=a\.pt are two starts"),
    ],
)
def test_a_model_without_timms_weights_says_so(name: str, settings: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"pretrained=true.*{said}"):
        create_model(name, 3, pretrained=True, **settings)


def test_torch_hub_gives_the_same_functions() -> None:
    root = os.fspath(Path(__file__).parents[1])
    network = torch.hub.load(root, "create_model", "trans4pass_micro", 3, source="local")
    assert network.num_classes == 3
    with pytest.raises(WeightsError, match=r"weights file nowhere\.pt"):
        torch.hub.load(root, "load_model", "nowhere.pt", source="local")


@pytest.mark.slow
def test_the_environment_names_endpoint_and_cache(server: Hub, tmp_path: Path) -> None:
    server.files["a/b", COMMITS["main"], "model.safetensors"] = save(encoder_weights())
    code = "from trans4pass import create_model; create_model('trans4pass_micro', 3, weights='a/b')"
    paths = {"HF_ENDPOINT": constants.ENDPOINT, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [*(tmp_path / "home" / "hub").glob("models--a--b/snapshots/*/model.safetensors")]
