"""How forward passes are computed: in which precision, and compiled for a size or not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which torch chooses per operation between `precision` and fp32."""
    return torch.autocast(device.type, HALF.get(precision), enabled=precision in HALF)


@contextmanager
def any_size() -> Iterator[None]:
    """Images of many sizes inside: no compiling and no search for the fastest convolutions anew for each of them."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.cudnn.benchmark = before
