"""A local page to drop a panorama on, and to look around in what a model makes of it."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from trans4pass.console import console
from trans4pass.errors import ConfigError
from trans4pass.inference import load_model
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace

MOST_CONNECTIONS = 64


def serve(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Serve a checkpoint as configs/serve.yaml describes, until a signal comes; nothing of it stays on the disk."""
    try:
        import uvicorn

        from .web import Limits, make_app
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'trans4pass[serve]'") from error
    labels = config.get("model_labels")
    keys = ("wrap", "align", "precision", "plugins", "allow_nonfinite")
    model = load_model(
        config["checkpoint"],
        labels=None if labels is None else LabelSpace.from_dict(labels),
        device=device,
        **{key: config[key] for key in keys},
    )
    cores = len(os.sched_getaffinity(0))
    at_once = config["at_once"] or (cores if device.type == "cpu" else 1)
    torch.set_num_threads(max(1, cores // at_once))
    limits = Limits(config["megabytes"], config["pixels"], at_once, config["kept"])
    host, port = config["host"], config["port"]
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}): choose another, port=...") from error
    with TemporaryDirectory(prefix="trans4pass-") as folder, listening:
        app = make_app(model, Path(folder), limits, host, config["size"])
        console.print(f"http://{host}:{listening.getsockname()[1]} shows the page; Ctrl-C ends it", soft_wrap=True)
        settings = uvicorn.Config(app, log_level="warning", limit_concurrency=MOST_CONNECTIONS)
        uvicorn.Server(settings).run(sockets=[listening])  # ends at a signal, which it passes on
    interrupts.check()
