"""SynPASS, Stanford2D3D, Structured3D and folders of one's own: what they find and read, and what they refuse."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.data.conftest import LABELS
from tests.data.tiny_images import SIZE, label_map, picture, save
from trans4pass.build import build
from trans4pass.data import Folder, Stanford2D3D, Structured3D, SynPASS, TrainTransform
from trans4pass.data.stanford2d3d import AREAS, CLASSES, FOLDS, decode_colours
from trans4pass.errors import ConfigError, DataError
from trans4pass.labels import IGNORE, LabelSpace

ROLL = TrainTransform((32, 32), yaw_roll=True)


def names(dataset) -> list[str]:
    return [item.name for item in dataset.items]


# ------------------------------------------------------------------------------------------------------------- SynPASS


def test_synpass_finds_all_weathers_of_a_split(synpass_root, synpass22):
    dataset = SynPASS(synpass_root, "train", synpass22)
    assert names(dataset) == [f"{w}/MAP_1_point{i}/000000" for i, w in enumerate(("cloud", "fog", "rain", "sun"))]
    assert dataset.with_transform(ROLL).name == "synpass"


def test_synpass_label_is_the_raw_value_less_one(synpass_root, synpass22, outdoor13):
    raw = label_map(2, [0, 7, 22])
    label = SynPASS(synpass_root, "val", synpass22)[2]["label"]
    assert np.array_equal(label, np.select([raw == 7, raw == 22], [6, 21], IGNORE))
    label = SynPASS(synpass_root, "val", outdoor13)[2]["label"]
    road, terrain = (outdoor13.classes.index(name) for name in ("road", "terrain"))
    assert np.array_equal(label, np.select([raw == 7, raw == 22], [road, terrain], IGNORE))


def test_synpass_weathers_can_be_chosen(synpass_root, synpass22):
    shutil.rmtree(synpass_root / "img/cloud")
    assert names(SynPASS(synpass_root, "val", synpass22, weather=["sun", "fog"])) == [
        "sun/MAP_1_point3/000000",
        "fog/MAP_1_point1/000000",
    ]
    with pytest.raises(DataError, match="img/cloud"):
        SynPASS(synpass_root, "val", synpass22)


@pytest.mark.parametrize("weather", ["fog", [], ["snow"]])
def test_synpass_unknown_weather_is_refused(synpass_root, synpass22, weather):
    config = {"_target_": "trans4pass.data.SynPASS", "root": str(synpass_root), "split": "val", "weather": weather}
    with pytest.raises(ConfigError, match=r"^data\.dataset\.weather"):
        build(config, "data.dataset", labels=synpass22)


def test_synpass_list_picks_the_images_of_the_split(synpass_root, synpass22):
    lines = ["# night", "", "img/fog/val/MAP_1_point1/000000.jpg", "img/sun/train/MAP_1_point3/000000.jpg"]
    (synpass_root / "night.txt").write_text("\n".join(lines))
    dataset = SynPASS(synpass_root, "val", synpass22, subset_list="night.txt")
    assert names(dataset) == ["fog/MAP_1_point1/000000"]
    assert names(SynPASS(synpass_root, "train", synpass22, subset_list="night.txt")) == ["sun/MAP_1_point3/000000"]
    with pytest.raises(DataError, match=r"night\.txt names none of the 1 images.*a line looks like img/rain/val"):
        SynPASS(synpass_root, "val", synpass22, weather=["rain"], subset_list="night.txt")


def test_synpass_day_and_night_find_their_lists(synpass_root, synpass22):
    with pytest.raises(DataError, match=r"time=night needs one text file.*there are: none.*subset_list"):
        SynPASS(synpass_root, "val", synpass22, time="night")
    (synpass_root / "lists").mkdir()
    for name, weather in (("Day", "sun"), ("night_val", "fog"), ("night_test", "rain")):
        number = ("cloud", "fog", "rain", "sun").index(weather)
        (synpass_root / f"lists/{name}.txt").write_text(f"img/{weather}/val/MAP_1_point{number}/000000.jpg\n")
    assert names(SynPASS(synpass_root, "val", synpass22, time="day")) == ["sun/MAP_1_point3/000000"]
    assert names(SynPASS(synpass_root, "val", synpass22, time="night")) == ["fog/MAP_1_point1/000000"]
    with pytest.raises(DataError, match=r"there are: lists/night_test\.txt, lists/night_val\.txt"):
        SynPASS(synpass_root, "train", synpass22, time="night")
    config = {"_target_": "trans4pass.data.SynPASS", "root": str(synpass_root), "split": "val", "time": "noon"}
    with pytest.raises(ConfigError, match="time is 'noon': input should be 'day' or 'night'"):
        build(config, "data.dataset", labels=synpass22)
    with pytest.raises(ConfigError, match="leave one of them null"):
        SynPASS(synpass_root, "val", synpass22, time="day", subset_list="lists/Day.txt")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("../outside.jpg", "leads out of"),
        ("img/../../outside.jpg", "leads out of"),
        ("{root}/img/fog/val/MAP_1_point1/000000.jpg", "leads out of"),
        ("img/fog/val/MAP_1_point1/000009.jpg", "is no file"),
        ("img/fog", "is no file"),
        ("a\0b", "is no file"),
        ("x" * 5000, "is no file"),
    ],
)
def test_synpass_list_cannot_leave_the_root(synpass_root, synpass22, entry, words):
    save(synpass_root.parent / "outside.jpg", picture(0))
    (synpass_root / "link.jpg").symlink_to(synpass_root.parent / "outside.jpg")
    good = "img/fog/val/MAP_1_point1/000000.jpg"
    (synpass_root / "list.txt").write_text(f"{good}\n{entry.format(root=synpass_root)}\n")
    with pytest.raises(DataError, match=f"line 2: .* {words}"):
        SynPASS(synpass_root, "val", synpass22, subset_list="list.txt")


def test_synpass_list_must_be_readable_and_name_something(synpass_root, synpass22):
    with pytest.raises(DataError, match="cannot read the list"):
        SynPASS(synpass_root, "val", synpass22, subset_list="day.txt")
    (synpass_root / "day.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="names no file"):
        SynPASS(synpass_root, "val", synpass22, subset_list="day.txt")


# -------------------------------------------------------------------------------------------------------- Stanford2D3D


def test_stanford_folds_are_the_published_ones():
    assert FOLDS[1]["val"] == ("5a", "5b") and FOLDS[2]["val"] == ("2", "4") and FOLDS[3]["val"] == ("1", "3", "6")
    for fold in FOLDS.values():
        assert sorted(fold["train"] + fold["val"]) == sorted(AREAS)


@pytest.mark.parametrize(("kind", "frame"), [("pinhole", "12"), ("panorama", "equirectangular")])
def test_stanford_finds_the_areas_of_a_fold(stanford_root, indoor13, kind, frame):
    dataset = Stanford2D3D(stanford_root, "val", indoor13, kind=kind)
    assert names(dataset) == [f"area_{a}/camera_{c}f_conferenceRoom_1_frame_{frame}" for a, c in (("5a", 4), ("5b", 5))]
    assert (dataset.name, dataset.panorama) == (f"stanford_{kind}", kind == "panorama")
    train = Stanford2D3D(stanford_root, "train", indoor13, kind=kind, fold=3)
    assert [name.split("/")[0] for name in names(train)] == ["area_2", "area_4", "area_5a", "area_5b"]


def test_stanford_areas_can_be_given(stanford_root, indoor13):
    areas = {"train": [1, "5a"], "val": [6]}
    dataset = Stanford2D3D(stanford_root, "train", indoor13, areas=areas)
    assert [name.split("/")[0] for name in names(dataset)] == ["area_1", "area_5a"]
    with pytest.raises(ConfigError, match="split='test' is none of train, val"):
        Stanford2D3D(stanford_root, "test", indoor13, areas=areas)


@pytest.mark.parametrize(
    "settings", [{"kind": "fisheye"}, {"fold": 4}, {"areas": {"val": [5]}}, {"areas": {"val": []}}, {"split": "test"}]
)
def test_stanford_settings_that_do_not_exist_are_refused(stanford_root, indoor13, settings):
    config = {"_target_": "trans4pass.data.Stanford2D3D", "root": str(stanford_root), "split": "val"}
    with pytest.raises(ConfigError):
        build(config | settings, "data.dataset", labels=indoor13)


def stanford_rows(stanford_root, labels, **settings) -> list[str | None]:
    """The class of each of the label's first rows."""
    label = Stanford2D3D(stanford_root, "val", labels, **settings)[0]["label"][:6]
    assert (label == label[:, :1]).all()
    return [None if row == IGNORE else labels.classes[row] for row in label[:, 0].tolist()]


