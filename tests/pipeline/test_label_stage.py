"""The labelling stage on the tiny toy world, against prediction, sorting and resizing written out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.small import various_network
from trans4pass.errors import ConfigError, WeightsError
from trans4pass.inference import TTA, Predictor, pseudo_labels
from trans4pass.interrupts import Interrupted
from trans4pass.pipeline.label_stage import computed_ahead
from trans4pass.pipeline.stage import Stage
from trans4pass.precision import Precision
from trans4pass.training import checkpoint

from .conftest import composed, stages_of

MakeStage = Callable[..., Stage]
SETTINGS = {"size": "[96,32]", "scales": "[1.0,1.5]", "flip": "true", "yaw_rolls": "2", "keep": "0.6", "cap": "0.2"}


@pytest.fixture
def stage(tiny: list[str], tiny_data: Path, tmp_path: Path) -> MakeStage:
    """The labelling stage of the tiny experiment, on a fresh network; `overrides` and `settings` change it."""
    image = next((tiny_data / "toy/DensePASS/leftImg8bit/train").rglob("*.png"))
    pixels = torch.from_numpy(np.array(Image.open(image).convert("RGB"))).permute(2, 0, 1)[None]
    network = various_network(11, pixels)
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    config = composed(*tiny)
    checkpoint.save({"method": weights, "labels": config["labels"], "model": config["model"]}, tmp_path / "given.pt")

    def make(*overrides: str, **settings: str) -> Stage:
        chosen = {"init": tmp_path / "given.pt", **SETTINGS, **settings}
        settings = [f"stages.pseudo_labels.{key}={value}" for key, value in chosen.items()]
        made = stages_of(tmp_path, *tiny, "stages.warmup.init=null", *settings, *overrides)["pseudo_labels"]
        made.folder.mkdir(exist_ok=True)
        return made

    return make


def predicted(stage: Stage, precision: Precision = "fp32") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By image: class and confidence, in float16, of the mean over the views."""
    network = stage.run.network({})
    stage.start.load_network(network)
    predictor = Predictor(network, torch.device("cpu"), TTA((1.0, 1.5), True, 2), precision)
    dataset, maps = stage.dataset, {}
    for index in range(len(dataset)):
        probability, label = predictor(dataset[index]["image"][None]).softmax(1)[0].max(0)
        maps[dataset[index]["name"]] = label.numpy(), probability.half().numpy()
    return maps


def by_sorting(maps: dict[str, tuple[np.ndarray, np.ndarray]], keep: float, cap: float) -> list[float]:
    """Each class's threshold: the value at index round((1 - keep) * n) of its sorted confidences, capped."""
    limits = []
    for number in range(11):
        values = np.sort(np.concatenate([probability[label == number] for label, probability in maps.values()]))
        place = min(round((1 - keep) * len(values)), len(values) - 1)
        limits.append(min(float(values[place]), cap) if len(values) else 0.0)
    return limits


