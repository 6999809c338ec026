"""Optimisers, by the name of what they train."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import PositiveFloat
from torch import nn
from torch.optim import Optimizer

from trans4pass.build import build
from trans4pass.errors import ConfigError
from trans4pass.methods import Method
from trans4pass.settings import converted


def build_optimizers(method: Method, configs: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Optimizer]:
    """One optimiser for each of the method's trained modules.

    Args:
        configs: module's name -> optimiser config, which may also say `head_lr_scale`, a factor on the learning rate of
            all that the module has behind its `encoder`.
        where: the configs' place, for error messages.
    Raises:
        ConfigError: a trainable parameter in no optimiser or in two, or an optimiser for a module that is not there.
    """
    modules, optimizers = method.trained_modules(), {}
    for name, config in configs.items():
        if name not in modules:
            raise ConfigError(f"{where}.{name}: the method has no {name!r} to train, it has {', '.join(modules)}")
        place, config = f"{where}.{name}", dict(config)
        scale = converted(PositiveFloat, config.pop("head_lr_scale", 1.0), f"{place}.head_lr_scale")
        groups = parameter_groups(modules[name], scale, config.get("lr"), place)
        if all(p.is_cuda for group in groups for p in group["params"]) and can_fuse(config):
            config.setdefault("fused", True)  # one launch for all parameters
        optimizers[name] = build(config, place, groups)
    check_coverage(method, optimizers, where)
    return optimizers


def can_fuse(config: Mapping[str, Any]) -> bool:
    """Whether the optimiser is torch's and has a fused kernel, and none of its other kernels is asked for."""
    kind = getattr(torch.optim, str(config.get("_target_")).removeprefix("torch.optim."), None)
    return kind is not None and "fused" in inspect.signature(kind).parameters and not config.get("foreach")


def parameter_groups(module: nn.Module, head_scale: float, lr: Any, where: str) -> list[dict[str, Any]]:
    """All parameters once; with a scale other than 1 those behind `module.encoder` in a group of their own."""
    if head_scale == 1:
        return [{"params": list(module.parameters())}]
    if not isinstance(encoder := getattr(module, "encoder", None), nn.Module):
        raise ConfigError(f"{where}.head_lr_scale is {head_scale}, but this module has no encoder: leave it out")
    first = list(encoder.parameters())
    behind = [parameter for parameter in module.parameters() if parameter not in set(first)]
    return [{"params": first}, {"params": behind, "lr": converted(float, lr, f"{where}.lr") * head_scale}]


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
        raise ConfigError(f"{where}: no optimiser trains {', '.join(lost[:3])}{' ...' if len(lost) > 3 else ''}")
