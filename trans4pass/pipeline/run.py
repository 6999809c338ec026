"""A run: its folder, its stages in order, its report."""

import contextlib
import fcntl
import logging
import secrets
import shutil
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from trans4pass import dist
from trans4pass.errors import ConfigError, DamagedFile, UserError, WeightsError, mapping, true_or_false
from trans4pass.labels import LabelSpace
from trans4pass.models import input_size
from trans4pass.models.benchmark import complexity
from trans4pass.storage import read_json, write_json, write_text, writing

from . import checkpoint, environment
from .build import build
from .evaluation import Predictor
from .interrupt import Interrupted, Interrupts
from .label_stage import LabelStage
from .log import console, progress_bar, setup_logging
from .pictures import write_picture
from .report import Gallery, comparison, goal, summarise, table
from .run import Run, build_network
from .stage import Stage, part
from .train_stage import TrainStage

log = logging.getLogger(__name__)

KINDS: dict[str, type[Stage]] = {"train": TrainStage, "labels": LabelStage}
EXPERIMENTS = Path(__file__).parents[2] / "configs" / "experiment"
PANORAMAS = 4  # in the final picture
PATIENCE = 10  # seconds until a file that one machine wrote is seen by the others
SWITCHES = ("resume", "overwrite", "deterministic", "tf32", "channels_last", "compile", "recompute_activations")


def train(config: Mapping[str, Any], device: torch.device, interrupts: Interrupts) -> None:
    """Run or resume all stages of a composed configuration (configs/train.yaml)."""
    if "stages" not in config:
        known = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
        raise ConfigError(f"choose what to run with experiment=<name>: {', '.join(known)}. Help: --help")
    check_outline(config)
    environment.set_switches(config["threads"], config["deterministic"], config["tf32"])
    folder = Path(config["run_dir"])
    with claimed(folder, config["resume"], config["overwrite"], config["stages"]):
        keep_environment(folder, config)
        setup_logging(folder)
        try:
            run_stages(Run(config, folder, LabelSpace.from_dict(config["labels"]), device, interrupts))
        except Interrupted:
            log.info("%s holds what was done so far: the same command with resume=true goes on", folder)
            raise


def check_outline(config: Mapping[str, Any]) -> None:
    """Raise ConfigError where the configuration's own parts are not what the rest relies on."""
    for name in SWITCHES:
        true_or_false(name, config[name])
    if not isinstance(config["seed"], int):
        raise ConfigError(f"seed must be a whole number, got {config['seed']!r}")
    mapping("model", config["model"])
    mapping("evaluate", config["evaluate"])
    for side, data in mapping("data", config["data"]).items():
        if not {"dataset", "eval_size"} <= mapping(f"data.{side}", data).keys():
            raise ConfigError(f"data.{side} must have dataset and eval_size, it has {', '.join(data) or 'nothing'}")
        mapping(f"data.{side}.dataset", data["dataset"])
    for name, stage in mapping("stages", config["stages"]).items():
        true_or_false(f"stages.{name}.enabled", mapping(f"stages.{name}", stage).get("enabled", True))


def run_stages(run: Run) -> None:
    """Check all stages, then run those that are not finished, then report."""
    stages = make_stages(run)
    for stage in stages:
        stage.check_settings()
    if run.config["prepare_data"] is not None:
        prepare_data(run)
    for stage in stages:
        run.interrupts.check()
        if stage.result() is None:
            stage.check()
    run.check_validation()
    if dist.is_main():  # only now: a refused change must not pass for the run's settings
        write_text(run.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(run.config))))
    results = {}
    for stage in stages:
        run.interrupts.check()
        results[stage.name] = stage.run_or_skip()
    trained = {stage.name: stage for stage in stages if isinstance(stage, TrainStage)}
    final = run.config["final_stage"] or list(trained)[-1]
    trained[final].last_state()  # what the run is for is whole
    if dist.is_main():
        report(run, trained, final, results)
        for stage in stages:  # only now: a later stage starts from an earlier one's last.pt
            checkpoint.drop_previous(stage.folder)