def test_stanford_colours_become_classes_and_holes_are_ignored(stanford_root, indoor13, indoor8):
    assert stanford_rows(stanford_root, indoor13) == [None, None, "beam", "wall", "chair", None]
    assert stanford_rows(stanford_root, indoor8, kind="panorama") == [None, None, None, "wall", "chair", None]


def test_stanford_pixel_with_one_colour_left_is_no_hole(stanford_root, indoor13):
    path = next(stanford_root.glob("area_5a/data/rgb/*.png"))
    pixels = np.array(Image.open(path))
    pixels[5, :, 2] = 1
    save(path, pixels)
    assert stanford_rows(stanford_root, indoor13)[5] == "wall"


def test_stanford_class_counts_leave_holes_out(stanford_root, indoor13):
    counts = Stanford2D3D(stanford_root, "val", indoor13).class_counts()
    expected = torch.zeros(13, dtype=torch.int64)
    for name in ("beam", "wall", "chair"):
        expected[indoor13.classes.index(name)] = 2 * SIZE[0]
    assert counts.equal(expected)


def test_stanford_class_order_is_that_of_the_label_space(indoor13):
    assert indoor13.classes == CLASSES


def test_stanford_label_names_may_lie_in_assets_or_elsewhere(stanford_root, indoor13, tmp_path):
    expected = stanford_rows(stanford_root, indoor13)
    (stanford_root / "assets").mkdir()
    listed = (stanford_root / "semantic_labels.json").rename(stanford_root / "assets/semantic_labels.json")
    assert stanford_rows(stanford_root, indoor13) == expected
    moved = listed.rename(tmp_path / "names.json")
    assert stanford_rows(stanford_root, indoor13, label_list=moved) == expected


