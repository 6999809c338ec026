"""Optimisers, by the name of what they train."""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Gt, Le
from pydantic import PositiveFloat
from torch import nn
from torch.optim import Optimizer

from trans4pass.build import build
from trans4pass.errors import ConfigError
from trans4pass.methods import Method
from trans4pass.models import distances
from trans4pass.settings import converted

Decay = Annotated[float, Gt(0), Le(1)]


def build_optimizers(
    method: Method, configs: Mapping[str, Mapping[str, Any]], where: str, places: Mapping[str, str] | None = None
) -> dict[str, Optimizer]:
    """One optimiser for each of the method's trained modules.

    Args:
        configs: module's name -> optimiser config, which may also say `head_lr_scale`, a factor on the learning rate of
            all that the module has behind its `encoder`, and `layer_decay`, a factor for each block of the encoder that
            lies nearer to the image, on the last block, too (BEiT, arXiv 2106.08254).
        where: the configs' place, for error messages.
        places: of those that lie elsewhere.
    Raises:
        ConfigError: a trainable parameter in no optimiser or in two, or an optimiser for a module that is not there.
    """
    modules, optimizers = method.trained_modules(), {}
    for name, config in configs.items():
        place = (places or {}).get(name, f"{where}.{name}")
        if name not in modules:
            raise ConfigError(f"{place}: the method has no {name!r} to train, it has {', '.join(modules)}")
        config = dict(config)
        scale = converted(PositiveFloat, config.pop("head_lr_scale", 1.0), f"{place}.head_lr_scale")
        decay = converted(Decay, config.pop("layer_decay", 1.0), f"{place}.layer_decay")
        groups = parameter_groups(modules[name], scale, decay, config.get("lr"), place)
        if all(p.is_cuda for group in groups for p in group["params"]) and can_fuse(config):
            config.setdefault("fused", True)  # one launch for all parameters
        optimizers[name] = build(config, place, groups)
    check_coverage(method, optimizers, where)
    return optimizers


def can_fuse(config: Mapping[str, Any]) -> bool:
    """Whether the optimiser is torch's and has a fused kernel, and none of its other kernels is asked for."""
    kind = getattr(torch.optim, str(config.get("_target_")).removeprefix("torch.optim."), None)
    return kind is not None and "fused" in inspect.signature(kind).parameters and not config.get("foreach")


def parameter_groups(
    module: nn.Module, head_scale: float, layer_decay: float, lr: Any, where: str
) -> list[dict[str, Any]]:
    """All parameters that are trained, once: in groups by their learning rate, the encoder's last blocks first."""
    if head_scale == layer_decay == 1:
        return [{"params": trained(module)}]
    if not isinstance(encoder := getattr(module, "encoder", None), nn.Module):
        asked = f"head_lr_scale is {head_scale}" if head_scale != 1 else f"layer_decay is {layer_decay}"
        raise ConfigError(f"{where}.{asked}, but this module has no encoder: leave it out")
    rate, places = converted(float, lr, f"{where}.lr"), distances(encoder)
    if layer_decay != 1 and max(places.values()) == 1:
        raise ConfigError(f"{where}.layer_decay is {layer_decay}, but this encoder has no blocks to tell apart: set 1")
    inside: dict[float, list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            inside.setdefault(layer_decay ** places[name], []).append(parameter)
    groups = [{"params": inside[factor], "lr": rate * factor} for factor in sorted(inside, reverse=True)]
    behind = [parameter for parameter in trained(module) if parameter not in {*encoder.parameters()}]
    return [*groups, {"params": behind, "lr": rate * head_scale}]


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def trained_and_frozen(method: Method) -> str:
    """How many parameters each of the method's modules trains, and how many stand still, in words."""
    parts = []
    for name, module in method.trained_modules().items():
        total, learning = (sum(p.numel() for p in ps) for ps in (module.parameters(), trained(module)))
        parts.append(f"{name} trains {learning:,} parameters" + (f", {total - learning:,} frozen" * (total > learning)))
    return "; ".join(parts)


def check_coverage(method: nn.Module, optimizers: Mapping[str, Optimizer], where: str) -> None:
    """Raise unless each trainable parameter is in exactly one optimiser's groups."""
    seen: dict[int, str] = {}
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in seen:
                    raise ConfigError(f"{where}: a parameter of {name!r} is also trained by {seen[id(parameter)]!r}")
                seen[id(parameter)] = name
    lost = [name for name, p in method.named_parameters() if p.requires_grad and id(p) not in seen]
    if lost:
        raise ConfigError(
            f"{where}: no optimiser trains {', '.join(lost[:3])}{' ...' if len(lost) > 3 else ''}: add {where}.<name> "
            "for one of trained_modules() (for a term method.terms.<name>.optim), or requires_grad_(False) what is not "
            "learned"
        )
