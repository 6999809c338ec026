"""Phases that are made from others before a method learns from them: looked at anew, mixed, restyled.

Every derivation is computed on the device, without gradient, from the batch and one random generator per image, which
follows from the image's position in the run: N ranks, N accumulated batches and one large batch derive the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Generator, Tensor
from torch.nn import functional as F

from trans4pass.data import View
from trans4pass.errors import ConfigError
from trans4pass.labels import IGNORE
from trans4pass.models import align_channels, as_float, channel_statistics
from trans4pass.settings import Share

from .method import Batch, DomainBatch, Images

TENSORS = ("image", "label", "weight")


class Derivation(ABC):
    """How a phase is made from others.

    Attributes:
        reads: the domains or phases that it is made from; its images' generators follow from those of the first.
        labels_of: those of them whose labels it keeps; they must have some where a term learns the phase's labels.
    """

    reads: tuple[str, ...]
    labels_of: tuple[str, ...] = ()

    def check(self, images: Mapping[str, Images]) -> Images:
        """The phase's images, given those that it is made from; refuses what cannot be with a `ConfigError`."""
        return images[self.reads[0]]

    @abstractmethod
    def __call__(self, batch: Batch, generators: Sequence[Generator]) -> DomainBatch:
        """The phase's images (B,3,H,W), labels (B,H,W) and weights, from one micro-batch."""


class Viewed(Derivation):
    """A domain seen through a view: a student's strong one, or masked patches."""

    def __init__(self, domain: str, view: View):
        self.reads = self.labels_of = (domain,)
        self.domain, self.view = domain, view

    def check(self, images: Mapping[str, Images]) -> Images:
        seen = images[self.domain]
        if self.view.needs_panorama and not seen.panoramas:
            raise ConfigError(
                f"view turns whole panoramas around (yaw_roll, YawRoll or Tilt), and {self.domain} gives it crops or "
                "pinhole images: leave that out, or let the domain's transform have fit=resize and panoramas"
            )
        if self.view.needs_pinholes and seen.panoramas:
            raise ConfigError(f"view bends pinhole images, and {self.domain} gives it panoramas: leave it out")
        panoramas = (seen.panoramas or self.view.images > 1) and not self.view.crops
        return Images(seen.batch, self.view.size or seen.size, panoramas)

    def __call__(self, batch: Batch, generators: Sequence[Generator]) -> DomainBatch:
        seen = batch[self.domain]
        return {**seen, **self.view({key: seen[key] for key in TENSORS if key in seen}, generators)}


class ClassMix(Derivation):
    """Half of each source image's classes pasted into a target image, with their labels (arXiv 2007.07936).

    Pixels that are pasted weigh what they do in the source (1 unless said), the others what they do in the target. The
    images of both domains must be of one size: crop them alike.
    """

    def __init__(self, source: str = "source", target: str = "target"):
        self.reads = self.labels_of = (target, source)
        self.source, self.target = source, target

    def check(self, images: Mapping[str, Images]) -> Images:
        source, target = images[self.source], images[self.target]
        sizes = {tuple(each.size) for each in (source, target) if each.size is not None}
        if source.batch != target.batch or len(sizes) > 1:
            raise ConfigError(
                f"pastes {self.source} into {self.target}, whose batches must have one shape: {self.target} has "
                f"{target.batch} images of {target.size}, {self.source} {source.batch} of {source.size} (width, "
                "height); give both one batch_size, and views of one size"
            )
        return target

    def __call__(self, batch: Batch, generators: Sequence[Generator]) -> DomainBatch:
        source, target = batch[self.source], batch[self.target]
        if source["image"].shape != target["image"].shape:
            raise ConfigError(
                f"ClassMix pastes {self.source} into {self.target}, whose batches must have one shape, and they have "
                f"{list(source['image'].shape)} and {list(target['image'].shape)} [B,3,H,W]: give both domains one "
                "batch_size, and views of one size"
            )
        chosen = pasted(source["label"], generators)
        mixed: dict[str, Any] = {**target, "name": [f"{a} + {b}" for a, b in zip(source["name"], target["name"])]}
        mixed["image"] = torch.where(chosen[:, None], as_float(source["image"]), as_float(target["image"]))
        mixed["label"] = torch.where(chosen, source["label"], target["label"])
        weights = [part.get("weight", torch.ones_like(chosen, dtype=torch.float32)) for part in (source, target)]
        mixed["weight"] = torch.where(chosen, *weights)
        return mixed


