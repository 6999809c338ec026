"""Cross-entropies over the hardest pixels of class logits (B,K,H,W) and labels (B,H,W), 255 = no label."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trans4pass.errors import ConfigError
from trans4pass.labels import IGNORE

from .pixel import CrossEntropy, PixelLoss, at_least_single, safe_ratio


class HardPixelCrossEntropy(PixelLoss):
    """Mean over the images of each image's mean cross-entropy over its k hardest pixels (AOT, arXiv 2106.02638).

    k = (r * top + 1 - r) * N, rounded down and at least 1, with N the image's labelled pixels and
    r = min(1, step / mining_steps): from all pixels at step 0 to the share `top`. Images without labels are not in the
    mean. On purpose different from the official code: N leaves out the ignored pixels, which are no easy ones.

    Args:
        top: share of the labelled pixels that is kept in the end, in (0,1].
        mining_steps: step at which the share reaches `top`, >= 0; 0 = at once.
    """

    def __init__(self, top: float = 0.15, mining_steps: int = 100_000):
        super().__init__()
        if not 0 < top <= 1 or mining_steps < 0:
            raise ConfigError(f"top must be in (0, 1] and mining_steps >= 0, got {top} and {mining_steps}")
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

    def forward(
        self, logits: Tensor, labels: Tensor, normaliser: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        losses = F.cross_entropy(at_least_single(logits), labels.long(), ignore_index=IGNORE, reduction="none")
        kept = (self.share() * (labels != IGNORE).flatten(1).sum(1).double()).floor().clamp(min=1)  # B,H,W -> B,N
        # An ignored pixel's loss is 0, the least there is; images without labels have nothing else.
        hardest, order = losses.flatten(1).sort(1, descending=True)  # B,H,W -> B,N
        if weights is not None:
            hardest = hardest * weights.flatten(1).gather(1, order)
        rank = torch.arange(hardest.shape[1], device=losses.device)
        total = (hardest.where(rank < kept[:, None], 0).sum(1) / kept.to(losses.dtype)).sum()
        return safe_ratio(total, self.normaliser(labels) if normaliser is None else normaliser)


class OHEMCrossEntropy(CrossEntropy):
    """Cross-entropy over the pixels that are hard: true-class probability below `threshold`, or among the hardest.

    Online hard example mining as the official source training has it: at least `min_kept` pixels of this process's
    batch are kept (all, if fewer have labels), and the mean divides by the sum of their class weights. Which pixels are
    kept depends on the logits, so each process and micro-batch takes its own mean, and these are averaged.

    Args:
        threshold: probability in (0,1].
        min_kept: number of pixels >= 1.
        class_weights: as in `CrossEntropy`; they do not decide what is hard.
    """

    def __init__(self, threshold: float = 0.7, min_kept: int = 100_000, class_weights: Sequence[float] | None = None):
        super().__init__(class_weights)
        if not 0 < threshold <= 1 or min_kept < 1:
            raise ConfigError(f"threshold must be in (0, 1] and min_kept >= 1, got {threshold} and {min_kept}")
        self.threshold, self.min_kept = threshold, min_kept

    def normaliser(self, labels: Tensor) -> Tensor:
        """1 where the batch has any label, else 0, a float scalar: a batch counts as one."""
        return (labels != IGNORE).any().float()

    def forward(
        self, logits: Tensor, labels: Tensor, normaliser: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        labels = labels.where(self.hard(logits.detach(), labels), IGNORE)
        mean = super().forward(logits, labels, super().normaliser(labels), weights)
        return safe_ratio(mean, self.normaliser(labels) if normaliser is None else normaliser)

    def hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether each pixel is kept, (B,H,W) bool."""
        labelled = labels != IGNORE
        losses = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="none").where(labelled, -1)
        most = losses.flatten().topk(min(self.min_kept, losses.numel())).values
        # The last one kept, where fewer pixels than min_kept have labels the last of those; no host is asked for it.
        last = most.gather(0, (labelled.sum().clamp(1, len(most)) - 1)[None])
        return labelled & ((losses > -math.log(self.threshold)) | (losses >= last))
