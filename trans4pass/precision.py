"""The precisions that forward passes may be computed in."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which torch chooses per operation between `precision` and fp32."""
    return torch.autocast(device.type, HALF.get(precision), enabled=precision in HALF)