def pasted(labels: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Labels (B,H,W) -> whether a pixel is of the half (rounded up) of its image's classes that is drawn."""
    # No loop over the classes that are there: which they are is known on the device only.
    present = labels.new_zeros(len(labels), IGNORE + 1, dtype=torch.bool)
    present.scatter_(1, labels.flatten(1), True)
    present[:, IGNORE] = False
    drawn = torch.stack([torch.rand(IGNORE + 1, generator=generator) for generator in generators])
    drawn = drawn.to(labels.device, non_blocking=True)
    order = drawn.where(present, 2.0).argsort(1).argsort(1)  # a class's rank among the classes of its image
    taken = present & (order < (present.sum(1, keepdim=True) + 1) // 2)
    return taken.gather(1, labels.flatten(1)).view_as(labels)


class FourierStyle(Derivation):
    """A domain's images with the low frequencies' amplitudes of another's (FDA, arXiv 2004.05498).

    Args:
        domain: whose images and labels are kept.
        style: whose amplitudes are taken; image i's come from image i.
        beta: half the width of the exchanged window, as a share of the shorter side.
    """

    def __init__(self, domain: str = "source", style: str = "target", beta: Annotated[float, Gt(0)] = 0.01):
        self.reads, self.labels_of = (domain, style), (domain,)
        self.domain, self.style, self.beta = domain, style, beta

    def __call__(self, batch: Batch, generators: Sequence[Generator]) -> DomainBatch:
        image = as_float(batch[self.domain]["image"])
        style = fitted(batch[self.style]["image"], len(image), image.shape[-2:])
        spectrum, other = torch.fft.fft2(image), torch.fft.fft2(style)
        height, width = image.shape[-2:]
        reach = int(self.beta * min(height, width))
        rows, columns = (torch.fft.fftfreq(side, 1 / side, device=image.device).abs() for side in (height, width))
        low = (rows[:, None] <= reach) & (columns <= reach)
        amplitude = torch.where(low, other.abs(), spectrum.abs())
        restyled = torch.fft.ifft2(torch.polar(amplitude, spectrum.angle())).real.clamp(0, 1)
        return {**batch[self.domain], "image": restyled}


class ChannelStyle(Derivation):
    """A domain's images with their channels' mean and deviation moved towards another's.

    Args:
        domain: whose images and labels are kept.
        style: whose statistics are taken; image i's come from image i.
        strength: the largest share of the way; each image's is drawn from 0 to it.
    """

    def __init__(self, domain: str = "source", style: str = "target", strength: Share = 1.0):
        self.reads, self.labels_of = (domain, style), (domain,)
        self.domain, self.style, self.strength = domain, style, strength

    def __call__(self, batch: Batch, generators: Sequence[Generator]) -> DomainBatch:
        image = as_float(batch[self.domain]["image"])
        style = fitted(batch[self.style]["image"], len(image), batch[self.style]["image"].shape[-2:])
        drawn = torch.stack([torch.rand((), generator=generator) for generator in generators])
        drawn = drawn.to(image, non_blocking=True)
        share = self.strength * drawn.view(-1, 1, 1, 1)
        aligned = align_channels(image, *channel_statistics(style))
        return {**batch[self.domain], "image": torch.lerp(image, aligned, share).clamp(0, 1)}


def fitted(images: Tensor, count: int, size: Sequence[int]) -> Tensor:
    """Images as floats, `count` of them, repeated where there are fewer, at `size` = (H,W)."""
    images = as_float(images)[torch.arange(count, device=images.device) % len(images)]
    return images if images.shape[-2:] == tuple(size) else F.interpolate(images, tuple(size), mode="bilinear")
