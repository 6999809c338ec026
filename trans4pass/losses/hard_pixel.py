"""Cross-entropies over the hardest pixels of class logits (B,K,H,W) and labels (B,H,W), 255 = no label."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from pydantic import PositiveFloat
from torch import Tensor

from trans4pass.labels import IGNORE
from trans4pass.settings import Natural, Positive

from .pixel import CrossEntropy, PixelLoss, safe_ratio

PositiveShare = Annotated[float, Interval(gt=0, le=1)]


class HardPixelCrossEntropy(PixelLoss):
    """Mean over the images of each image's mean cross-entropy over its k hardest pixels (AOT, arXiv 2106.02638).

    k = (r * top + 1 - r) * N, rounded down and at least 1, with N the image's labelled pixels and
    r = min(1, step / mining_steps): from all pixels at step 0 to the share `top`. Images without labels are not in the
    mean. On purpose different from the official code: N leaves out the ignored pixels, which are no easy ones.

    Args:
        top: share of the labelled pixels that is kept in the end.
        mining_steps: step at which the share reaches `top`; 0 = at once.
    """

    def __init__(self, top: PositiveShare = 0.15, mining_steps: Natural = 100_000):
        super().__init__()
        self.top, self.mining_steps, self.step = top, mining_steps, 0

    def set_step(self, step: int) -> None:
        self.step = step

    def share(self) -> float:
        """Share of the labelled pixels kept at this step."""
        ratio = min(self.step / self.mining_steps, 1.0) if self.mining_steps else 1.0
        return ratio * self.top + (1 - ratio)

    def normaliser(self, labels: Tensor) -> Tensor:
        """Number of images with any label, a float scalar."""
        return (labels != IGNORE).flatten(1).any(1).sum().float()  # B,H,W -> B,N

    def total(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        losses = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none")
        losses = losses if weights is None else losses * weights
        kept = (self.share() * (labels != IGNORE).flatten(1).sum(1).double()).floor().clamp(min=1)  # B,H,W -> B,N
        # An ignored pixel's loss is 0, the least there is; images without labels have nothing else.
        hardest = losses.flatten(1).sort(1, descending=True).values  # B,H,W -> B,N
        rank = torch.arange(hardest.shape[1], device=losses.device)
        return (hardest.where(rank < kept[:, None], 0).sum(1) / kept.to(losses.dtype)).sum()


class OHEMCrossEntropy(CrossEntropy):
    """Cross-entropy over the pixels that are hard: true-class probability below `threshold`, or among the hardest.

    Online hard example mining as the official source training has it: at least `min_kept` pixels of this process's
    batch are kept (all, if fewer have labels), and the mean divides by the sum of their class weights. Which pixels are
    kept depends on the logits, so each process and micro-batch takes its own mean, and these are averaged. Neither
    class weights nor pixel weights decide what is hard.

    Args:
        threshold: probability.
        min_kept: number of pixels.
        class_weights: as in `CrossEntropy`.
    """

    def __init__(
        self,
        threshold: PositiveShare = 0.7,
        min_kept: Positive = 100_000,
        class_weights: Sequence[PositiveFloat] | None = None,
    ):
        super().__init__(class_weights)
        self.threshold, self.min_kept = threshold, min_kept

    def normaliser(self, labels: Tensor) -> Tensor:
        """1 where the batch has any label, else 0, a float scalar: a batch counts as one."""
        return (labels != IGNORE).any().float()

    def total(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        labels = labels.where(self.hard(logits.detach(), labels), IGNORE)
        return safe_ratio(super().total(logits, labels, weights), super().normaliser(labels))

    def hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether each pixel is kept, (B,H,W) bool."""
        labelled = labels != IGNORE
        losses = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none").where(labelled, -1)
        most = losses.flatten().topk(min(self.min_kept, losses.numel())).values
        # The last one kept, where fewer pixels than min_kept have labels the last of those; no host is asked for it.
        last = most.gather(0, (labelled.sum().clamp(1, len(most)) - 1)[None])
        return labelled & ((losses > -math.log(self.threshold)) | (losses >= last))
