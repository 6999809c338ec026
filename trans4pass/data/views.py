"""Views: changes of images together with their labels, for data sets and for methods that look at an image anew.

A view takes a sample, {"image": (B,3,H,W) uint8 or floating in [0,1], "label": (B,H,W), perhaps "weight": (B,H,W)}, on
any device, and one random generator per image, and returns such a sample. A data set calls it with a batch of one, in
a data worker; a method with a whole batch, on the device. What it draws comes from the generators alone.

A view that makes one image of several (`images`) is given them one after the other, for each generator as many.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from annotated_types import Ge
from PIL import Image
from pydantic import AfterValidator, PositiveFloat
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from trans4pass.errors import ConfigError
from trans4pass.labels import IGNORE
from trans4pass.settings import Share

Sample = dict[str, Tensor]
MIN_SIDE = 32  # pixels, the encoders' coarsest stride
Side = Annotated[int, Ge(MIN_SIDE)]
MANY_PIXELS = 1 << 20  # from which on scaling the crop is faster than the library's kernel, which scales all
Size = tuple[Side, Side]  # width, height in pixels


T = TypeVar("T")


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("its first number must be at most its second")
    return bounds


Range = Annotated[tuple[T, T], AfterValidator(_ascending)]  # lowest, highest


class View(ABC):
    """A view that changes every image by itself; `one` says how."""

    needs_panorama = False  # whether the images' left and right borders must meet
    needs_pinholes = False  # whether the images must be no panoramas
    images = 1  # of a data set that it makes one of
    size: Any = None  # (W,H) of all that it gives; None: as the images are
    crops = False  # whether it leaves out parts of them

    def __call__(self, sample: Sample, generators: Sequence[Generator]) -> Sample:
        count = len(sample["image"]) // len(generators)
        parts = [
            self.one({key: x[i * count : (i + 1) * count] for key, x in sample.items()}, generator)
            for i, generator in enumerate(generators)
        ]
        sizes = {tuple(part["image"].shape[-2:]) for part in parts}
        if len(sizes) > 1:
            raise ConfigError(
                f"{type(self).__name__} gives the images of a batch {len(sizes)} different sizes: let a view follow "
                "that gives all one size, as TrainTransform does with those in its `views`"
            )
        return parts[0] if len(parts) == 1 else {key: torch.cat([part[key] for part in parts]) for key in sample}

    @abstractmethod
    def one(self, sample: Sample, generator: Generator) -> Sample:
        """The view of a sample of one image, or of the several that one is made of."""


class Compose(View):
    """Several views, one after the other, by name (the names are for configurations)."""

    def __init__(self, views: Mapping[str, View]):
        self.views = views
        self.needs_panorama = any(view.needs_panorama for view in views.values())
        self.needs_pinholes = any(view.needs_pinholes for view in views.values())
        self.images = max((view.images for view in views.values()), default=1)
        self.size = next((view.size for view in reversed([*views.values()]) if view.size is not None), None)
        self.crops = any(view.crops for view in views.values())

    def one(self, sample: Sample, generator: Generator) -> Sample:
        for view in self.views.values():
            sample = view(sample, [generator])
        return sample


class YawRoll(View):
    """Turn panoramas about the vertical axis by a random angle: what leaves on the right comes back on the left."""

    needs_panorama = True

    def one(self, sample: Sample, generator: Generator) -> Sample:
        shift = randint(sample["image"].shape[-1], generator)
        return {key: x.roll(shift, -1) for key, x in sample.items()}


class Resize(View):
    """Stretch to `size` = (W,H) pixels."""

    def __init__(self, size: Size):
        self.size = size

    def one(self, sample: Sample, generator: Generator) -> Sample:
        return resize(sample, self.size)


class CoverCrop(View):
    """Scale to cover `size` = (W,H) pixels, and crop at random."""

    crops = True

    def __init__(self, size: Size):
        self.size = size

    def one(self, sample: Sample, generator: Generator) -> Sample:
        height, width = sample["image"].shape[-2:]
        factor = max(self.size[0] / width, self.size[1] / height)
        scaled = max(self.size[0], round(width * factor)), max(self.size[1], round(height * factor))
        top, left = (randint(scaled[side] - self.size[side] + 1, generator) for side in (1, 0))
        kept = (..., slice(top, top + self.size[1]), slice(left, left + self.size[0]))
        return {key: x[kept] for key, x in resize(sample, scaled).items()}


class ScaleCrop(View):
    """Scale the short side to `base` pixels times a random factor in `scale`, pad to `size` = (W,H), crop at random.

    Of images that get large only what the crop keeps is scaled.
    """

    crops = True

    def __init__(self, size: Size, base: Side, scale: Range[PositiveFloat] = (0.5, 2.0)):
        self.size, self.base, self.scale = size, base, scale

    def one(self, sample: Sample, generator: Generator) -> Sample:
        height, width = sample["image"].shape[-2:]
        low, high = self.scale
        factor = self.base * (low + (high - low) * torch.rand((), generator=generator).item()) / min(height, width)
        scaled = [max(1, round(side * factor)) for side in (height, width)]
        wanted = (self.size[1], self.size[0])
        starts = [randint(max(has, wants) - wants + 1, generator) for has, wants in zip(scaled, wanted)]
        kept = [slice(start, min(start + wants, has)) for start, wants, has in zip(starts, wanted, scaled)]
        if scaled[0] * scaled[1] > MANY_PIXELS:
            sample = {key: (resample if key == "image" else pick)(x, scaled, kept) for key, x in sample.items()}
        else:
            sample = {key: x[..., kept[0], kept[1]] for key, x in resize(sample, (scaled[1], scaled[0])).items()}
        margin = [0, 0, max(0, wanted[1] - scaled[1]), max(0, wanted[0] - scaled[0])]
        if any(margin):
            # Black, as the published weights saw it; the loss never sees it, since the label there is ignored.
            sample = {key: F.pad(x, margin, fill=filling(key)) for key, x in sample.items()}
        return sample


class HorizontalFlip(View):
    """Mirror with a probability."""

    def __init__(self, probability: Share = 0.5):
        self.probability = probability

    def one(self, sample: Sample, generator: Generator) -> Sample:
        return {key: x.flip(-1) for key, x in sample.items()} if chance(self.probability, generator) else sample


class ColorJitter(View):
    """Change brightness, contrast and saturation by up to the share `strength`, the hue by up to a quarter of it.

    In random order, as torchvision's; the hue in turns.
    """

    def __init__(self, strength: Share):
        self.strength = strength

    def one(self, sample: Sample, generator: Generator) -> Sample:
        changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        order = torch.randperm(4, generator=generator).tolist()
        low, high = max(0.0, 1 - self.strength), 1 + self.strength
        factors = [uniform(low, high, generator) for _ in range(3)]
        factors.append(uniform(-self.strength / 4, self.strength / 4, generator))
        image = sample["image"]
        for number in order:
            image = changes[number](image, factors[number])
        return {**sample, "image": keep_black(sample["image"], image)}


class GaussianBlur(View):
    """Blur with a probability, with a sigma of 0.1 to 1 pixel."""

    def __init__(self, probability: Share = 0.1):
        self.probability = probability

    def one(self, sample: Sample, generator: Generator) -> Sample:
        if not chance(self.probability, generator):
            return sample
        sigma = uniform(0.1, 1.0, generator)
        blurred = F.gaussian_blur(sample["image"], [7, 7], [sigma, sigma])
        return {**sample, "image": keep_black(sample["image"], blurred)}


class GaussianNoise(View):
    """Add noise of a random deviation, up to `strength` of the range of values."""

    def __init__(self, strength: Share = 0.06):
        self.strength = strength

    def one(self, sample: Sample, generator: Generator) -> Sample:
        image, sigma = sample["image"], uniform(0, self.strength, generator)
        noise = sigma * torch.randn(image.shape, generator=generator).to(image.device, non_blocking=True)
        most = 1 if image.is_floating_point() else 255
        noisy = (image + most * noise).clamp_(0, most)
        noisy = noisy if image.is_floating_point() else noisy.round_().to(torch.uint8)
        return {**sample, "image": keep_black(image, noisy)}


class MaskedPatches(View):
    """Black out square patches of the image and keep its labels: masked image consistency (MIC, arXiv 2212.01322).

    Args:
        ratio: probability of each patch.
        patch: side in pixels.
    """

    def __init__(self, ratio: Share = 0.7, patch: Annotated[int, Ge(1)] = 64):
        self.ratio, self.patch = ratio, patch

    def one(self, sample: Sample, generator: Generator) -> Sample:
        image = sample["image"]
        height, width = image.shape[-2:]
        cells = torch.rand(-(-height // self.patch), -(-width // self.patch), generator=generator) >= self.ratio
        kept = cells.repeat_interleave(self.patch, 0).repeat_interleave(self.patch, 1)[:height, :width]
        return {**sample, "image": image * kept.to(image.device, non_blocking=True)}


class TrainTransform(Compose):
    """The training views that published recipes use, by their settings; `size` = (W,H) pixels comes out.

    Args:
        fit: "resize" (see `Resize`), "cover_crop" (`CoverCrop`) or "scale_crop" (`ScaleCrop`, with `base`, `scale`).
        flip, blur: probabilities (`HorizontalFlip`, `GaussianBlur`).
        jitter, noise: strengths (`ColorJitter`, `GaussianNoise`); 0 is off.
        yaw_roll: whether panoramas are turned (`YawRoll`).
        views: others, by name, that come first, at the files' own size.
    """

    def __init__(
        self,
        size: Size,
        fit: Literal["resize", "cover_crop", "scale_crop"] = "resize",
        base: Side | None = None,
        scale: Range[PositiveFloat] = (0.5, 2.0),
        flip: Share = 0.0,
        blur: Share = 0.0,
        jitter: Share = 0.0,
        noise: Share = 0.0,
        yaw_roll: bool = False,
        views: Mapping[str, View] | None = None,
    ):
        if (fit == "scale_crop") != (base is not None):
            raise ConfigError(f"base={base} with fit={fit}: base, in pixels, belongs to fit=scale_crop and only to it")
        fitting = ScaleCrop(size, base, scale) if base else CoverCrop(size) if fit == "cover_crop" else Resize(size)
        chosen = {
            "yaw_roll": YawRoll() if yaw_roll else None,
            "fit": fitting,
            "flip": HorizontalFlip(flip) if flip else None,
            "jitter": ColorJitter(jitter) if jitter else None,
            "blur": GaussianBlur(blur) if blur else None,
            "noise": GaussianNoise(noise) if noise else None,
        }
        super().__init__({**(views or {}), **{name: view for name, view in chosen.items() if view is not None}})


class EvalTransform(View):
    """Image and label at the evaluation size (W,H) in pixels; None keeps every image's own size."""

    def __init__(self, size: Size | None = None):
        self.size = None if size is None else (size[0], size[1])

    def one(self, sample: Sample, generator: Generator) -> Sample:
        return sample if self.size is None else resize(sample, self.size)


