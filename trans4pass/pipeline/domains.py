"""What a training stage reads: its domains, each a data set with views, a sampler and a batch size."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.utils.data import Subset

from trans4pass import dist
from trans4pass.build import build, check_settings
from trans4pass.console import track
from trans4pass.data import EvalTransform, Mixture, SegmentationDataset, TrainTransform, View, eval_loader, train_loader
from trans4pass.errors import ConfigError
from trans4pass.methods import DomainBatch, Images, Pass
from trans4pass.models import MULTIPLE, as_float, channel_statistics
from trans4pass.settings import Positive, parse
from trans4pass.training import checkpoint, to_device

from .stage import Stage

log = logging.getLogger(__name__)

TRUTH, NO_LABELS = "truth", "none"
FIRST_PASS = "first_pass"  # a stage's folder of what its first passes have so far
SAVE_EVERY = 300  # seconds
STATISTICS_IMAGES = 256


@dataclass(frozen=True)
class DomainSettings:
    """See configs/domain/domain.yaml."""

    data: str | Mapping[str, PositiveFloat]
    split: str
    labels: str
    batch_size: Positive | None
    sampler: Mapping[str, Any]
    transform: Mapping[str, Any]
    images: str | Positive | None = None


class Domain:
    """One domain of a training stage.

    Attributes:
        labelling: the stage that labels it, None where that is none.
        batch_size: images of one of this process's batches.
        shares: the number of processes that a step's images are divided among; with more, some repeat what others do.
    """

    def __init__(self, stage: Stage, name: str, config: Mapping[str, Any], global_batch: int | None, accumulate: int):
        self.stage, self.run, self.name, self.where = stage, stage.run, name, f"{stage.where}.domains.{name}"
        self.settings = parse(DomainSettings, config, self.where)
        own = self.settings.batch_size
        batch = divided(global_batch, accumulate, stage.where) if own is None else (own, dist.world_size())
        self.batch_size, self.shares = batch
        self.images_per_step = self.batch_size * self.shares * accumulate
        labels, data = self.settings.labels, self.settings.data
        self.labelling = None if labels in (TRUTH, NO_LABELS) else stage.labelling.get(labels)
        if self.labelling is None and labels not in (TRUTH, NO_LABELS):
            raise ConfigError(
                f"{self.where}.labels={labels} is neither {TRUTH}, {NO_LABELS} nor an enabled labelling stage before "
                f"it ({', '.join(stage.labelling) or 'there is none'})"
            )
        if self.labelling is not None and not isinstance(data, str):
            raise ConfigError(
                f"{self.where}.labels={labels} are of one data set, and data has {', '.join(data)}: let a teacher "
                "label several (experiment=pin2pan_teacher)"
            )

    @cached_property
    def view(self) -> View:
        return build(self.settings.transform, f"{self.where}.transform")

    @cached_property
    def files(self) -> SegmentationDataset:
        """The training set as it lies on disk, with its view, without pseudo-labels, which may not exist yet."""
        settings, sides = self.settings, self.settings.data
        seed = self.run.seed(self.stage.name, self.name, "augmentation")
        how: dict[str, Any] = {"labelled": settings.labels == TRUTH, "seed": seed}
        if isinstance(sides, str):
            how |= {} if settings.images is None else {"names": self.chosen_images()}
            dataset = self.run.dataset(sides, settings.split, self.where, **how)
        else:
            if not sides:
                raise ConfigError(f"{self.where}.data is empty: give the name of a data set, or {{name: weight, ...}}")
            if settings.images is not None:
                raise ConfigError(f"{self.where}.images chooses from one data set, and data has {', '.join(sides)}")
            parts = {side: self.run.dataset(side, settings.split, self.where, **how) for side in sides}
            dataset = Mixture(parts, list(sides.values()))
        dataset.notes = self.stage.folder / f"notes_{self.name}"
        return dataset.with_transform(self.view)

    def chosen_images(self) -> list[str]:
        """The names that `images` means: those of a text file, or that many, drawn by the run's seed."""
        chosen, settings = self.settings.images, self.settings
        if isinstance(chosen, int):
            items = self.run.dataset(str(settings.data), settings.split, self.where, labelled=False).items
            if chosen > len(items):
                raise ConfigError(f"{self.where}.images={chosen}, and there are {len(items)} in data.{settings.data}")
            generator = torch.Generator().manual_seed(self.run.seed("images"))
            drawn = torch.randperm(len(items), generator=generator)[:chosen].tolist()
            return [items[index].name for index in sorted(drawn)]
        try:
            lines = [line.strip() for line in Path(str(chosen)).read_text("utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.where}.images={chosen} cannot be read ({error}): give a text file with the name of an image on "
                "each line (as tools/check_data.py lists them), or how many are to be drawn"
            ) from error
        names = [line for line in lines if line and not line.startswith("#")]
        if not names:
            raise ConfigError(f"{self.where}.images={chosen} names no image: give it one on each line")
        return names

    @cached_property
    def dataset(self) -> SegmentationDataset:
        """The training set that batches are read from."""
        if self.labelling is None:
            return self.files
        left_out = (self.labelling.result() or {}).get("left_out", ())
        return self.files.relabelled(self.labelling.folder / "labels", without=left_out)

    @property
    def unaugmented(self) -> SegmentationDataset:
        """The images as they are: at the training size, or whole where training crops them."""
        size = self.view.size if isinstance(self.view, TrainTransform) and not self.view.crops else None
        return self.dataset.with_transform(EvalTransform(size))

    def batches(self, start: int, dataset: SegmentationDataset | None = None) -> Iterator[DomainBatch]:
        """This rank's endless batches, from number `start` on; of another data set than its own, such as `files`."""
        seed = self.run.seed(self.stage.name, self.name, "order")
        dataset = self.dataset if dataset is None else dataset
        sampler = build(self.settings.sampler, f"{self.where}.sampler", dataset=dataset, seed=seed)
        batch_size, workers = self.batch_size, self.run.settings.num_workers
        return train_loader(dataset, sampler, batch_size, workers, start, self.stage.bad, self.shares)

    def samples(self, count: int) -> Iterator[dict[str, Any]]:
        """A few unaugmented samples, spread over the set, as batches of one."""
        spread = max(1, len(self.dataset) // count)
        return islice(eval_loader(self.unaugmented, rank=0, world_size=spread, on_bad=self.stage.bad), count)

    def check_sampler(self) -> None:
        """Refuse a sampler that the data set, or what is known of it, is not for."""
        sampler = check_settings(self.settings.sampler, f"{self.where}.sampler", bound=("dataset", "seed"))
        several, chosen = self.settings.data, f"{self.where}.sampler={sampler.__name__}"
        if getattr(sampler, "needs_labels", False) and self.settings.labels == NO_LABELS:
            raise ConfigError(f"{chosen} reads labels, and labels is {NO_LABELS}")
        weighs = getattr(sampler, "needs_weights", False)
        if weighs and isinstance(several, str):
            raise ConfigError(f"{chosen} draws from several data sets: give data={{name: weight, ...}}")
        if not weighs and not isinstance(several, str) and len(set(several.values())) > 1:
            raise ConfigError(
                f"{self.where}.data has weights, which sampler={sampler.__name__} does not read: set "
                f"{self.where}.sampler._target_=trans4pass.data.Mixed, or make all weights equal"
            )

    @property
    def gives_panoramas(self) -> bool:
        """Whether its images are whole panoramas, or made of several pinhole images around one."""
        return (self.files.panorama or self.view.images > 1) and not self.view.crops

    @property
    def seen(self) -> Images:
        return Images(self.batch_size, self.view.size, self.gives_panoramas)

    def check_circular(self) -> None:
        """What a network for full panoramas is given: refuse widths that cannot be, point out what is no panorama."""
        size = self.view.size
        if size is not None and size[0] % MULTIPLE:
            raise ConfigError(
                f"{self.where}.transform.size is {size[0]} wide; wrap=true needs a multiple of {MULTIPLE}"
            )
        if not self.gives_panoramas:
            log.warning("%s gives images that are no full panoramas, and model.wrap=true joins their sides", self.where)


class FirstPass(Pass):
    """This rank's share of a pass over a domain's images; what `fold` has so far is kept in the stage's folder."""

    def __init__(self, domain: Domain, batch_size: int):
        super().__init__(self.without(()))
        self.domain, self.batch_size, self.folds = domain, batch_size, 0
        self.title = f"{domain.stage.name}: first pass, {domain.name}"

    def without(self, done: Collection[str]) -> Iterator[DomainBatch]:
        """The batches, without the images of these names."""
        domain, run, dataset = self.domain, self.domain.run, self.domain.unaugmented
        share = range(dist.rank(), len(dataset), dist.world_size())
        left = Subset(dataset, [index for index in share if dataset.items[index].name not in done])
        loader = eval_loader(left, run.settings.num_workers, 0, 1, domain.stage.bad, self.batch_size)
        tracked = track(loader, len(loader), self.title)
        for batch in run.interrupts.between(tracked, dist.largest_share(len(dataset))):
            yield to_device({domain.name: batch}, run.device)[domain.name]

    def file_name(self) -> str:
        """Of another number of processes no file is read: their shares are others."""
        return f"{self.domain.name}_{self.folds}_rank{dist.rank()}of{dist.world_size()}.pt"

    def fold(self, function: Callable[[Tensor, DomainBatch], Tensor], state: Tensor) -> Tensor:
        self.folds += 1
        path = self.domain.stage.folder / FIRST_PASS / self.file_name()
        kept = checkpoint.load_latest(path) or {"state": state, "names": []}
        state, names, saved = kept["state"].to(state), set(kept["names"]), time.monotonic()
        if names:
            log.info("%s: goes on behind %d images", self.title, len(names))
        try:
            for batch in self.without(names):
                state = function(state, batch)
                names.update(batch["name"])
                if time.monotonic() > saved + SAVE_EVERY:
                    checkpoint.save({"state": state, "names": sorted(names)}, path)
                    saved = time.monotonic()
        finally:
            checkpoint.save({"state": state, "names": sorted(names)}, path)
            log.info("%s: %d images are done and kept", self.title, len(names))
        return state


def divided(global_batch: int | None, accumulate: int, where: str) -> tuple[int, int]:
    """The images of one of a process's batches, and the number of processes that a step's images are divided among.

    Raises:
        ConfigError: they cannot be divided; more processes than images can be a multiple of them.
    """
    if global_batch is None:
        raise ConfigError(f"{where}.global_batch is null: give it a number, or each of its domains a batch_size")
    processes = dist.world_size()
    batch, rest = divmod(global_batch, accumulate)
    shares = min(batch, processes)
    if rest or batch % shares or processes % shares:
        raise ConfigError(
            f"{where}.global_batch={global_batch} cannot be divided among {processes} processes times "
            f"accumulate={accumulate}: choose numbers that fit, or give each domain a batch_size, which is a process's"
        )
    return batch // shares, shares


def with_class_weights(config: Any, where: str, domains: Mapping[str, Domain], domain: str, ahead: bool) -> Any:
    """A method's configuration with every `class_weights: auto` counted on the domain that its term learns from.

    With `ahead` nothing is counted yet, and the weights are left out.

    Raises:
        ConfigError: class weights that are no list of one number per class.
    """
    if not isinstance(config, Mapping):
        return config
    domain = config.get("domain", domain)
    result = {key: with_class_weights(v, f"{where}.{key}", domains, domain, ahead) for key, v in config.items()}
    weights = result.get("class_weights")
    if weights == "auto" and domain not in domains:
        raise ConfigError(
            f"{where}.class_weights is auto, which counts the labels of a loaded domain ({', '.join(domains)}), and "
            f"{domain!r} is made by the method: give a list of one number per class, or null"
        )
    labels = next(iter(domains.values())).run.labels
    if weights == "auto":
        result["class_weights"] = None if ahead else counted_class_weights(domains[domain])
    elif weights is not None and (isinstance(weights, str) or len(weights) != labels.num_classes):
        raise ConfigError(
            f"{where}.class_weights is {weights}; it must be null, auto, or a list of one number for each of the "
            f"{labels.num_classes} classes of labels/{labels.name} (source_class_weights=... sets it for all "
            "adaptation stages)"
        )
    return result


def counted_class_weights(domain: Domain) -> list[float]:
    """Class weights 1 / ln(1.1 + share of the class among the labelled pixels), kept in the stage's folder.

    The published list fits the same formula with shares of all pixels, the ignored ones included.
    """
    classes = domain.run.labels.classes

    def count() -> dict[str, float]:
        log.info("counting the classes of %d labels for class_weights=auto", len(domain.dataset))
        counts = domain.dataset.class_counts().double()
        weights = [round(1 / math.log(1.1 + share), 4) for share in (counts / counts.sum()).tolist()]
        return dict(zip(classes, weights, strict=True))

    file, again = f"class_weights_{domain.name}.json", "the classes are counted again"
    return list(domain.stage.remembered(file, classes, again, count).values())


def counted_channel_statistics(domain: Domain) -> dict[str, list[float]]:
    """Mean over up to 256 images of their channels' means and deviations, in [0,1]; every rank must call it."""
    dataset = domain.files.with_transform(None)
    spread = Subset(dataset, range(0, len(dataset), -(-len(dataset) // STATISTICS_IMAGES)))
    loader = eval_loader(spread, domain.run.settings.num_workers, on_bad=domain.stage.bad)
    tracked = track(loader, len(loader), f"{domain.stage.name}: channel statistics of {domain.name}")
    batches = domain.run.interrupts.between(tracked, dist.largest_share(len(spread)))
    pairs = [torch.stack(channel_statistics(as_float(batch["image"]))).flatten(1) for batch in batches]
    everyones = [pair for share in dist.gather_objects(pairs) for pair in share]
    mean, std = torch.stack(everyones).double().mean(0).tolist()
    return {"mean": [round(x, 5) for x in mean], "std": [round(x, 5) for x in std]}
