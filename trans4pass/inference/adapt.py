"""Test-time adaptation without labels or source data: a network's normalisation statistics are those of new images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from trans4pass import dist
from trans4pass.console import console, track
from trans4pass.data import EvalTransform, SegmentationDataset, Size, eval_loader
from trans4pass.errors import ConfigError
from trans4pass.interrupts import Interrupts
from trans4pass.models import Segmentor
from trans4pass.settings import Natural, Share, parse

from .export import read_described, write_described
from .images import find_images
from .open import CheckpointSettings


@dataclass(frozen=True, kw_only=True)
class AdaptSettings(CheckpointSettings):
    """See configs/adapt.yaml."""

    input: str
    output: str
    size: Size | None = None
    align: Share | None = None
    batchnorm: bool = True
    num_workers: Natural = 0


def adapt(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Write a checkpoint's network adapted to a folder of images without labels."""
    settings = parse(AdaptSettings, config, "")
    output = Path(settings.output)
    described = read_described(settings, output).aligned(settings.align)
    network = described.network(settings.allow_nonfinite).to(device)
    items, transform = find_images(Path(settings.input)), EvalTransform(settings.size)
    dataset = SegmentationDataset(items, described.labels, labelled=False, transform=transform)
    count = 0
    if settings.batchnorm:
        loader = eval_loader(dataset, settings.num_workers)
        batches = interrupts.between(track(loader, len(loader), "adapt"), dist.largest_share(len(dataset)))
        count = adapt_batchnorms(network, (batch["image"].to(device) for batch in batches))
    if dist.is_main():
        write_described(output, described, network.cpu())
        align = described.model.get("align", 0)
        console.print(f"{count} BatchNorm layers re-estimated on {len(dataset)} images, align={align}")


@torch.no_grad()
def adapt_batchnorms(network: Segmentor, images: Iterable[Tensor]) -> int:
    """Give every BatchNorm the mean statistics of all images (AdaBN, arXiv 1603.04779); returns how many there are.

    Args:
        network: on the device; left in eval mode. Its weights stay.
        images: batches (B,3,H,W) on the device, of this rank; every rank must call it.
    Raises:
        ConfigError: the network has no BatchNorm.
    """
    found = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not found:
        raise ConfigError("this model has no BatchNorm, so that nothing adapts: use align instead")
    network.eval()
    momenta = [module.momentum for module in found]
    for module in found:
        module.reset_running_stats()
        module.momentum = None  # the plain mean of all batches
        module.train()
    try:
        for batch in images:
            network(batch)
    finally:
        for module, momentum in zip(found, momenta, strict=True):
            module.momentum = momentum
        network.eval()
    for module in found:
        batches = cast("Tensor", module.num_batches_tracked)  # of this rank: the last one may have fewer, or none
        every = dist.sum_(batches.clone())
        for statistic in (module.running_mean, module.running_var):
            if statistic is not None and every:  # none where nothing reaches a layer: ECRM's, while its ring is empty
                dist.sum_(statistic.mul_(batches)).div_(every)
        batches.copy_(every)
    return len(found)