def keep_black(image: Tensor, changed: Tensor) -> Tensor:
    """`changed`, black where the image is: padding and what is not seen stay what `align` and teachers leave out."""
    return changed * (image.amax(-3, keepdim=True) > 0)


def filling(key: str) -> int:
    """Of a sample's part, the value where nothing is seen."""
    return IGNORE if key == "label" else 0


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """The image bilinear and antialiased, all else by nearest neighbour, at `size` = (W,H)."""
    # Labels by "nearest-exact", which takes a cell's centre: "nearest" takes its upper left pixel, and so shifts them
    # against the image.
    modes = {"image": InterpolationMode.BILINEAR}
    return {
        key: F.resize_image(x, [size[1], size[0]], modes.get(key, InterpolationMode.NEAREST_EXACT), antialias=True)
        for key, x in sample.items()
    }


def resample(image: Tensor, size: Sequence[int], kept: Sequence[slice]) -> Tensor:
    """The rows and columns `kept` of what `resize` makes of an image (...,H,W) at `size` = (h,w), within rounding.

    Bilinear and antialiased, one side after the other: a triangle around a pixel's centre, as wide as two pixels of the
    image or two of the result, whichever are larger.
    """
    if image.dtype == torch.uint8 and image.device.type == "cpu":
        return _resample_in_bytes(image, size, kept)
    taps = {dim: triangles(image.shape[dim], total, part) for dim, total, part in zip((-2, -1), size, kept)}
    x = image
    for dim, (index, _) in taps.items():  # what nothing is made of goes first
        x = x.narrow(dim, int(index.min()), int(index.max() - index.min()) + 1)
    x = x if image.is_floating_point() else x.float()
    for dim, (index, weight) in taps.items():
        # Not blocking: a method's view is made on a GPU, for which the host should not wait.
        index = (index - index.min()).to(x.device, non_blocking=True)
        weight = weight.to(x.device, x.dtype, non_blocking=True)
        shape = (-1, 1) if dim == -2 else (-1,)
        first, *others = zip(index.unbind(1), weight.unbind(1))
        total = x.index_select(dim, first[0]).mul_(first[1].view(shape))
        for where, factor in others:
            total.addcmul_(x.index_select(dim, where), factor.view(shape))
        x = total
    return x if image.is_floating_point() else x.round_().clamp_(0, 255).to(image.dtype)


