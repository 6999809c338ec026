"""Networks of a few weights and a set in memory, small enough to follow by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from trans4pass import create_model
from trans4pass.data import Item
from trans4pass.labels import LabelSpace
from trans4pass.models import Segmentor, SegOutput, resize
from trans4pass.models.ecrm import ECRM
from trans4pass.models.output import HeadOutput


class Pixelwise(nn.Module):
    """A 1x1 convolution of RGB in [0,1]: each pixel's logits are its own, so that every view of an image is exact."""

    kernel = 1

    def __init__(self, classes: int = 3, wrap: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wrap, self.has_edges = wrap, False
        self.encoder = nn.Identity()
        self.head = nn.Conv2d(3, classes, self.kernel, padding=self.kernel // 2, dtype=dtype)

    def forward(self, images: Tensor) -> SegOutput:
        scaled = images.to(self.head.weight.dtype) / (255 if images.dtype == torch.uint8 else 1)
        return SegOutput(self.head(self.encoder(scaled)), scaled, {})


class Neighbourhood(Pixelwise):
    """A lopsided 3x3 convolution with the place in the image added: no view of an image is exact."""

    kernel = 3

    def forward(self, images: Tensor) -> SegOutput:
        logits, features, aux = super().forward(images)
        height, width = images.shape[2:]
        place = torch.linspace(0, 1, width) ** 2 + torch.linspace(0, 1, height)[:, None]
        return SegOutput(logits + place.to(logits), features, aux)


class Strides(nn.Module):
    """An encoder's contract in four convolutions with BatchNorm."""

    channels, strides = (4, 4, 8, 8), (4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        pairs = zip((3, *self.channels), self.channels, (4, 2, 2, 2))
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(*widths, 3, stride, 1), nn.BatchNorm2d(widths[1]), nn.ReLU())
            for *widths, stride in pairs
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


class Sum(nn.Module):
    """A head's contract: the finest map and the coarsest one, spread over it."""

    feature_dim, feature_level = 6, 0

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.num_classes = classes
        self.fine, self.coarse = (nn.Conv2d(channels[level], self.feature_dim, 1) for level in (0, -1))
        self.pred = nn.Conv2d(self.feature_dim, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> HeadOutput:
        features = self.fine(maps[0])
        features = features + resize(self.coarse(maps[-1]), features.shape[2:], False)
        return HeadOutput(features, self.pred(features), {})


def tiny_segmentor(classes: int, ecrm: bool = True) -> Segmentor:
    """A whole segmentor in about 3,000 weights, for methods that need more than `Pixelwise` has."""
    torch.manual_seed(0)
    encoder = Strides()
    if not ecrm:
        return Segmentor(encoder, Sum(encoder.channels, classes))
    context = ECRM(encoder.channels, classes, width=8, attention_width=4, bank_size=8)
    return Segmentor(encoder, Sum(context.channels, classes), context)


def various_network(classes: int, images: Tensor, **options: Any) -> Segmentor:
    """A fresh micro model with each class's logits of mean 0 and deviation 1 on these images: it predicts all classes.

    A fresh model as it is predicts one class nearly everywhere.
    """
    torch.manual_seed(0)
    network = create_model("trans4pass_micro", classes, embed_dim=16, **options).eval()
    pred = network.head.pred
    with torch.no_grad():
        logits = network(images).logits
        spread = logits.std((0, 2, 3))
        pred.bias.copy_((pred.bias - logits.mean((0, 2, 3))) / spread)
        pred.weight.div_(spread[:, None, None, None])
    return network


class InMemory(Dataset):
    """Labelled images without files, as a `SegmentationDataset` gives them."""

    name, panorama = "in_memory", True

    def __init__(self, labels: LabelSpace, count: int, size: tuple[int, int] = (32, 64)) -> None:
        self.labels, generator = labels, torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)
        self.samples = [
            {"image": image, "label": image[0].long() % (labels.num_classes + 1), "name": f"image{number}"}
            for number, image in enumerate(images)
        ]
        for sample in self.samples:
            sample["label"][sample["label"] == labels.num_classes] = 255
        self.items = [Item(sample["name"], Path(sample["name"])) for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.samples[index])


def label_space(classes: Sequence[str], name: str = "small", **encodings: Any) -> LabelSpace:
    palette = [[number, number, number] for number in range(len(classes))]
    return LabelSpace(name, tuple(classes), palette, encodings)
