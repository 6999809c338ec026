"""Which image stands at which position of a training run's endless sequence.

A sampler is a function of the position alone, so that a run resumes exactly and N ranks read what one would.
"""

import logging
from abc import ABC, abstractmethod

import torch
from pydantic import PositiveFloat

from trans4pass.errors import ConfigError
from trans4pass.settings import Positive

from .base import SegmentationDataset, derive_seed
from .mixture import Mixture

log = logging.getLogger(__name__)


class Sampler(ABC):
    """Gives every position 0, 1, 2, ... an image of `dataset`; its randomness comes from `seed` and the position."""

    needs_labels = False
    needs_weights = False  # whether it draws from several data sets, by their weights

    def __init__(self, dataset: SegmentationDataset, seed: int):
        self.dataset, self.seed = dataset, seed

    @abstractmethod
    def index(self, position: int) -> int:
        """The index of the image at `position`."""


class Shuffle(Sampler):
    """Every image once an epoch, in an order of the epoch's own."""

    _epoch = -1  # the one that `_order` is of
    _order: list[int]

    def index(self, position: int) -> int:
        epoch = position // len(self.dataset)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.dataset), generator=generator).tolist()
        return self._order[position % len(self.dataset)]


class Mixed(Sampler):
    """A `Mixture`'s data sets in proportion to their weights, each data set's images at random."""

    needs_weights = True

    def __init__(self, dataset: Mixture, seed: int):
        super().__init__(dataset, seed)
        sizes = torch.tensor([len(part) for part in dataset.parts.values()])
        self.starts, self.sizes = (sizes.cumsum(0) - sizes).tolist(), sizes.tolist()
        self.weights = torch.tensor(dataset.weights)

    def index(self, position: int) -> int:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, position))
        part = int(torch.multinomial(self.weights, 1, generator=generator))
        return self.starts[part] + int(torch.randint(self.sizes[part], (), generator=generator))


class RareClasses(Sampler):
    """Images with rare classes more often (rare class sampling of DAFormer, arXiv 2111.14887, equation 5).

    A class is drawn with probability softmax((1 - its share of the labelled pixels) / temperature), then an image that
    shows it. The classes of every label are counted once, and kept in the stage's folder.

    Args:
        temperature: small ones prefer the rarest classes.
        pixels: how many of a class an image must have to show it.
    """

    needs_labels = True

    def __init__(
        self,
        dataset: SegmentationDataset,
        seed: int,
        temperature: PositiveFloat = 0.01,
        pixels: Positive = 3000,
    ):
        super().__init__(dataset, seed)
        counts = dataset.class_counts_by_image()
        shown = counts >= pixels
        self.images = [column.nonzero().flatten().tolist() for column in shown.T]
        share = counts.sum(0) / counts.sum()
        self.probabilities = ((1 - share) / temperature).where(shown.any(0), -torch.inf).softmax(0)
        if not shown.any():
            raise ConfigError(f"sampler RareClasses: no image of {dataset.name} has {pixels} pixels of any class")
        left = counts.any(0) & ~shown.any(0)
        if left.any():
            log.warning(
                "sampler RareClasses: no image of %s has %d pixels of %s, which are not drawn: lower `pixels`",
                dataset.name, pixels, ", ".join(dataset.labels.classes[k] for k in left.nonzero()),
            )  # fmt: skip

    def index(self, position: int) -> int:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, position))
        images = self.images[int(torch.multinomial(self.probabilities, 1, generator=generator))]
        return images[int(torch.randint(len(images), (), generator=generator))]