def test_stanford_without_labels_needs_no_label_names(stanford_root, indoor13):
    for path in [*stanford_root.glob("*/*/semantic/*"), stanford_root / "semantic_labels.json"]:
        path.unlink()
    dataset = Stanford2D3D(stanford_root, "train", indoor13, labelled=False, kind="panorama")
    assert (dataset[0]["label"] == IGNORE).all() and len(dataset) == 5


def test_stanford_pseudo_labels_are_train_ids_outside_of_holes(stanford_root, indoor13, tmp_path):
    dataset = Stanford2D3D(stanford_root, "val", indoor13, labelled=False)
    for item in dataset.items:
        save(tmp_path / f"pseudo/{item.name}_labelTrainIds.png", np.full(SIZE[::-1], 12, np.uint8))
    label = dataset.relabelled(tmp_path / "pseudo")[0]["label"]
    assert (label[5] == IGNORE).all() and (label[:5] == 12).all() and (label[6:] == 12).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"looked for .*semantic_labels\.json and .*assets.semantic_labels\.json"),
        ("[", "cannot read"),
        ("[" * 100_000, "cannot read"),
        ('{"a": 1}', "is not a list"),
        ("[]", "is not a list"),
        (json.dumps(["<UNK>"] * 65537), "is not a list"),
        ('["<UNK>", 3]', "entry 1 is 3, and '3' is none of beam"),
        ('["<UNK>", "tree_1_garden_1_1"]', "entry 1 is 'tree_1_garden_1_1', and 'tree' is none of beam"),
        ('["wall_1_office_1_1"]', "entry 0 is"),
        (json.dumps(["<UNK>", "beam_1"]), r"holds the index 300, and the list of label names ends at 1"),
    ],
)
def test_stanford_label_names_that_do_not_fit_are_refused(stanford_root, indoor13, content, words):
    path = stanford_root / "semantic_labels.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=words):
        Stanford2D3D(stanford_root, "val", indoor13)[0]


def test_stanford_unknown_pixels_may_hold_any_index():
    class_ids = np.full(2**16, 254, np.uint8)
    class_ids[:2] = [IGNORE, 4]
    colours = np.array([[[1, 255, 255], [13, 13, 13], [0, 0, 1]]], np.uint8)
    assert decode_colours(colours, class_ids, "x").tolist() == [[IGNORE, IGNORE, 4]]


def test_stanford_grey_label_is_refused(stanford_root, indoor13):
    save(next(stanford_root.glob("area_5a/data/semantic/*.png")), np.zeros(SIZE[::-1], np.uint8))
    with pytest.raises(DataError, match="has mode L; this data set's labels are RGB"):
        Stanford2D3D(stanford_root, "val", indoor13)[0]


