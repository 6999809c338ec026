"""The deformable convolution's backends against each other, and training steps by precision."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from trans4pass.errors import ConfigError
from trans4pass.inference import TTA, Predictor
from trans4pass.models import create_model
from trans4pass.ops import deform_conv2d

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CLASSES = 19


class Layer(NamedTuple):
    """One deformable convolution of a model, square, padded to keep the map, on an image's or a stage's map."""

    batch: int
    channels: int
    out: int
    height: int
    width: int
    kernel: int
    stride: int
    groups: int


LAYERS = {
    "deformable MLP, 128x64, stage 1": Layer(8, 128, 128, 16, 32, 1, 1, 128),
    "deformable MLP, 512x512, stage 1": Layer(4, 128, 128, 128, 128, 1, 1, 128),
    "deformable MLP, 2048x400, stage 1": Layer(1, 128, 128, 100, 512, 1, 1, 128),
    "patch embedding 7x7, 128x64": Layer(8, 3, 32, 64, 128, 7, 4, 1),
    "patch embedding 7x7, 512x512": Layer(4, 3, 64, 512, 512, 7, 4, 1),
    "projection 3x3, 128x64, stage 1": Layer(8, 32, 128, 16, 32, 3, 1, 1),
    "projection 3x3, 512x512, stage 1": Layer(2, 64, 128, 128, 128, 3, 1, 1),
    "projection 3x3, 512x512, stage 4": Layer(4, 512, 128, 16, 16, 3, 1, 1),
}


def backends(device: torch.device) -> tuple[str, ...]:
    """Those that are compared, torchvision's first."""
    return ("torchvision", "native", *(("triton",) if device.type == "cuda" else ()))


def milliseconds(name: str, device: torch.device, repeats: int) -> dict[str, float]:
    """Median time of each backend for a layer of `LAYERS` or what `WHOLE` has; their repeats take turns."""
    make = WHOLE.get(name, make_layer)
    calls = {backend: make(name, device, backend) for backend in backends(device)}
    times: dict[str, list[float]] = {backend: [] for backend in calls}
    for repeat in range(repeats + 1):
        for backend, call in calls.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:  # the first one warms up
                times[backend].append(1000 * (time.perf_counter() - start))
    return {backend: statistics.median(values) for backend, values in times.items()}


def make_layer(name: str, device: torch.device, backend: str) -> Callable[[], None]:
    """Forward and backward of one layer with random offsets of about two pixels."""
    batch, channels, out, height, width, kernel, stride, groups = LAYERS[name]
    size, taps = (-(-height // stride), -(-width // stride)), kernel**2
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    tensors = [
        random(batch, channels, height, width).requires_grad_(channels > 3),  # an image needs no gradient
        2 * random(batch, 2 * groups * taps, *size),
        random(batch, groups * taps, *size).sigmoid(),
        random(out, channels, kernel, kernel),
    ]
    for tensor in tensors[1:]:
        tensor.requires_grad_()
    grad = random(batch, out, *size)

    def call() -> None:
        for tensor in tensors:
            tensor.grad = None
        deform_conv2d(*tensors, stride=stride, padding=kernel // 2, backend=backend).backward(grad)

    return call


def make_step(name: str, device: torch.device, backend: str) -> Callable[[], None]:
    """A whole training step of the micro model on 8 images of 128x64."""
    return training_step(create_model("trans4pass_micro", CLASSES, deform_backend=backend), device, 8, 64, 128)


def make_multi_scale(name: str, device: torch.device, backend: str) -> Callable[[], Any]:
    """The micro model's prediction of one panorama at the published six scales."""
    torch.manual_seed(0)
    predictor = Predictor(
        create_model("trans4pass_micro", CLASSES, deform_backend=backend).to(device), device, TTA(SCALES)
    )
    image = torch.randint(0, 256, (1, 3, 200, 1024), dtype=torch.uint8)
    return lambda: predictor(image).sum()


WHOLE: dict[str, Callable[[str, torch.device, str], Callable[[], Any]]] = {
    "training step": make_step,
    "multi-scale prediction, 1024x200": make_multi_scale,
}


def training_step(model: nn.Module, device: torch.device, batch: int, height: int, width: int) -> Callable[[], None]:
    torch.manual_seed(0)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    image = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, device=device)
    label = torch.randint(0, CLASSES, (batch, height, width), device=device)

    def call() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(image).logits, label).backward()
        optimizer.step()

    return call


def make_precision_step(
    model: str, device: torch.device, precision: str, batch: int, height: int, width: int
) -> Callable[[], None]:
    """A training step in fp32, tf32, bf16 or fp16 (timed only: without loss scaling); ConfigError for another name."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    dtype, step = PRECISIONS[precision], training_step(create_model(model, CLASSES), device, batch, height, width)

    def call() -> None:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            step()

    return call


def throughput(
    step: Callable[[], object], device: torch.device, batch: int, repeats: int
) -> tuple[float, float | None]:
    """Images per second, from the median time of a step, and on a GPU the peak memory in GiB."""
    times = []
    for repeat in range(repeats + 2):
        if device.type == "cuda" and repeat == 2:  # the search for the fastest convolutions takes more
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat >= 2:  # the first ones warm up
            times.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return batch / statistics.median(times), memory
