"""Which image stands at which position of a training run's endless sequence.

A sampler is a function of the position alone, so that a run resumes exactly and N ranks read what one would.
"""

from abc import ABC, abstractmethod

import torch

from .base import SegmentationDataset, derive_seed


class Sampler(ABC):
    """Gives every position 0, 1, 2, ... an image of `dataset`; its randomness comes from `seed` and the position."""

    def __init__(self, dataset: SegmentationDataset, seed: int):
        self.dataset, self.seed = dataset, seed

    @abstractmethod
    def index(self, position: int) -> int:
        """The index of the image at `position`."""


class Shuffle(Sampler):
    """Every image once an epoch, in an order of the epoch's own."""

    def __init__(self, dataset: SegmentationDataset, seed: int):
        super().__init__(dataset, seed)
        self._epoch, self._order = -1, [0]

    def index(self, position: int) -> int:
        epoch = position // len(self.dataset)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.dataset), generator=generator).tolist()
        return self._order[position % len(self.dataset)]