def test_stanford_panorama_label_is_looked_up_in_much_less_than_a_second():
    colours = np.random.RandomState(0).randint(0, 256, (2048, 4096, 3)).astype(np.uint8)
    colours[..., 0] = 0
    class_ids = np.random.RandomState(1).randint(0, 13, 2**16).astype(np.uint8)
    start = time.process_time()
    classes = decode_colours(colours, class_ids, "x")
    seconds = time.process_time() - start
    print(f"a label of 4096x2048 is looked up in {seconds:.3f} s")
    assert seconds < 0.5
    y, x = 1234, 3456
    assert classes[y, x] == class_ids[int(colours[y, x, 1]) * 256 + int(colours[y, x, 2])]


# -------------------------------------------------------------------------------------------------------- Structured3D


@pytest.mark.parametrize(("split", "scenes"), [("train", [0, 2999]), ("val", [3000, 3249]), ("test", [3250])])
def test_structured3d_splits_by_scene_number(structured3d_root, indoor8, split, scenes):
    dataset = Structured3D(structured3d_root, split, indoor8)
    assert names(dataset) == [f"scene_{scene:05d}/905" for scene in scenes]
    assert np.array_equal(dataset[0]["image"].permute(1, 2, 0), picture(scenes[0]))
    assert dataset.with_transform(ROLL).panorama


def test_structured3d_values_are_looked_up_and_never_remapped_one_after_the_other(structured3d_root, indoor8):
    # In place and one by one, walls (1) would become sofa (6 -> 4) where there is a sofa, floor (2) cabinet's (3).
    raw = label_map(0, list(range(41)))
    ids = {1: "wall", 2: "floor", 5: "chair", 6: "sofa", 7: "table", 8: "door", 9: "window", 22: "ceiling"}
    expected = np.full(raw.shape, IGNORE)
    for value, name in ids.items():
        expected[raw == value] = indoor8.classes.index(name)
    assert np.array_equal(Structured3D(structured3d_root, "train", indoor8)[0]["label"], expected)


def test_structured3d_without_scenes_of_the_split_says_which_it_needs(structured3d_root, indoor8):
    shutil.rmtree(structured3d_root / "scene_03250")
    with pytest.raises(DataError, match=r"none of the 4 panoramas .* 'test', whose scenes are 3250 to 3499"):
        Structured3D(structured3d_root, "test", indoor8)
    with pytest.raises(ConfigError, match="split='all'"):
        Structured3D(structured3d_root, "all", indoor8)


# -------------------------------------------------------------------------------------------------------------- Folder


@pytest.fixture
def folder_root(tmp_path):
    root = tmp_path / "own"
    for i, name in enumerate(("a", "b/c.d")):
        save(root / f"images/train/{name}.{('jpg', 'PNG')[i]}", picture(i))
        save(root / f"annotations/train/{name}.png", label_map(i, [0, 18, 255]))
    (root / "images/train/notes.txt").write_text("no picture")
    return root


def test_folder_pairs_images_and_labels_by_name(folder_root, cityscapes19):
    dataset = Folder(folder_root, "train", cityscapes19)
    assert names(dataset) == ["a", "b/c.d"]
    assert np.array_equal(dataset[1]["label"], label_map(1, [0, 18, 255]))
    assert np.array_equal(dataset[1]["image"].permute(1, 2, 0), picture(1))


def test_folder_takes_suffixes_encoding_and_folders_without_splits(tmp_path, cityscapes19):
    save(tmp_path / "x/1_rgb.png", picture(0))
    save(tmp_path / "x/1_depth.png", picture(0))
    save(tmp_path / "y/1_ids.png", label_map(0, [7, 33]))
    settings = {"images": "x", "annotations": "y", "image_suffix": "_rgb.png", "label_suffix": "_ids.png"}
    dataset = Folder(tmp_path, "any", cityscapes19, encoding="cityscapes_ids", **settings)
    assert names(dataset) == ["1"] and set(dataset[0]["label"].unique().tolist()) == {0, 18}


def test_folder_without_annotations_is_unlabelled(folder_root, cityscapes19):
    dataset = Folder(folder_root, "train", cityscapes19, annotations=None)
    assert not dataset.labelled and (dataset[0]["label"] == IGNORE).all()
    with pytest.raises(ConfigError, match="annotations"):
        Folder(folder_root, "train", cityscapes19, annotations=None, labelled=True)


