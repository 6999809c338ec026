"""One of everything that a package of your own can add to trans4pass, in the order in which a batch meets it.

python tools/train.py --config-dir examples/extension/configs plugins=[extension] experiment=extension_toy
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Generator, Tensor, nn

from trans4pass.data import Common, Item, Sample, Sampler, SegmentationDataset, View
from trans4pass.data.files import find_images
from trans4pass.labels import LabelSpace
from trans4pass.methods import Batch, ForwardPass, Losses, Pass, SumOfTerms, Term, generators
from trans4pass.models import ENCODERS, HEADS, HeadOutput, Segmentor
from trans4pass.pipeline import Stage, StageSettings
from trans4pass.settings import Positive, Share
from trans4pass.training import Tracker


class Unlabelled(SegmentationDataset):
    """A data set: every image of one folder."""

    name, panorama = "unlabelled", True

    def __init__(self, root: str | Path, split: str, labels: LabelSpace, **common: Unpack[Common]):
        images = find_images(self.name, root, split, "**/*.png")
        names = [path.relative_to(root).with_suffix("").as_posix() for path in images]
        common["labelled"] = False
        super().__init__(map(Item, names, images), labels, **common)


class Noise(View):
    """A view: uint8 noise of a given standard deviation, on the image and not on its label."""

    def __init__(self, deviation: float):
        self.deviation = deviation

    def one(self, sample: Sample, generator: Generator) -> Sample:
        noise = torch.randn(sample["image"].shape, generator=generator) * self.deviation
        return {**sample, "image": (sample["image"] + noise).clamp(0, 255).to(torch.uint8)}


class Strided(Sampler):
    """A sampler: every `stride`-th image, round and round."""

    def __init__(self, dataset: SegmentationDataset, seed: int, stride: Positive = 3):
        super().__init__(dataset, seed)
        self.stride = stride

    def index(self, position: int) -> int:
        return (position * self.stride + self.seed) % len(self.dataset)


class PatchEncoder(nn.Module):
    """An encoder: four strided convolutions."""

    strides = (4, 8, 16, 32)

    def __init__(self, width: Positive = 16):
        super().__init__()
        self.channels = (width, 2 * width, 4 * width, 8 * width)
        sizes = zip((3, *self.channels), self.channels, (4, 2, 2, 2), strict=False)
        self.stages = nn.ModuleList(nn.Conv2d(i, o, 2 * s - 1, s, padding=s - 1) for i, o, s in sizes)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x).relu()
            maps.append(x)
        return maps


class StackHead(nn.Module):
    """A head: a 1x1 convolution of all maps, at the finest one's size."""

    feature_level = 0

    def __init__(self, channels: Sequence[int], num_classes: int):
        super().__init__()
        self.num_classes, self.feature_dim = num_classes, sum(channels)
        self.pred = nn.Conv2d(self.feature_dim, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        features = torch.cat([nn.functional.interpolate(x, maps[0].shape[2:]) for x in maps], 1)
        return HeadOutput(features, self.pred(features), {})


ENCODERS["patches"], HEADS["stack"] = PatchEncoder, StackHead  # now model.name=patches model.head=stack


class Entropy(Term):
    """A loss term: the target's predictions are to be certain; the mean over all pixels, labelled or not."""

    def __init__(self, network: Segmentor, weight: float = 0.01, domain: str = "target"):
        super().__init__([domain], weight)

    def forward(self, seen: ForwardPass, norms: Mapping[str, Tensor]) -> Losses:
        log_p = seen.output.logits.log_softmax(1)
        return Losses({"": self.weight * -(log_p.exp() * log_p).sum(1).mean()}, {})


class AveragedTeacher(SumOfTerms):
    """A method: the network's moving average labels the target's images, and the network learns them on a strong view.

    The average, not the network, is scored, kept as best, exported and handed on.
    """

    def __init__(
        self,
        network: Segmentor,
        terms: Mapping[str, Term],
        strong: View,
        momentum: Share = 0.9,
        threshold: Share = 0.5,
    ):
        super().__init__(network, terms)
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        self.strong, self.momentum, self.threshold = strong, momentum, threshold

    def train(self, mode: bool = True) -> "AveragedTeacher":
        super().train(mode)
        self.teacher.eval()  # always
        return self

    def learns_labels_of(self, domain: str) -> bool:
        return domain != "target" and super().learns_labels_of(domain)  # those of the target are the teacher's

    def prepare(self, passes: Mapping[str, Pass]) -> None:
        super().prepare(passes)
        self.teacher.load_state_dict(self.network.state_dict())

    def targets(self, phase: str, batch: Batch) -> Batch:
        if phase != "target":
            return batch
        images = batch["target"]["image"]
        confidence, labels = self.teacher(images).logits.softmax(1).max(1)
        weights = (confidence > self.threshold).to(confidence.dtype)
        seen = {"image": images, "label": labels, "weight": weights}
        view = self.strong(seen, generators(batch["target"]))
        return {**batch, "target": {**batch["target"], **view}}

    def after_step(self, step: int) -> dict[str, Tensor]:
        for old, new in zip(self.teacher.state_dict().values(), self.network.state_dict().values(), strict=True):
            old.lerp_(new, 1 - self.momentum) if old.is_floating_point() else old.copy_(new)
        return super().after_step(step)

    def deployed(self) -> Segmentor:
        return self.teacher


class Lines(Tracker):
    """A tracker: a text file, a line per number."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        with (self.folder / "lines.txt").open("a") as file:
            file.writelines(f"{self.stage} {step} {name} {value}\n" for name, value in values.items())


@dataclass(frozen=True, kw_only=True)
class CountSettings(StageSettings):
    data: str
    split: str


class CountStage(Stage):
    """A stage kind: count the images of a data set."""

    Settings = CountSettings
    RESULT = ("images",)  # what done.json holds at least
    settings: CountSettings

    @cached_property
    def dataset(self) -> SegmentationDataset:
        return self.run.dataset(self.settings.data, self.settings.split, self.where)

    def check(self) -> None:
        _ = self.dataset

    def execute(self) -> dict[str, Any]:
        return {"images": len(self.dataset)}