def prepare_data(run: Run) -> None:
    """Call the function that makes the run's data exist, with a progress bar.

    Ranks do not work in step here: one that is interrupted waits for the others where all `check`.
    """
    with progress_bar() as bar:
        task = bar.add_task("prepare data", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            run.interrupts.check_alone()

        with contextlib.suppress(Interrupted):
            build(run.config["prepare_data"], "prepare_data", progress=progress)


def make_stages(run: Run) -> list[Stage]:
    """The enabled stages in order, each knowing which stage it starts from and which ones labelled data before it."""
    stages: dict[str, Stage] = {}
    for name, config in run.config["stages"].items():
        if not config.get("enabled", True):
            continue
        kind = config.get("kind")
        if str(kind) not in KINDS:
            raise ConfigError(f"stages.{name}.kind is {kind!r}, it must be one of {', '.join(KINDS)}")
        labelling = {key: stage for key, stage in stages.items() if isinstance(stage, LabelStage)}
        stages[name] = KINDS[kind](run, name, config, find_init(name, config, stages), labelling)
    trained = [name for name, stage in stages.items() if isinstance(stage, TrainStage)]
    if not trained:
        raise ConfigError("no training stage is enabled: set stages.<name>.enabled=true for at least one")
    if run.config["final_stage"] not in (None, *trained):
        raise ConfigError(
            f"final_stage={run.config['final_stage']} is none of the training stages {', '.join(trained)}"
        )
    return list(stages.values())


def find_init(name: str, config: Mapping[str, Any], stages: Mapping[str, Stage]) -> Stage | str | None:
    """What `init` means: `previous` (training stage), `stages.<name>`, a path, or null for a fresh network."""
    init = config.get("init")
    trained = {key: stage for key, stage in stages.items() if isinstance(stage, TrainStage)}
    if init is None:
        return None
    if init == "previous":
        if not trained:
            raise ConfigError(
                f"stages.{name}.init is previous, but no training stage is enabled before it: give "
                f"stages.{name}.init=<path of a checkpoint>, or null to start from a fresh network"
            )
        return list(trained.values())[-1]
    if not isinstance(init, str):
        raise ConfigError(f"stages.{name}.init is {init}; it must be previous, stages.<name>, null or one file's path")
    if init.startswith("stages."):
        if init.removeprefix("stages.") not in trained:
            raise ConfigError(
                f"stages.{name}.init={init} is no enabled training stage before it; there are "
                f"{', '.join(f'stages.{key}' for key in trained) or 'none'}"
            )
        return trained[init.removeprefix("stages.")]
    if not Path(init).is_file():
        raise ConfigError(f"stages.{name}.init={init} is neither previous, stages.<name>, null nor a file that exists")
    return init


# ---- the folder ----


@contextmanager
def claimed(folder: Path, resume: bool, overwrite: bool, stages: Collection[str]) -> Iterator[None]:
    """Hold the run folder for this run, whose stages have these names; rank 0 decides for all.

    Raises:
        ConfigError: it holds a run and neither resume nor overwrite is set, another process is writing it, it cannot be
            written to, it holds stages that cannot be told, or not all ranks see it.
    """
    problem, mark = None, folder / f".seen-by-all-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as held:
        if dist.is_main():
            try:
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(locked(folder))
                    refuse_or_clear(folder, resume, overwrite, stages)
                    mark.touch()
            except UserError as error:
                problem = str(error)
        problem, mark = dist.broadcast_object((problem, mark.name))
        if problem:
            raise ConfigError(problem)
        check_shared(folder, mark)
        yield


def check_shared(folder: Path, mark: str) -> None:
    """Raise ConfigError on all ranks unless each sees the file `mark` that rank 0 has made in the folder.

    Ranks with folders of their own would go on from checkpoints of their own, and wait for each other for ever.
    """
    until = time.monotonic() + PATIENCE
    while not (seen := (folder / mark).exists()) and time.monotonic() < until:
        time.sleep(0.2)
    ranks = dist.gather_objects((seen, f"rank {dist.rank()} on {socket.gethostname()} ({folder.absolute()})"))
    if dist.is_main():
        (folder / mark).unlink(missing_ok=True)
    blind = [where for seen, where in ranks if not seen]
    if blind:
        raise ConfigError(
            f"run_dir must be one folder that all processes share. What {ranks[0][1]} wrote is not seen by "
            f"{', '.join(blind)}: give a run_dir on a disk that all machines have, by its absolute path"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A POSIX record lock: unlike flock it is not inherited by data workers, so it ends with this process."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ConfigError(
                f"another process is running in {folder}: wait for it, or set another name=..."
            ) from error
        yield


def refuse_or_clear(folder: Path, resume: bool, overwrite: bool, stages: Collection[str]) -> None:
    """Let a run into an empty folder, into its own with resume, into a cleared one with overwrite."""
    if resume and overwrite:
        raise ConfigError("resume=true continues a run and overwrite=true deletes it: set one of them")
    begun = [child for child in folder.iterdir() if is_stage(child)]
    for child in folder.iterdir():
        if child not in begun and is_in_the_way(child, stages):
            raise ConfigError(
                f"{child} may be a stage of a run, and its settings.json, which tells what it was begun with, is "
                f"missing or damaged: put that back, delete {child} to do the stage again, or give the run another "
                "name=..."
            )
    if begun and resume:
        return
    if begun and not overwrite:
        raise ConfigError(
            f"{folder} holds a run: resume=true continues it, overwrite=true deletes it and starts over, "
            "name=... makes another"
        )
    for child in begun:
        shutil.rmtree(child)
    # Also what a start left that was refused before its first stage.
    for name in ("config.yaml", "environment.json", "git.diff", "run.log", "summary.json", "panoramas.png"):
        (folder / name).unlink(missing_ok=True)


def is_stage(folder: Path) -> bool:
    """Whether a folder is a stage's: other programs also write files called settings.json."""
    try:
        return read_json(folder / "settings.json", ("stage", "inputs", "seed"), "") is not None
    except DamagedFile:
        return False


def is_in_the_way(folder: Path, stages: Collection[str]) -> bool:
    """Whether a folder that is no stage's holds what a stage would take for its own, or what only a stage leaves."""
    if not folder.is_dir():
        return folder.name in stages
    left = {child.name for child in folder.iterdir() if child.suffix != ".writing"}
    return bool(left & {"last.pt", "last.pt.previous", "best.pt", "done.json"} or (left and folder.name in stages))


def keep_environment(folder: Path, config: Mapping[str, Any]) -> None:
    """Write what the run is made on; a resumed run takes over the number of CPU threads that results depend on."""
    path, threads = folder / "environment.json", torch.get_num_threads()
    fix = (
        "it says how many CPU threads the run was begun with, which its results depend on. Delete it to go on with "
        f"{threads}, if these were as many"
    )
    known = read_json(path, ("threads",), fix)
    dist.barrier()
    if known is None:
        if dist.is_main():
            if any(is_stage(child) for child in folder.iterdir()):
                log.warning("%s is missing: the run goes on with %d CPU threads", path, threads)
            write_json(path, environment.record(folder))
        return
    if config["threads"] not in (None, known["threads"]):
        raise ConfigError(
            f"the run in {folder} was begun with {known['threads']} CPU threads, which its results depend on: leave "
            "threads out, or give the run another name=..."
        )
    torch.set_num_threads(known["threads"])


# ---- the report ----


def report(run: Run, trained: dict[str, Stage], final: str, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the table, write summary.json and the picture, and say where they are."""
    sets = dict(run.validation())
    side = goal(run.sides) or next(iter(sets), None)
    network = build_network(run.meta()["model"], run.labels)
    size = (512, 512) if side is None else input_size(network, sets[side][0]["image"].shape[1:], 1.0)
    parameters, gmacs = complexity(network, *size)
    model = {"config": run.meta()["model"], "parameters": parameters, "gmacs": round(gmacs, 3), "size": [*size[::-1]]}
    summary = summarise(run.config["name"], run.config["seed"], results, final, model)
    write_json(run.folder / "summary.json", summary)
    console.print(table(summary))
    written = [run.folder / "summary.json", run.folder / "run.log"]
    if side is not None:
        picture = comparison(predictions(run, sets[side], [next(iter(trained.values())), trained[final]]), run.labels)
        write_picture(run.folder / "panoramas.png", picture)
        written.insert(0, run.folder / "panoramas.png")
    console.print(*(f"wrote {path}" for path in written), sep="\n", soft_wrap=True)


def predictions(run: Run, dataset: Any, trained: list[Stage]) -> dict[str, list[torch.Tensor]]:
    """Headings and pictures of a few images: the image, the first and the last stage's prediction, the truth."""
    chosen = {stage.name: stage for stage in trained}
    gallery = Gallery(dataset.labels, PANORAMAS)
    step = max(1, len(dataset) // PANORAMAS)
    samples = [dataset[index] for index in range(0, len(dataset), step)][:PANORAMAS]
    rows = {"image": [sample["image"] for sample in samples]}
    for name, stage in chosen.items():
        network = build_network(run.meta()["model"], run.labels)
        try:
            network.load_state_dict(part(checkpoint.load(stage.last_path)["method"], "network"))
        except WeightsError as error:  # of the first stage, which nothing else needs any more
            log.warning("%s: the picture goes without stage %s", error, name)
            continue
        predictor = Predictor(network.to(run.device), run.device)
        rows[name] = [gallery.colour(predictor(sample["image"][None]).argmax(1)[0].cpu()) for sample in samples]
    return rows | {"truth": [gallery.colour(sample["label"]) for sample in samples]}
