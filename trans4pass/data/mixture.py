"""Several data sets as one, each with its share of what is drawn."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from .base import Item, SegmentationDataset
from .views import View


class Mixture(SegmentationDataset):
    """Data sets of one label space side by side; an image's name begins with its data set's.

    The sampler `Mixed` draws from each in proportion to its weight, whatever its size.

    Args:
        parts: by name; each maps its own label files to the common label space.
        weights: > 0, one for each part.
    """

    name = "mixture"

    def __init__(self, parts: Mapping[str, SegmentationDataset], weights: Sequence[float]):
        self.parts, self.weights = dict(parts), list(weights)
        self.labels = next(iter(self.parts.values())).labels
        self.panorama = all(part.panorama for part in self.parts.values())
        self.labelled = all(part.labelled for part in self.parts.values())
        self.places = [(name, index) for name, part in self.parts.items() for index in range(len(part))]
        self.items = [replace(item, name=f"{name}/{item.name}") for name, part in parts.items() for item in part.items]

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index, position = key if isinstance(key, tuple) else (key, key)
        name, place = self.places[index]
        return {**self.parts[name][place, position], "name": self.items[index].name}

    def load(self, item: Item) -> tuple[Tensor, Tensor]:
        name, _, rest = item.name.partition("/")
        return self.parts[name].load(replace(item, name=rest))

    def _count_classes(self, item: Item) -> Tensor:
        name, _, rest = item.name.partition("/")
        return self.parts[name]._count_classes(replace(item, name=rest))

    def with_transform(self, transform: View | None) -> "Mixture":
        other = copy.copy(self)
        other.parts = {name: part.with_transform(transform) for name, part in self.parts.items()}
        return other
