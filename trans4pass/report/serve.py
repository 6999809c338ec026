"""A local page to drop a panorama on, and to look around in what a model makes of it."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from annotated_types import Interval

from trans4pass import dist
from trans4pass.console import console
from trans4pass.data import Size
from trans4pass.errors import ConfigError
from trans4pass.inference import load_model
from trans4pass.inference.images import ModelSettings
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.settings import Positive, parse

MOST_CONNECTIONS = 64


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


def serve(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Serve a checkpoint as configs/serve.yaml describes, until a signal comes; nothing of it stays on the disk."""
    try:
        import uvicorn

        from .web import Limits, make_app
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'trans4pass[serve]'") from error
    settings = parse(ServeSettings, config, "")
    host, port, labels = settings.host, settings.port, settings.model_labels
    model = load_model(
        settings.checkpoint,
        labels=None if labels is None else LabelSpace.from_dict(labels),
        wrap=settings.wrap,
        align=settings.align,
        device=device,
        precision=settings.precision,
        plugins=settings.plugins,
        allow_nonfinite=settings.allow_nonfinite,
    )
    at_once = settings.at_once or (dist.cores() if device.type == "cpu" else 1)
    torch.set_num_threads(max(1, dist.cores() // at_once))
    limits = Limits(settings.megabytes, settings.pixels, at_once, settings.kept)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another address of this machine, or port"
        ) from error
    with TemporaryDirectory(prefix="trans4pass-") as folder, listening:
        app = make_app(model, Path(folder), limits, host, settings.size)
        console.print(f"http://{host}:{listening.getsockname()[1]} shows the page; Ctrl-C ends it", soft_wrap=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", limit_concurrency=MOST_CONNECTIONS))
        server.run(sockets=[listening])  # ends at a signal, which it passes on
    interrupts.check()
