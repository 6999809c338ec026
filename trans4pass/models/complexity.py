"""A model's size and operations."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .ecrm import PrototypeRing


@torch.no_grad()
def complexity(model: nn.Module, height: int, width: int) -> tuple[int, float]:
    """Parameters, and billions of multiplications with addition (GMACs) for one image in evaluation mode.

    Convolutions, linear layers and attention count. Of deformable convolutions the `native` backend's products count
    and its sampling does not; of `torchvision`'s nothing does. Element-wise work does not count.
    """
    model = copy.deepcopy(model).eval()
    for ring in model.modules():
        if isinstance(ring, PrototypeRing):
            ring.written.fill_(len(ring.bank))  # as training leaves it: an empty ring is never read
    image = torch.zeros(1, 3, height, width, device=next(model.parameters()).device)
    with FlopCounterMode(display=False, custom_mapping={CPU_ATTENTION: attention_flops}) as counter:
        model(image)
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() / 2e9


CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the one that torch does not count


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_, **__) -> int:
    return sdpa_flop_count(query, key, value)
