"""The contract between a method and the trainer."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trans4pass.data import derive_seed
from trans4pass.models import Segmentor

# {"image": uint8 or floating in [0,1], (B,3,H,W); "label": (B,H,W), 255 = none; "name": list of B; "seed": list of B
# numbers, each from its image's place in the run (see `generators`); and, where a method puts them there, "weight":
# (B,H,W) factors on the pixels' losses}
DomainBatch = Mapping[str, Any]
Batch = Mapping[str, DomainBatch]  # by domain


class Images(NamedTuple):
    """What is known of a phase's images before any is loaded."""

    batch: int  # images of a micro-batch
    size: Sequence[int] | None  # width, height in pixels; None: not known
    panoramas: bool  # whole ones, whose sides are neighbours


class Pass(Iterable[DomainBatch]):
    """One pass over a domain's images, not augmented, on the device."""

    def __init__(self, batches: Iterable[DomainBatch]):
        self.batches = batches

    def __iter__(self) -> Iterator[DomainBatch]:
        return iter(self.batches)

    def fold(self, function: Callable[[Tensor, DomainBatch], Tensor], state: Tensor) -> Tensor:
        """What `function` of a state and a batch makes of `state`, batch by batch.

        Unlike a loop over the batches, it can go on where a run was interrupted.
        """
        for batch in self:
            state = function(state, batch)
        return state


class Losses(NamedTuple):
    """What a forward pass gives."""

    losses: dict[str, Tensor]  # weighted scalars by name; their sum is trained on
    values: dict[str, Tensor]  # detached scalars by name, to be logged


class Method(nn.Module):
    """What one training step computes, and all that it must remember: one state_dict resumes it.

    A method owns the network, and whatever else it needs: discriminators, prototypes, a teacher. The trainer looks,
    counts, and learns: per phase `targets`, then `normalisers`, then `forward`, so that labels made in training obey
    the rule of labels from files: N ranks, N accumulated batches and one large batch take the same step.

    The trainer calls `train()` before training, and `eval()` and `train()` around evaluations; a module that must not
    follow (a teacher stays in eval mode) overrides its own `train`.

    Attributes:
        phases: one forward and one backward pass each, in this order, so that two domains' graphs never live at once.
        domains: the domains whose batches the phases read.
    """

    phases: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()

    def __init__(self, network: Segmentor):
        super().__init__()
        self.network = network

    def learns_labels_of(self, domain: str) -> bool:
        """Whether the batches' labels of a domain are learned from, so that it must have some."""
        return True

    def trained_modules(self) -> Mapping[str, nn.Module]:
        """What optimisers may train, by the names in a configuration."""
        return {"network": self.network}

    def transferable_modules(self) -> Mapping[str, nn.Module]:
        """What another stage takes over where it has a module of the same name that fits; by default all children.

        What is to be handed on is a child: the method's own buffers are not.
        """
        return dict(self.named_children())

    def check(self, images: Mapping[str, Images]) -> None:
        """Called before a run begins: refuse, with a `ConfigError`, domains' images that the method is not for."""

    def prepare(self, passes: Mapping[str, Pass]) -> None:
        """Called once before step 0, with a pass over each domain's images; what takes long is a `Pass.fold`.

        The network has its start by now: copies of it that were made in the constructor do not.
        """

    def set_step(self, step: int) -> None:
        """Called before training step number `step` (from 0)."""

    def targets(self, phase: str, batch: Batch) -> Batch:
        """What this phase learns from, without gradient: by default the batch as it was loaded.

        A teacher puts its labels and weights here; images are mixed and masked here.
        """
        return batch

    def normalisers(self, phase: str, batch: Batch) -> dict[str, Tensor]:
        """What this phase's losses divide by; the trainer averages it over micro-batches and ranks."""
        return {}

    def forward(self, phase: str, batch: Batch, norms: Mapping[str, Tensor]) -> Losses:
        """The losses of one micro-batch.

        On several processes every phase must touch every parameter that gets a gradient (see `untouched`).
        """
        raise NotImplementedError

    def after_step(self, step: int) -> dict[str, Tensor]:
        """Called on every rank after the optimisers' step number `step` (from 0); returns values to log."""
        return {}

    def before_checkpoint(self) -> None:
        """Called on every rank before rank 0 saves the state: bring together what each has collected by itself."""

    def discard_step(self) -> None:
        """Called instead of `after_step` where a step is skipped: forget what its forward passes collected."""

    def deployed(self) -> Segmentor:
        """What is scored, kept as best, exported and handed on: the network or its average, a module of this method."""
        return self.network


def generators(batch: DomainBatch, number: int = 0) -> list[torch.Generator]:
    """A random generator on the CPU for each image, which follow from the images' places in the run.

    Whatever is drawn from them is the same in one process, in several and in a run that goes on; torch's own generator
    has another state in each process. With another `number` an image has other ones.
    """
    return [torch.Generator().manual_seed(derive_seed(int(seed), number)) for seed in batch["seed"]]


def untouched(tensors: Iterable[Tensor]) -> Tensor:
    """Zero that depends on all of `tensors`: DDP waits for the gradient of every parameter in every last phase."""
    return 0 * torch.stack([tensor.mean(dtype=torch.float32) for tensor in tensors]).sum()