def test_folder_is_a_panorama_where_it_is_declared(folder_root, cityscapes19):
    assert Folder(folder_root, "train", cityscapes19, panorama=True, transform=ROLL).panorama
    with pytest.raises(ConfigError, match="yaw_roll"):
        Folder(folder_root, "train", cityscapes19, transform=ROLL)


@pytest.mark.parametrize(("width", "hinted"), [(64, True), (75, True), (76, False), (200, False)])
def test_a_panorama_that_is_too_narrow_to_go_round_gets_one_hint(tmp_path, cityscapes19, caplog, width, hinted):
    path = save(tmp_path / "images/train/a.png", picture(0, (width, 40)))
    for panorama in (True, False, True):
        Folder(tmp_path, "train", cityscapes19, annotations=None, panorama=panorama)
    assert [f"{path} is {width}x40" in record.getMessage() for record in caplog.records] == [True] * hinted
    path.write_bytes(b"no picture")  # which is noticed where it is read
    Folder(tmp_path, "train", cityscapes19, annotations=None, panorama=True)


def test_folder_names_what_it_lacks(folder_root, cityscapes19):
    (folder_root / "texts").mkdir()
    (folder_root / "images/train/notes.txt").rename(folder_root / "texts/notes.txt")
    with pytest.raises(DataError, match="texts holds no picture"):
        Folder(folder_root, "train", cityscapes19, images="texts")
    (folder_root / "annotations/train/a.png").unlink()
    with pytest.raises(DataError, match=r"a\.jpg has no label; looked for .*annotations/train/a\.png"):
        Folder(folder_root, "train", cityscapes19)
    shutil.rmtree(folder_root / "annotations")
    with pytest.raises(DataError, match=r"has no label \(nor have 1 more"):
        Folder(folder_root, "train", cityscapes19)


def test_one_name_of_two_suffixes_is_refused(folder_root, cityscapes19):
    save(folder_root / "images/train/a.png", picture(0))
    with pytest.raises(DataError, match="would both be named 'a'"):
        Folder(folder_root, "train", cityscapes19)


# ----------------------------------------------------------------------------------------------------------- all sets


@pytest.mark.parametrize("path", sorted(LABELS.with_name("data").glob("[a-z]*.yaml")), ids=lambda path: path.stem)
def test_shipped_data_sets_say_what_they_are(path):
    config = yaml.safe_load(path.read_text())
    assert set(config) <= {"defaults", "dataset", "name", "eval_size", "published"}
    assert config.get("name", path.stem) == path.stem
    assert path.read_text().startswith("# ") and "eval_size" in config


def test_a_label_space_that_does_not_fit_is_refused(synpass_root, stanford_root, structured3d_root, cityscapes19):
    for family, root in ((SynPASS, synpass_root), (Stanford2D3D, stanford_root), (Structured3D, structured3d_root)):
        with pytest.raises(ConfigError, match="needs the encoding"):
            family(root, "val", cityscapes19)
        family(root, "val", cityscapes19, labelled=False)


def test_own_label_space_needs_no_encodings(folder_root):
    classes = {str(i): [i, i, i] for i in range(19)}
    space = LabelSpace.from_dict({"name": "own19", "classes": classes, "encodings": {}})
    assert Folder(folder_root, "train", space)[0]["label"].max() == IGNORE


def test_synpass_lists_read_linked_folders_and_byte_order_marks(synpass_root, synpass22):
    whole = synpass_root.parent / "another_disk"
    (synpass_root / "img").rename(whole)
    (synpass_root / "img").symlink_to(whole)
    listed = "img/fog/val/MAP_1_point1/000000.jpg"
    (synpass_root / "list.txt").write_text(listed + "\n", encoding="utf-8-sig")
    assert [item.image for item in SynPASS(synpass_root, "val", synpass22, subset_list="list.txt").items] == [
        synpass_root / listed
    ]


def test_folder_follows_links_but_not_back_to_itself(folder_root, cityscapes19, tmp_path):
    before = len(Folder(folder_root, "train", cityscapes19, annotations=None))
    save(tmp_path / "elsewhere" / "x.png", picture(0))
    (folder_root / "images/train/linked").symlink_to(tmp_path / "elsewhere")
    (folder_root / "images/train/back").symlink_to(folder_root / "images")
    names = [item.name for item in Folder(folder_root, "train", cityscapes19, annotations=None).items]
    assert len(names) == before + 1
    assert "linked/x" in names
