"""A run: its stages in order, each checked before any is run."""

import contextlib
import logging
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from trans4pass import dist
from trans4pass.build import build, find_target
from trans4pass.console import progress_callback, setup_logging
from trans4pass.errors import ConfigError
from trans4pass.hub import hub_name
from trans4pass.interrupts import Interrupted, Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.settings import converted, parse
from trans4pass.storage import write_text
from trans4pass.training import checkpoint

from . import environment
from .context import RunContext, RunSettings
from .folder import claimed, keep_environment
from .launch import CONFIGS
from .outcome import show_outcome
from .stage import Stage

log = logging.getLogger(__name__)

# What configs/train.yaml has for the stages, which hold it themselves, and for experiments' own use.
READ_BY_STAGES = (
    "device", "data_root", "source_class_weights", "published", "precision", "accumulate", "clip_grad", "on_nonfinite",
    "checkpoint_every", "log_every", "judge", "target_labels", "source", "panoramas", "scored", "crop", "source_base",
    "panorama_size", "borders_meet",
)  # fmt: skip


def train(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Run or resume all stages of a composed configuration (configs/train.yaml)."""
    settings = run_settings(config)
    environment.set_switches(settings.threads, settings.deterministic, settings.tf32)
    folder = Path(settings.run_dir)
    with claimed(folder, settings.resume, settings.overwrite, settings.stages):
        keep_environment(folder, settings.threads)
        setup_logging(folder)
        try:
            run_stages(RunContext(settings, config, folder, LabelSpace.from_dict(settings.labels), device, interrupts))
        except Interrupted:
            log.info("%s holds what was done so far: the same command with resume=true goes on", folder)
            raise


def run_settings(config: Mapping[str, Any]) -> RunSettings:
    """The run's settings of a composed configuration; ConfigError where no experiment was chosen."""
    if "stages" not in config:
        known = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
        raise ConfigError(f"choose what to run with experiment=<name>: {', '.join(known)}. Help: --help")
    return parse(RunSettings, {key: value for key, value in config.items() if key not in READ_BY_STAGES}, "")


def run_stages(run: RunContext) -> None:
    """Check all stages, then run those that are not finished, then show what came of it."""
    stages = make_stages(run)
    for stage in stages:
        stage.check_identity()
    if run.settings.prepare_data is not None:
        prepare_data(run, run.settings.prepare_data)
    for stage in stages:
        run.interrupts.check()
        if stage.result() is None:
            stage.check()
    _ = run.validation  # what models are scored on is there, too
    if dist.is_main():  # only now: a refused change must not pass for the run's settings
        write_text(run.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(run.config))))
    results = {}
    for stage in stages:
        run.interrupts.check()
        results[stage.name] = stage.run_or_skip()
    trained = {stage.name: stage for stage in stages if stage.trains}
    final = run.settings.final_stage or list(trained)[-1]
    model, method = itemgetter("model", "method")(trained[final].last_content())  # what the run is for is whole
    if dist.is_main():
        show_outcome(run, trained, final, model, method, results)
        for stage in stages:  # only now: a later stage starts from an earlier one's last.pt
            checkpoint.drop_previous(stage.folder)


def prepare_data(run: RunContext, config: Mapping[str, Any]) -> None:
    """Call the function that makes the run's data exist, with a progress bar.

    Ranks do not work in step here: one that is interrupted waits for the others where all `check`.
    """
    with contextlib.suppress(Interrupted), progress_callback("prepare data", run.interrupts.check_locally) as progress:
        build(config, "prepare_data", progress=progress)


def make_stages(run: RunContext) -> list[Stage]:
    """The enabled stages in order, each knowing which stage it starts from and which ones labelled data before it."""
    stages: dict[str, Stage] = {}
    for name, config in run.settings.stages.items():
        if not converted(bool, config.get("enabled", True), f"stages.{name}.enabled"):
            continue
        kind = find_target(config.get("_target_"), f"stages.{name}")
        if not issubclass(kind, Stage):
            raise ConfigError(f"stages.{name}._target_ is {config['_target_']}, which is no kind of stage")
        labelling = {key: stage for key, stage in stages.items() if stage.labels}
        stages[name] = kind(run, name, config, find_init(name, config.get("init"), stages), labelling)
    trained = [name for name, stage in stages.items() if stage.trains]
    if not trained:
        raise ConfigError("no training stage is enabled: set stages.<name>.enabled=true for at least one")
    if run.settings.final_stage not in (None, *trained):
        raise ConfigError(f"final_stage={run.settings.final_stage} is none of the training stages {', '.join(trained)}")
    refuse_unread_target_labels(run.config)
    return list(stages.values())


def refuse_unread_target_labels(config: Mapping[str, Any]) -> None:
    """Raise ConfigError where labelled panoramas are named, and no stage, enabled or not, would read them."""
    named = config.get("target_labels")
    domains = [domain for stage in config["stages"].values() for domain in (stage.get("domains") or {}).values()]
    if named is not None and all(domain.get("images") is None for domain in domains):
        raise ConfigError(
            f"target_labels={named} has no effect, since no stage of this experiment reads labels of panoramas: take "
            "experiment=few_labels, or set stages.<name>.domains.<domain>.images"
        )


def find_init(name: str, init: Any, stages: Mapping[str, Stage]) -> Stage | str | None:
    """What `init` means: `previous` (training stage), `stages.<name>`, a path or hub name, null: a fresh network."""
    trained = {key: stage for key, stage in stages.items() if stage.trains}
    init = converted(str | None, init, f"stages.{name}.init")
    if init is None:
        return None
    if init == "previous":
        if not trained:
            raise ConfigError(
                f"stages.{name}.init is previous, but no training stage is enabled before it: give "
                f"stages.{name}.init=<path of a checkpoint>, or null to start from a fresh network"
            )
        return list(trained.values())[-1]
    if init.startswith("stages."):
        if init.removeprefix("stages.") not in trained:
            raise ConfigError(
                f"stages.{name}.init={init} is no enabled training stage before it; there are "
                f"{', '.join(f'stages.{key}' for key in trained) or 'none'}"
            )
        return trained[init.removeprefix("stages.")]
    if Path(init).is_dir():
        raise ConfigError(f"stages.{name}.init={init} is a folder, and a stage starts from a file{in_folder(init)}")
    if not Path(init).is_file() and hub_name(init) is None:
        raise ConfigError(
            f"stages.{name}.init={init} is neither previous, stages.<name>, null, a file that exists nor a name on the "
            "hub (user/repo)"
        )
    return init


def in_folder(folder: str) -> str:
    """The checkpoint that a folder's last stage left, in words."""
    stages = [Path(folder) / "last.pt", *Path(folder).glob("*/last.pt")]
    last = max((file for file in stages if file.is_file()), key=lambda file: file.stat().st_mtime, default=None)
    return ": give one" if last is None else f", e.g. {last}, which was written last"