def _resample_in_bytes(image: Tensor, size: Sequence[int], kept: Sequence[slice]) -> Tensor:
    """`resample` by Pillow, which takes a part of a picture whose borders lie between pixels: a fifth of the time."""
    (rows, top, bottom), (columns, left, right) = map(_made_of, image.shape[-2:], size, kept)
    height, width = (part.stop - part.start for part in kept)
    box = left, top, right, bottom
    planes = [Image.fromarray(plane) for plane in image[..., rows, columns].flatten(0, -3).numpy()]
    scaled = [np.array(plane.resize((width, height), Image.Resampling.BILINEAR, box)) for plane in planes]
    return torch.from_numpy(np.stack(scaled)).view(*image.shape[:-2], height, width)


def _made_of(side: int, total: int, part: slice) -> tuple[slice, float, float]:
    """What `part` of `total` pixels is made of: pixels of the image's `side`, and where in these it begins and ends."""
    step = side / total
    reach = max(step, 1.0)
    first = max(0, math.floor((part.start + 0.5) * step - reach))
    last = min(side, math.ceil((part.stop - 0.5) * step + reach))
    end = min(part.stop * step, last) - first  # rounding may have led beyond it
    return slice(first, last), part.start * step - first, end


def triangles(side: int, total: int, part: slice) -> tuple[Tensor, Tensor]:
    """Of `total` pixels that are made of `side` those of `part`: the indices and weights (n, taps) of what they are."""
    step = side / total
    reach = max(step, 1.0)
    centre = (torch.arange(part.start, part.stop, dtype=torch.float64) + 0.5) * step
    first = (centre - reach + 0.5).floor().clamp_min(0).long()
    index = first[:, None] + torch.arange(math.ceil(2 * reach) + (reach > 1))
    weight = (1 - (index + 0.5 - centre[:, None]).abs() / reach).clamp_min(0) * (index < side)
    return index.clamp_max(side - 1), weight / weight.sum(1, keepdim=True)


def pick(x: Tensor, size: Sequence[int], kept: Sequence[slice]) -> Tensor:
    """The rows and columns `kept` of what `resize` makes of labels or weights (...,H,W) at `size` = (h,w)."""
    for dim, total, part in zip((-2, -1), size, kept):
        step = torch.tensor(x.shape[dim], dtype=torch.float32) / total  # in single precision, as torch has it
        index = ((torch.arange(part.start, part.stop) + 0.5) * step).long().clamp_max(x.shape[dim] - 1)
        x = x.index_select(dim, index.to(x.device, non_blocking=True))
    return x


def randint(count: int, generator: Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def uniform(low: float, high: float, generator: Generator) -> float:
    return torch.empty(1).uniform_(low, high, generator=generator).item()


def chance(probability: float, generator: Generator) -> bool:
    return probability > 0 and torch.rand((), generator=generator).item() < probability
