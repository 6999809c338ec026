"""Self-training with the labels of a teacher, the average of the network over the steps.

Mean Teacher (arXiv 1703.01780) as DAFormer (arXiv 2111.14887) uses it: the teacher labels what was loaded, a weak view,
and the network learns these labels on what `derive` makes of it, strong views. The teacher is what is scored, kept as
best, exported and handed on.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, cast

import torch
from annotated_types import Ge, Interval, Lt
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trans4pass import dist
from trans4pass.errors import ConfigError
from trans4pass.labels import IGNORE
from trans4pass.losses import at_least_single
from trans4pass.models import MULTIPLE, Segmentor, circular_twin, not_black

from .derived import Derivation
from .method import Batch, DomainBatch, Images, Pass
from .term import SumOfTerms, Term


class MeanTeacher(SumOfTerms):
    """A sum of terms whose domains without labels are labelled by a teacher.

    Args:
        network, terms, derive: see `SumOfTerms`; the batches that `derive` reads have the teacher's labels.
        teaches: the domains that the teacher labels.
        momentum: of the average.
        ramp: the momentum is smaller in the first steps, 1 - 1 / (step + 1), so that the teacher soon forgets where it
            started: for a network that has still to learn its classes.
        threshold: of the teacher's confidence, the largest softmax probability.
        weighting: `share`: every pixel weighs its image's share of confident pixels, as in DAFormer; `pixels`: only
            confident pixels have a label.
        balanced: lower a class's threshold to where its mean confidence stands below the most confident class's, so
            that rare classes are learned, too (after FreeMatch, arXiv 2205.07246, whose means run over all pixels).
        views: the teacher averages its probabilities over this many turned panoramas, every second one mirrored; 1 is
            the image as it is.
        wrap: the teacher sees full panoramas, whose sides are neighbours, while the network sees crops.
    """

    confidence: Tensor

    def __init__(
        self,
        network: Segmentor,
        terms: Mapping[str, Term],
        derive: Mapping[str, Derivation | None] | None = None,
        teaches: Sequence[str] = ("target",),
        momentum: Annotated[float, Ge(0), Lt(1)] = 0.999,
        ramp: bool = True,
        threshold: Annotated[float, Interval(ge=0, le=1)] = 0.968,
        weighting: Literal["share", "pixels"] = "share",
        balanced: bool = False,
        views: Annotated[int, Ge(1)] = 1,
        wrap: bool = False,
    ):
        super().__init__(network, terms, derive)
        if missing := [domain for domain in teaches if domain not in self.domains]:
            raise ConfigError(
                f"the teacher is to label {', '.join(missing)}, and the terms and `derive` read "
                f"{', '.join(self.domains)}: let a term learn from it, or name another in `teaches`"
            )
        self.teaches, self.momentum, self.ramp, self.threshold = tuple(teaches), momentum, ramp, threshold
        self.weighting, self.balanced, self.views, self.wrap = weighting, balanced, views, wrap
        self.teacher = copy.deepcopy(network).requires_grad_(False).eval()
        # Layers without weights: the teacher's are put in. In a list, so that it is no submodule.
        self._circular = [circular_twin(network)] if wrap and not network.wrap else []
        # Of the pixels predicted as a class, the mean confidence over the last steps; NaN until one was.
        self.register_buffer("confidence", torch.full((network.num_classes,), torch.nan))
        self._sums: list[Tensor] = []  # of the running step: a row of confidences by class, and one of pixels

    def learns_labels_of(self, domain: str) -> bool:
        return domain not in self.teaches and super().learns_labels_of(domain)

    def transferable_modules(self) -> Mapping[str, nn.Module]:
        modules = super().transferable_modules()
        return {name: module for name, module in modules.items() if name != "teacher"}  # it starts as the network

    def train(self, mode: bool = True) -> "MeanTeacher":
        super().train(mode)
        self.teacher.eval()
        return self

    def check(self, images: Mapping[str, Images]) -> None:
        super().check(images)
        for domain in (name for name in self.teaches if name in images):
            if (self.wrap or self.views > 1) and not images[domain].panoramas:
                raise ConfigError(
                    f"wrap={str(self.wrap).lower()} and views={self.views}, for which the teacher must see whole "
                    f"panoramas, and {domain} gives it crops or pinhole images: let its transform have fit=resize and "
                    "panoramas, or set wrap=false and views=1"
                )
            size = images[domain].size
            if self.wrap and size is not None:
                self._check_width(size[0])

    @torch.no_grad()
    def prepare(self, passes: Mapping[str, Pass]) -> None:
        self.teacher.load_state_dict(self.network.state_dict())
        super().prepare({name: Labelled(name, images, self) for name, images in passes.items()})
        self._sums.clear()

    def label(self, batch: Batch) -> Batch:
        return {**batch, **{name: self._labelled(batch[name]) for name in self.teaches if name in batch}}

    def _labelled(self, batch: DomainBatch) -> DomainBatch:
        confidence, label = self.probabilities(batch["image"]).max(1)
        seen = not_black(batch["image"])[:, 0]  # what is padded, or lies beyond a tilted panorama, is nothing
        if self.balanced:
            counts = torch.stack([(confidence * seen).double().flatten(), seen.double().flatten()])
            sums = counts.new_zeros(2, len(self.confidence)).index_add_(1, label.flatten(), counts)
            self._sums.append(sums)
        confident = seen & (confidence >= self.thresholds()[label])
        if self.weighting == "pixels":
            return {**batch, "label": label.where(confident, IGNORE)}
        share = confident.sum((1, 2), keepdim=True) / seen.sum((1, 2), keepdim=True).clamp_min(1)
        return {**batch, "label": label.where(seen, IGNORE), "weight": share.expand(label.shape).contiguous()}

    def thresholds(self) -> Tensor:
        """(K,) by class."""
        if not self.balanced:
            return torch.full_like(self.confidence, self.threshold)
        known = self.confidence.nan_to_num(0.0)
        return self.threshold * (known / known.max()).where(known > 0, 1.0)

    def probabilities(self, image: Tensor) -> Tensor:
        """The teacher's softmax (B,K,H,W) of images (B,3,H,W), averaged over `views`."""
        width, total = image.shape[-1], None
        for number in range(self.views):
            shift, mirrored = number * width // self.views, number % 2 == 1
            view = image.roll(shift, -1)
            found = at_least_single(self._logits(view.flip(-1) if mirrored else view)).softmax(1)
            found = (found.flip(-1) if mirrored else found).roll(-shift, -1)
            total = found if total is None else total + found
        return cast("Tensor", total) / self.views

    def _logits(self, image: Tensor) -> Tensor:
        if not self._circular:
            return self.teacher(image).logits
        self._check_width(image.shape[-1])
        state = {**dict(self.teacher.named_parameters()), **dict(self.teacher.named_buffers())}
        return functional_call(self._circular[0], state, (image,)).logits

    def _check_width(self, width: int) -> None:
        if width % MULTIPLE:
            raise ConfigError(
                f"the teacher's images are {width} pixels wide; wrap=true takes panoramas a multiple of {MULTIPLE} "
                "wide: set the domain's transform.size, or wrap=false"
            )

    @torch.no_grad()
    def after_step(self, step: int) -> dict[str, Tensor]:
        values = super().after_step(step)
        momentum = min(self.momentum, 1 - 1 / (step + 1)) if self.ramp else self.momentum
        averages, news = self.teacher.state_dict(), self.network.state_dict()
        kept = unaveraged_buffers(self.network)
        moved = [name for name in averages if name not in kept]
        get_ema_multi_avg_fn(momentum)([averages[name] for name in moved], [news[name] for name in moved], 0)
        for name in kept:
            averages[name].copy_(news[name])
        if self._sums:
            sums = dist.sum_(torch.stack(self._sums).sum(0))
            self._sums.clear()
            mean = (sums[0] / sums[1].clamp_min(1)).to(self.confidence)
            moved = torch.lerp(mean, self.confidence.where(self.confidence.isfinite(), mean), self.momentum)
            self.confidence.copy_(moved.where(sums[1] > 0, self.confidence))
        return values

    def discard_step(self) -> None:
        super().discard_step()
        self._sums.clear()

    def deployed(self) -> Segmentor:
        return self.teacher


def unaveraged_buffers(network: nn.Module) -> set[str]:
    """The buffers of which an average means nothing, by name: all but BatchNorms' means and variances.

    ECRM's ring of past images is one, with its count: an average of what came one after the other is neither.
    """
    statistics = {
        f"{name}.{part}"
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
        for part in ("running_mean", "running_var")
    }
    return {name for name, _ in network.named_buffers()} & network.state_dict().keys() - statistics


class Labelled(Pass):
    """A pass over a domain's images with the teacher's labels, where it teaches that domain."""

    def __init__(self, domain: str, images: Pass, teacher: MeanTeacher):
        self.label = lambda batch: teacher.label({domain: batch})[domain]
        self.images = images
        super().__init__(map(self.label, images))

    def fold(self, function: Callable[[Tensor, DomainBatch], Tensor], state: Tensor) -> Tensor:
        return self.images.fold(lambda state, batch: function(state, self.label(batch)), state)