def written(stage: Stage) -> dict[str, np.ndarray]:
    folder = stage.folder / "labels"
    return {
        str(path.relative_to(folder)).removesuffix("_labelTrainIds.png"): np.asarray(Image.open(path))
        for path in sorted(folder.rglob("*.png"))
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_labels_are_the_confident_part_of_the_prediction(precision: Precision, stage: MakeStage) -> None:
    """Predicted at 96x32, written at the files' 160x32; thresholds are of the whole set."""
    labelling = stage(precision=precision)
    maps = predicted(labelling, precision)
    limits = by_sorting(maps, 0.6, 0.2)
    assert len({*limits}) > 3 and max(limits) == 0.2
    result = labelling.execute()
    thresholds = json.loads((labelling.folder / "thresholds.json").read_text())
    assert list(thresholds) == list(labelling.run.labels.classes)
    assert list(thresholds.values()) == limits
    files, kept = written(labelling), []
    assert files.keys() == maps.keys() and len(files) == 4
    for name, (label, probability) in maps.items():
        expected = np.where(probability.astype(np.float64) < np.array(limits)[label], 255, label).astype(np.uint8)
        kept.append(expected != 255)
        columns = ((np.arange(160) + 0.5) * 96 / 160).astype(int)  # nearest
        assert np.array_equal(files[name], expected[:, columns])
    assert result["kept"] == pytest.approx(np.mean(kept))
    assert (result["kind"], result["left_out"]) == ("labels", [])
    assert not (labelling.folder / "maps").exists()


def test_half_precision_is_another_prediction(stage: MakeStage) -> None:
    """So that the test above can tell them apart."""
    one, other = predicted(stage()), predicted(stage(), "bf16")
    assert any((one[name][1] != other[name][1]).any() for name in one)


def test_maps_are_written_once_and_read_once(stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: dict[str, list[Path]] = {"spill": [], "unspill": []}
    for name, seen in paths.items():
        function = getattr(pseudo_labels, name)
        monkeypatch.setattr(
            pseudo_labels, name, lambda path, *maps, f=function, seen=seen: seen.append(path) or f(path, *maps)
        )
    stage("num_workers=2").execute()
    assert len(paths["spill"]) == 4 and sorted(paths["spill"]) == sorted(paths["unspill"])


def test_batches_change_no_more_than_rounding(stage: MakeStage) -> None:
    """Three and one of the set's four; nearly all pixels keep their label."""
    one = stage()
    one.execute()
    expected = written(one)
    for path in (one.folder / "labels").rglob("*.png"):
        path.unlink()
    three = stage(batch_size="3")
    three.check_identity()
    three.execute()
    found = written(three)
    assert found.keys() == expected.keys()
    assert np.mean([(found[name] != expected[name]).mean() for name in found]) < 1e-3


def test_what_threads_compute_comes_in_order() -> None:
    for threads in (0, 1, 3):
        assert list(computed_ahead(lambda x: x * x, range(20), threads)) == [x * x for x in range(20)]
        results = computed_ahead(lambda x: 1 // x, [1, 0, 1], threads)
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_truth_beside_the_images_is_not_read(stage: MakeStage) -> None:
    dataset = stage().dataset
    assert all((dataset[index]["label"] == 255).all() for index in range(len(dataset)))
    assert [item.label for item in dataset.items] == [None] * 4


def test_an_interrupted_stage_predicts_what_is_left(stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends with the labels that it would have had."""
    whole = stage()
    whole.execute()
    expected = written(whole)
    labelling, seen = stage(), []
    spill = pseudo_labels.spill

    def counted(path: Path, *maps: np.ndarray) -> None:
        seen.append(path.stem)
        spill(path, *maps)
        if len(seen) == 2:
            labelling.run.interrupts.number = 15

    monkeypatch.setattr(pseudo_labels, "spill", counted)
    for path in (labelling.folder / "labels").rglob("*.png"):
        path.unlink()
    with pytest.raises(Interrupted):
        labelling.execute()
    assert len(seen) == 2 and written(labelling) == {}
    labelling.run.interrupts.number = None
    labelling.execute()
    assert len(seen) == len({*seen}) == 4
    assert all(np.array_equal(expected[name], label) for name, label in written(labelling).items())


def test_a_signal_behind_the_last_image_stops_too(stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    labelling, spill = stage(), pseudo_labels.spill

    def last(path: Path, *maps: np.ndarray) -> None:
        spill(path, *maps)
        if len(list(path.parent.glob("*.npz"))) == 4:
            labelling.run.interrupts.number = 15

    monkeypatch.setattr(pseudo_labels, "spill", last)
    with pytest.raises(Interrupted):
        labelling.predict(labelling.dataset)


def test_images_that_cannot_be_read_are_left_out_and_logged(stage: MakeStage) -> None:
    labelling = stage("on_bad_sample=skip")
    dataset = labelling.dataset
    bad = dataset.items[1]
    cut = labelling.folder / "cut.png"
    cut.write_bytes(bad.image.read_bytes()[:100])
    dataset.items[1] = type(bad)(bad.name, cut)
    result = labelling.execute()
    assert result["left_out"] == [bad.name]
    assert written(labelling).keys() == {item.name for item in dataset.items} - {bad.name}
    assert list(labelling.bad.reasons) == [str(cut)]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"init": "null"}, r"stages\.pseudo_labels\.init is null"),
        ({"precision": "fp8"}, r"stages\.pseudo_labels\.precision is 'fp8'"),
        ({"scales": "[]"}, "scales"),
        ({"flip": "2"}, "flip"),
        ({"yaw_rolls": "0"}, "yaw_rolls"),
        ({"keep": "1.5"}, "keep"),
        ({"cap": "-1"}, "cap"),
        ({"data": "nowhere"}, "nowhere"),
        ({"split": "test"}, "test"),
    ],
)
def test_bad_settings_are_known_before_anything_runs(settings: dict[str, str], word: str, stage: MakeStage) -> None:
    stage().check()
    with pytest.raises(Exception, match=word) as caught:
        stage(**settings).check()
    assert isinstance(caught.value, ConfigError) or "split" in settings


def test_weights_that_do_not_fit_are_known_before_anything_runs(stage: MakeStage, tmp_path: Path) -> None:
    torch.save({"state_dict": {"encoder.patch_embed1.proj.weight": torch.zeros(1)}}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError):
        stage(init=str(tmp_path / "odd.pth")).check()


def test_a_checkpoint_of_another_model_than_the_runs_may_label(stage: MakeStage, tmp_path: Path) -> None:
    content = checkpoint.load(tmp_path / "given.pt")
    model = {**content["model"], "embed_dim": content["model"].get("embed_dim", 128) // 2}
    network = stage().run.network(model)
    content["method"] = {f"network.{key}": value for key, value in network.state_dict().items()}
    checkpoint.save({**content, "model": model}, tmp_path / "narrow.pt")
    labelling = stage(init=str(tmp_path / "narrow.pt"))
    labelling.check()
    assert labelling.finish()["kept"] > 0


def test_several_processes_share_the_images(stage: MakeStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once over all ranks."""
    labelling = stage()
    dataset, shares = labelling.dataset, []
    monkeypatch.setattr("trans4pass.dist.world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr("trans4pass.dist.rank", lambda rank=rank: rank)
        shares.append(set(labelling.share(dataset.items, "all", lambda item: item.name)))
    assert sorted(map(len, shares)) == [1, 1, 2]
    assert set.union(*shares) == {item.name for item in dataset.items}
