"""Augmentation and resizing of an image together with its label; all randomness comes from torch's global RNG."""

import math
from collections.abc import Callable, Sequence

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from trans4pass.errors import ConfigError
from trans4pass.labels import IGNORE

Image, Mask = tv_tensors.Image, tv_tensors.Mask
Transform = Callable[[Image, Mask], tuple[Image, Mask]]
FITS = ("resize", "cover_crop", "scale_crop")
MIN_SIDE = 32  # the encoder's coarsest stride


class TrainTransform:
    """Random view of `size` = (W,H) pixels: yaw roll, fit, flip, jitter, blur, in this order.

    fit: "resize" stretches to `size`; "cover_crop" scales to cover `size` and crops at random; "scale_crop" scales the
    short side to a random factor in `scale` times `base` pixels, pads to `size` where smaller and crops at random.
    flip, blur: probabilities 0..1; the blur is Gaussian with a sigma of 0.1 to 1 pixel.
    jitter: strength 0..1; brightness, contrast and saturation change by up to this share, the hue by up to a quarter of
    it (in turns); 0 is off. yaw_roll: rotates panoramas by a random angle about the vertical axis.
    Raises ConfigError for a value outside these ranges.
    """

    def __init__(
        self,
        size: Sequence[int],
        fit: str = "resize",
        base: int | None = None,
        scale: Sequence[float] = (0.5, 2.0),
        flip: float = 0.0,
        blur: float = 0.0,
        jitter: float = 0.0,
        yaw_roll: bool = False,
    ):
        self.width, self.height = checked_size(size)
        if fit not in FITS:
            raise ConfigError(f"fit={fit!r} is none of {', '.join(FITS)}")
        if (fit == "scale_crop") != (base is not None):
            raise ConfigError(f"base={base} with fit={fit}: base, in pixels, belongs to fit=scale_crop and only to it")
        if base is not None and base < MIN_SIDE:
            raise ConfigError(f"base={base} is not at least {MIN_SIDE} pixels")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ConfigError(f"scale={list(scale)} is not [low, high] with 0 < low <= high")
        for name, value in {"flip": flip, "blur": blur, "jitter": jitter}.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}={value} is not within 0..1")
        self.fit, self.base, self.scale, self.flip, self.blur, self.yaw_roll = fit, base, scale, flip, blur, yaw_roll
        self._jitter = v2.ColorJitter(jitter, jitter, jitter, jitter / 4) if jitter else None
        self._blur = v2.GaussianBlur(kernel_size=7, sigma=(0.1, 1.0))

    def __call__(self, image: Image, label: Mask) -> tuple[Image, Mask]:
        if self.yaw_roll:
            image, label = roll(image, label, _randint(image.shape[-1]))
        image, label = getattr(self, f"_{self.fit}")(image, label)
        if _chance(self.flip):
            image, label = F.horizontal_flip(image), F.horizontal_flip(label)
        if self._jitter is not None:
            image = self._jitter(image)
        if _chance(self.blur):
            image = self._blur(image)
        return image, label

    def _resize(self, image: Image, label: Mask) -> tuple[Image, Mask]:
        return resize(image, label, (self.width, self.height))

    def _cover_crop(self, image: Image, label: Mask) -> tuple[Image, Mask]:
        height, width = image.shape[-2:]
        factor = max(self.width / width, self.height / height)
        size = max(self.width, round(width * factor)), max(self.height, round(height * factor))
        return self._crop(*resize(image, label, size))

    def _scale_crop(self, image: Image, label: Mask) -> tuple[Image, Mask]:
        height, width = image.shape[-2:]
        low, high = self.scale
        factor = self.base * (low + (high - low) * torch.rand(()).item()) / min(height, width)
        image, label = resize(image, label, (max(1, round(width * factor)), max(1, round(height * factor))))
        right, below = max(0, self.width - image.shape[-1]), max(0, self.height - image.shape[-2])
        if right or below:
            # Black, as the published weights saw it; the loss never sees it, since the label there is ignored.
            image = F.pad(image, [0, 0, right, below], fill=0)
            label = F.pad(label, [0, 0, right, below], fill=IGNORE)
        return self._crop(image, label)

    def _crop(self, image: Image, label: Mask) -> tuple[Image, Mask]:
        top = _randint(image.shape[-2] - self.height + 1)
        left = _randint(image.shape[-1] - self.width + 1)
        return tuple(F.crop(x, top, left, self.height, self.width) for x in (image, label))


class EvalTransform:
    """Image and label at the evaluation size (W,H) in pixels; None keeps every image's own size."""

    def __init__(self, size: Sequence[int] | None = None):
        self.size = None if size is None else checked_size(size)

    def __call__(self, image: Image, label: Mask) -> tuple[Image, Mask]:
        return (image, label) if self.size is None else resize(image, label, self.size)


def resize(image: Image, label: Mask, size: tuple[int, int]) -> tuple[Image, Mask]:
    """Image (bilinear, antialiased) and label (nearest) at `size` = (W,H)."""
    shape = [size[1], size[0]]
    image = F.resize(image, shape, interpolation=v2.InterpolationMode.BILINEAR, antialias=True)
    # A Mask is always resized by "nearest", which takes a cell's upper left pixel and so shifts labels against the
    # image; "nearest-exact" takes its centre.
    label = F.resize_image(label.as_subclass(torch.Tensor)[None], shape, v2.InterpolationMode.NEAREST_EXACT)
    return image, Mask(label[0])


def roll(image: Image, label: Mask, shift: int) -> tuple[Image, Mask]:
    """Both shifted right by `shift` pixels; what leaves on the right comes back on the left."""
    return Image(torch.roll(image, shift, dims=-1)), Mask(torch.roll(label, shift, dims=-1))


def checked_size(size: Sequence[int]) -> tuple[int, int]:
    """(W,H) in pixels; ConfigError for anything else, or for a side shorter than the encoder's stride."""
    pair = isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, (int, float)) for side in size)
    if not pair or any(side != math.floor(side) or side < MIN_SIDE for side in size):
        raise ConfigError(f"size={size} is not [width, height] with at least {MIN_SIDE} pixels each")
    return int(size[0]), int(size[1])


def _randint(count: int) -> int:
    return int(torch.randint(count, ()))


def _chance(probability: float) -> bool:
    return probability > 0 and torch.rand(()).item() < probability
