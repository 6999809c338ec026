"""What label values mean: the shipped label spaces, lookups by hand, mappings between spaces, and refusals."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

from trans4pass.errors import ConfigError, DataError
from trans4pass.labels import IGNORE, LabelSpace

FOLDER = Path(__file__).parents[1] / "configs" / "labels"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))

# Cityscapes' published table: label id -> train id.
TRAIN_ID = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14}
TRAIN_ID |= {28: 15, 31: 16, 32: 17, 33: 18}

SMALL = {
    "name": "small",
    "classes": {"road": [1, 2, 3], "traffic light": [4, 5, 6]},
    "encodings": {"raw": {"traffic light": [3, 300], "road": [7], "ignored": [0]}},
}


def shipped(name: str) -> LabelSpace:
    return LabelSpace.from_yaml(FOLDER / f"{name}.yaml")


def small(**changes) -> dict:
    return copy.deepcopy(SMALL) | changes


def encoded(raw: dict) -> dict:
    return small(encodings={"raw": raw})


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_space_is_named_like_its_file_and_round_trips(name):
    space = shipped(name)
    assert space.name == name
    assert LabelSpace.from_dict(space.to_dict()) == space
    assert pickle.loads(pickle.dumps(space)) == space
    assert space.palette.shape == (space.num_classes, 3) and space.palette.dtype == np.uint8


@pytest.mark.parametrize("name", ["cityscapes19", "outdoor13", "toy11"])
def test_both_cityscapes_encodings_agree_in_every_street_space(name):
    space = shipped(name)
    ids = np.array([*range(34), 255], np.uint8)
    direct = space.decode(ids, "cityscapes_ids", "f")
    train_ids = np.array([TRAIN_ID.get(i, 255) for i in ids.tolist()], np.uint8)
    assert direct.tolist() == space.decode(train_ids, "cityscapes19", "f").tolist()


def test_cityscapes_ids_follow_the_published_table():
    ids = np.array([*range(34), 255], np.uint8)
    expected = [TRAIN_ID.get(i, 255) for i in ids.tolist()]
    assert shipped("cityscapes19").decode(ids, "cityscapes_ids", "f").tolist() == expected


def test_thirteen_classes_merge_riders_and_vehicles_and_ignore_trains():
    space = shipped("outdoor13")
    expected = [*range(12), 11, 12, 12, 12, IGNORE, 12, 12, IGNORE]
    assert space.mapping_from(shipped("cityscapes19"))[[*range(19), 255]].tolist() == expected


def test_synpass_ids_into_thirteen_classes():
    space = shipped("outdoor13")
    first = ["building", "fence", None, "person", "pole", "road", "road", "sidewalk", "vegetation", "car", "wall"]
    second = ["traffic sign", "sky", None, None, None, None, "traffic light", None, None, None, "terrain"]
    classes = [None, *first, *second, None]  # of the raw values 0, 1..22, 255
    expected = [IGNORE if name is None else space.classes.index(name) for name in classes]
    assert space.decode(np.array([*range(23), 255], np.uint8), "synpass_ids", "f").tolist() == expected


SYNPASS = [
    "building", "fence", "other", "pedestrian", "pole", "road line", "road", "sidewalk", "vegetation", "vehicles",
    "wall", "traffic sign", "sky", "ground", "bridge", "rail track", "ground rail", "traffic light", "static",
    "dynamic", "water", "terrain",
]  # fmt: skip


def test_synpass_has_its_published_classes_in_the_order_of_its_values():
    space = shipped("synpass22")
    assert list(space.classes) == SYNPASS
    ids = space.decode(np.array([*range(23), 255], np.uint8), "synpass_ids", "f")
    assert ids.tolist() == [IGNORE, *range(22), IGNORE]


def test_synpass_predictions_become_the_thirteen_classes_that_its_files_become():
    space = shipped("outdoor13")
    from_files = space.decode(np.arange(1, 23, dtype=np.uint8), "synpass_ids", "f")
    assert space.mapping_from(shipped("synpass22"))[:22].tolist() == from_files.tolist()


def test_eight_indoor_classes_keep_their_names_and_ignore_the_rest():
    thirteen, eight = shipped("indoor13"), shipped("indoor8")
    assert len(thirteen.classes) == 13 and len(eight.classes) == 8
    table = eight.mapping_from(thirteen)
    for i, name in enumerate(thirteen.classes):
        assert table[i] == (eight.classes.index(name) if name in eight.classes else IGNORE)
        if name in eight.classes:
            assert (thirteen.palette[i] == eight.palette[eight.classes.index(name)]).all()


def test_nyu_ids_into_eight_indoor_classes():
    space = shipped("indoor8")
    classes = {1: "wall", 2: "floor", 5: "chair", 6: "sofa", 7: "table", 8: "door", 9: "window", 22: "ceiling"}
    expected = [space.classes.index(classes[i]) if i in classes else IGNORE for i in range(41)]
    assert space.decode(np.arange(41, dtype=np.uint8), "nyu40", "f").tolist() == expected
    with pytest.raises(DataError, match="label value 41"):
        space.decode(np.array([41], np.uint8), "nyu40", "f")


@pytest.mark.parametrize("name", SHIPPED)
def test_no_two_classes_of_a_shipped_space_share_a_colour(name):
    colours = shipped(name).palette.tolist()
    assert len({tuple(colour) for colour in colours}) == len(colours) and [0, 0, 0] not in colours


def test_decode_looks_values_up_in_eight_and_sixteen_bits():
    space = LabelSpace.from_dict(SMALL)
    assert space.decode(np.array([[0, 7], [3, 3]], np.uint8), "raw", "f").tolist() == [[255, 0], [1, 1]]
    wide = space.decode(np.array([[300, 7]], np.uint16), "raw", "f")
    assert wide.tolist() == [[1, 0]] and wide.dtype == np.uint8


def test_own_name_is_the_identity():
    space = LabelSpace.from_dict(SMALL)
    assert space.decode(np.array([0, 1, 255], np.uint8), "small", "f").tolist() == [0, 1, 255]
    with pytest.raises(DataError, match="label value 2 in f"):
        space.decode(np.array([2], np.uint8), "small", "f")


def test_unlisted_value_names_value_file_space_and_fix():
    with pytest.raises(DataError) as error:
        LabelSpace.from_dict(SMALL).decode(np.array([7, 34, 99, 34], np.uint8), "raw", "x_labelIds.png")
    for word in ("34, 99", "x_labelIds.png", "labels/small", "'raw'", "`ignored`", "configs/labels/small.yaml"):
        assert word in str(error.value)


def test_an_encoding_that_has_all_values_is_named():
    space = LabelSpace.from_dict(SMALL)
    known = next(iter(space.encodings["raw"].values()))[0]
    with pytest.raises(DataError, match=r"All its values are in the encoding raw: is it that\?$"):
        space.decode(np.array([known, known], np.uint8), "small", "f")
    with pytest.raises(DataError, match=r"was written for$"):
        space.decode(np.array([known, 99], np.uint8), "small", "f")


@pytest.mark.parametrize(("count", "shown"), [(5, "10, 11, 12, 13, 14 in f"), (6, "10, 11, 12, 13, 14 ... in f")])
def test_the_first_five_unlisted_values_are_named(count, shown):
    with pytest.raises(DataError) as error:
        LabelSpace.from_dict(SMALL).decode(np.arange(10, 10 + count, dtype=np.uint8), "raw", "f")
    assert f"label value {shown}" in str(error.value)


def test_no_pixels_are_no_error():
    assert LabelSpace.from_dict(SMALL).decode(np.empty((0, 4), np.uint8), "raw", "f").shape == (0, 4)


def test_a_space_may_have_255_classes_and_raw_values_of_16_bits():
    classes = {str(i): [i, 0, 255] for i in range(255)}
    space = LabelSpace.from_dict(small(classes=classes, encodings={"raw": {"254": [65535], "0": [0]}}))
    assert space.decode(np.array([65535, 0], np.uint16), "raw", "f").tolist() == [254, 0]


def test_colours_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        LabelSpace.from_dict(SMALL).palette[0] = 0


def test_unknown_encoding_names_those_there_are():
    with pytest.raises(ConfigError, match=r"^f needs the encoding 'nyu40'.*\['raw', 'small'\]"):
        LabelSpace.from_dict(SMALL).decode(np.array([0], np.uint8), "nyu40", "f")


def test_mapping_is_a_byte_table_that_ignores_what_has_no_class():
    table = shipped("toy11").mapping_from(shipped("cityscapes19"))
    assert table.shape == (256,) and table.dtype == np.uint8
    assert table[:19].tolist() == [0, 1, 2, 3, 255, 4, 255, 5, 6, 7, 8, 9, 255, 10, *[255] * 5]
    assert (table[19:] == 255).all()
    space = shipped("outdoor13")
    assert space.mapping_from(space)[:14].tolist() == [*range(13), 255]


def test_mapping_that_is_not_defined_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match=r"labels/toy11 cannot be mapped into labels/cityscapes19.*'cityscapes19'"):
        shipped("cityscapes19").mapping_from(shipped("toy11"))


def test_mapping_from_a_space_that_does_not_fit_its_encoding_is_refused():
    space = LabelSpace.from_dict(encoded({"road": [1], "traffic light": [2]}))
    other = LabelSpace.from_dict(small(name="raw", encodings={}))  # train ids 0 and 1
    with pytest.raises(ConfigError, match=r"'raw' must list the train ids 0..1 .*look at \[0, 2\]"):
        space.mapping_from(other)
    with pytest.raises(ConfigError, match="two label spaces are named 'small'"):
        space.mapping_from(LabelSpace.from_dict(small(classes={"sky": [0, 0, 0]}, encodings={})))


def test_spaces_with_another_order_of_classes_differ():
    swapped = small(classes=dict(reversed(SMALL["classes"].items())))
    assert LabelSpace.from_dict(swapped) != LabelSpace.from_dict(SMALL)


def test_colorize_paints_ignored_black():
    colours = LabelSpace.from_dict(SMALL).colorize(np.array([[0, 1, 255]], np.uint8))
    assert colours.tolist() == [[[1, 2, 3], [4, 5, 6], [0, 0, 0]]] and colours.dtype == np.uint8


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        (encoded({"rode": [1]}), "labels/small, encoding 'raw': 'rode' is not one of the classes"),
        (encoded({"road": [1], "ignored": [1]}), "raw value 1 is listed twice, for 'road' and 'ignored'"),
        (encoded({"road": [1, 1]}), "raw value 1 is listed twice"),
        (encoded({"road": [-1]}), r"labels/small\.encodings\.raw\.road\.0 is -1: .*greater than or equal to 0"),
        (encoded({"road": [7, 65536]}), r"raw\.road\.1 is 65536: .*less than or equal to 65535"),
        (encoded({"road": ["1"]}), r"raw\.road\.0 is '1': input should be a valid integer"),
        (encoded({"road": [True]}), r"raw\.road\.0 is True: input should be a valid integer"),
        (encoded({"road": 1}), r"labels/small\.encodings\.raw\.road is 1: "),
        (small(classes={"road": [0, 0, 256]}), r"labels/small\.classes\.road\.2 is 256: .*less than or equal to 255"),
        (small(classes={"road": [-1, 0, 0]}), r"classes\.road\.0 is -1: .*greater than or equal to 0"),
        (small(classes={"road": [0.5, 0.0, 1.0]}), r"classes\.road\.0 is 0\.5: input should be a valid integer"),
        (small(classes={"road": [True, False, True]}), r"classes\.road\.0 is True: input should be a valid integer"),
        (small(classes={"road": [0, 0]}), r"classes\.road is \[0, 0\]: .*at least 3 items"),
        (small(classes={"road": [0, 0, 0, 0]}), r"classes\.road is \[0, 0, 0, 0\]: .*at most 3 items"),
        (small(classes={"road": "red"}), r"classes\.road is 'red': input should be a valid list"),
        (small(classes={"ignored": [0, 0, 0]}), "'ignored' cannot be a class's name"),
        (small(classes={True: [0, 0, 0]}), "is True: input should be a valid string"),
        (small(classes={"": [0, 0, 0]}), "is '': string should have at least 1 character"),
        (small(classes={}), "0 classes"),
        (small(classes={str(i): [0, 0, 0] for i in range(256)}), "256 classes"),
        (small(name=7), "name is 7: input should be a valid string"),
        (small(name=""), "name is '': string should have at least 1 character"),
        (small(classes=["road"]), r"labels/small\.classes is \['road'\]: "),
        (small(encodings={"small": {}}), "'small' is built in"),
        (small(colours={}), r"labels/small\.colours has no effect: .* takes name, classes, encodings"),
        ({"name": "x"}, "labels/x lacks classes, encodings"),
        ("outdoor13", "has the keys name, classes and encodings, and this is 'outdoor13'"),
    ],
)
def test_contradictions_are_refused_by_name(mapping, words):
    with pytest.raises(ConfigError, match=words):
        LabelSpace.from_dict(mapping)


def test_duplicate_classes_are_refused():
    with pytest.raises(ConfigError, match="'road' is there twice"):
        LabelSpace("x", ("road", "road"), [[0, 0, 0], [1, 1, 1]], {})


def test_a_key_repeated_in_the_file_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nclasses:\n  road: [0, 0, 0]\n  road: [1, 1, 1]\nencodings: {}\n")
    with pytest.raises(ConfigError, match=r"'road' occurs twice.*x\.yaml"):
        LabelSpace.from_yaml(path)


@pytest.mark.parametrize(
    ("text", "words"), [(b"a: [", "not valid YAML"), (b"name: \xe9", "not valid YAML"), (None, "cannot read")]
)
def test_unreadable_file_is_named(tmp_path, text, words):
    path = tmp_path / "x.yaml"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigError, match=words) as error:
        LabelSpace.from_yaml(path)
    assert "x.yaml" in str(error.value)
