"""Which of a network's parameters are trained, and how fast: freezing, low-rank adapters, layers by depth."""

import re
from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.utils import parametrize

from trans4pass.errors import ConfigError
from trans4pass.settings import Positive, converted

Frozen = Literal["encoder", "norms"] | Annotated[int, Interval(ge=1, le=4)]

# A block of a stage, by the names of this package and of timm: block2.0, layer3.5, blocks.7, stages_2.blocks.4, ...
BLOCK = re.compile(r"(.*?(?:^|[._])(?:blocks?\d*|layer\d+)(?:\.\d+)+)\.")
ATTENTION = re.compile(r"(^|\.)attn\.(qkv|q|kv|k|v|q_proj|k_proj|v_proj|proj)$")
NEW = "pyramid."  # what no encoder's published weights hold: trained like a head
ORIGINAL, ADAPTER = ".parametrizations.weight.original", ".parametrizations.weight.0."


def distances(encoder: nn.Module) -> dict[str, int]:
    """How many blocks from the head on each parameter lies: 1 the last block, N the first, N + 1 what is before it.

    What lies between two blocks belongs to the second; 0 is what no published weights hold. All 1 without blocks.
    """
    found: dict[str, int] = {}
    blocks: dict[str, int] = {}
    for name, _ in encoder.named_parameters():
        block = BLOCK.match(name)
        between = len(blocks) + 1 if blocks else 0
        found[name] = blocks.setdefault(block[1], len(blocks) + 1) if block else between
    count = len(blocks)
    return {n: 0 if n.startswith(NEW) else count + 1 - min(place, count) for n, place in found.items()}


def stages(encoder: nn.Module) -> dict[str, int]:
    """Each parameter's stage, 1 to 4: the first map that it reaches; 5 is what no published weights hold.

    A plain transformer has no stages: of its blocks each quarter is one. Of any other encoder one small image shows
    which parameters each map's gradient reaches. Nothing is computed.
    """
    if getattr(encoder, "pyramid", None) is not None:
        left = distances(encoder)
        count = max(left.values()) - 1
        return {n: 5 if d == 0 else max(1, ceil(4 * (count + 1 - d) / count)) for n, d in left.items()}
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):  # wherever they are: meta lacks kernels
        parameters = {n: torch.empty(p.shape, dtype=p.dtype, requires_grad=True) for n, p in encoder.named_parameters()}
        buffers = {n: torch.empty(buffer.shape, dtype=buffer.dtype) for n, buffer in encoder.named_buffers()}
        maps = functional_call(encoder, {**parameters, **buffers}, (torch.empty(1, 3, 64, 64),))
    found: dict[str, int] = {}
    for stage, map_ in enumerate(maps, 1):
        rest = {name: parameter for name, parameter in parameters.items() if name not in found}
        if rest:
            reached = torch.autograd.grad(map_.sum(), [*rest.values()], retain_graph=True, allow_unused=True)
            found.update((name, stage) for name, gradient in zip(rest, reached, strict=True) if gradient is not None)
    return found


def freeze(encoder: nn.Module, what: Sequence[Frozen]) -> None:
    """Train no longer: `encoder`, all of it; `norms`, its normalisations; a number n, its first n of four stages.

    What no published weights hold, the feature pyramid of a plain transformer, goes on learning. Raises ConfigError for
    anything else.
    """
    for part in converted(tuple[Frozen, ...], what, "model.freeze"):
        last: int = part if isinstance(part, int) else {"encoder": 4, "norms": 0}[part]
        place = stages(encoder) if last else {}
        for name, parameter in encoder.named_parameters():
            if place.get(name, 5) <= last:
                parameter.requires_grad_(False)
        for name, module in encoder.named_modules():
            if part == "norms" and "Norm" in type(module).__name__ and not name.startswith(NEW):
                module.requires_grad_(False)


def rest_frozen(module: nn.Module) -> None:
    """Put every part whose parameters are all frozen into evaluation mode: statistics and dropout stand still."""
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


class LowRank(nn.Module):
    """A linear layer's weight [out, in] plus alpha / rank * up [out, rank] @ down [rank, in] (LoRA, arXiv 2106.09685).

    `up` starts at zero, so that the layer starts as it was.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.register_buffer("scale", torch.tensor(alpha / rank))
        nn.init.kaiming_uniform_(self.down, a=sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.up @ self.down)


def add_adapters(encoder: nn.Module, rank: Positive = 8, alpha: PositiveFloat = 16.0) -> None:
    """Freeze the encoder, and give its attention's linear layers low-rank adapters that learn instead.

    Raises ConfigError where it has no such layers.
    """
    layers = [m for name, m in encoder.named_modules() if isinstance(m, nn.Linear) and ATTENTION.search(name)]
    if not layers:
        raise ConfigError(
            "model.lora: this encoder has no attention with linear layers; choose a transformer, or freeze"
        )
    freeze(encoder, ["encoder"])
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))


def merge_adapters(module: nn.Module) -> None:
    """Make plain layers of those with adapters: the sum becomes their weight."""
    for part in module.modules():
        if isinstance(part, nn.Linear) and parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight")


def adapted(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state under the names of a model with or without adapters, which it was saved without or with."""
    result = {}
    for key, value in state.items():
        merged, original = key.replace(ORIGINAL, ".weight"), re.sub(r"\.weight$", ORIGINAL, key)
        if merged != key and merged in wanted:
            up, down, scale = (state[key.replace(ORIGINAL, ADAPTER + part)] for part in ("up", "down", "scale"))
            result[merged] = value + scale * (up @ down)
        elif original in wanted:
            result[original] = value
        elif ADAPTER not in key or f"{key.split(ADAPTER)[0]}.weight" not in wanted:
            result[key] = value
    return result
