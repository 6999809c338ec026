"""Optimisers, keyed by the method's submodule that they train."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from trans4pass.errors import ConfigError, mapping

from .build import build


def build_optimizers(method: nn.Module, configs: Mapping[str, Mapping[str, Any]], where: str) -> dict[str, Optimizer]:
    """One optimiser per submodule of the method.

    Args:
        method: a `Method`.
        configs: submodule name (`network`, `discriminator`) -> optimiser config, which may also say `head_lr_scale`, a
            factor on the learning rate of all that the submodule has behind its `encoder`.
        where: the configs' place, for error messages.
    Raises:
        ConfigError: a trainable parameter in no optimiser or in two, or an optimiser for a submodule that is not there.
    """
    optimizers = {}
    for name, config in mapping(where, configs).items():
        module = getattr(method, name, None)
        if module is None and name == "discriminator":
            continue  # one config serves a method with and without its adversarial term
        if not isinstance(module, nn.Module):
            known = ", ".join(child for child, _ in method.named_children())
            raise ConfigError(f"{where}.{name}: the method has no submodule {name!r}, it has {known}")
        config = mapping(f"{where}.{name}", config)
        groups = parameter_groups(module, config.pop("head_lr_scale", 1.0), config.get("lr"), f"{where}.{name}")
        optimizers[name] = build(config, f"{where}.{name}", groups)
    check_coverage(method, optimizers, where)
    return optimizers


def parameter_groups(module: nn.Module, head_scale: float, lr: float | None, where: str) -> list[dict[str, Any]]:
    """All parameters once; with a scale other than 1 those behind `module.encoder` in a group of their own."""
    if not isinstance(head_scale, (int, float)) or not isinstance(lr, (int, float)):
        raise ConfigError(f"{where}.head_lr_scale and lr must be numbers, got {head_scale!r} and {lr!r}")
    if head_scale == 1:
        return [{"params": list(module.parameters())}]
    if not hasattr(module, "encoder"):
        raise ConfigError(f"{where}.head_lr_scale is {head_scale}, but this submodule has no encoder: leave it out")
    encoder = list(module.encoder.parameters())
    behind = [parameter for parameter in module.parameters() if parameter not in set(encoder)]
    return [{"params": encoder}, {"params": behind, "lr": lr * head_scale}]


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
