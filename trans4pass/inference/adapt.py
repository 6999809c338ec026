"""Test-time adaptation without labels or source data: a network's normalisation statistics are those of new images."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trans4pass import dist
from trans4pass.errors import ConfigError
from trans4pass.models import Segmentor


def batchnorms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


@torch.no_grad()
def adapt_batchnorms(network: Segmentor, images: Iterable[Tensor]) -> int:
    """Give every BatchNorm the mean statistics of all images (AdaBN, arXiv 1603.04779); returns how many there are.

    Args:
        network: on the device; left in eval mode. Its weights stay.
        images: batches (B,3,H,W) on the device, of this rank; every rank must call it.
    Raises:
        ConfigError: the network has no BatchNorm.
    """
    found = batchnorms(network)
    if not found:
        raise ConfigError("this model has no BatchNorm, so that nothing adapts: use align instead")
    with collecting(network, found):
        for batch in images:
            network(batch)
    for module in found:
        for statistic in (module.running_mean, module.running_var):
            if statistic is not None:
                dist.mean_(statistic)
    return len(found)


@contextmanager
def collecting(network: Segmentor, found: list[_BatchNorm]) -> Iterator[None]:
    """BatchNorms in train mode, averaging over everything that comes, and all else in eval mode."""
    network.eval()
    momenta = [module.momentum for module in found]
    for module in found:
        module.reset_running_stats()
        module.momentum = None  # the plain mean of all batches
        module.train()
    try:
        yield
    finally:
        for module, momentum in zip(found, momenta, strict=True):
            module.momentum = momentum
        network.eval()
