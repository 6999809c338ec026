"""A local page to drop a panorama on, and to look around in what a model makes of it."""

import socket
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from trans4pass import dist
from trans4pass.console import console
from trans4pass.errors import ConfigError
from trans4pass.inference import LoadedModel
from trans4pass.interrupts import Interrupts
from trans4pass.settings import parse

MOST_CONNECTIONS = 64


def serve(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Serve a checkpoint as configs/serve.yaml describes, until a signal comes; nothing of it stays on the disk."""
    try:
        import uvicorn

        from .web import ServeSettings, make_app
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'trans4pass[serve]'") from error
    settings = parse(ServeSettings, config, "")
    host, port = settings.host, settings.port
    model = LoadedModel(*settings.open(settings.wrap), device, settings.precision)
    at_once = settings.at_once or (dist.cores() if device.type == "cpu" else 1)
    torch.set_num_threads(max(1, dist.cores() // at_once))
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another address of this machine, or port"
        ) from error
    with TemporaryDirectory(prefix="trans4pass-") as folder, listening:
        app = make_app(model, Path(folder), settings, at_once)
        console.print(f"http://{host}:{listening.getsockname()[1]} shows the page; Ctrl-C ends it", soft_wrap=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", limit_concurrency=MOST_CONNECTIONS))
        server.run(sockets=[listening])  # ends at a signal, which it passes on
    interrupts.check()
