"""Cityscapes and DensePASS: what they find and read, and the words of every refusal."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.tiny_images import SIZE, label_map, picture, save
from trans4pass.data import Cityscapes, DensePASS, EvalTransform, Item, SegmentationDataset, TrainTransform
from trans4pass.errors import ConfigError, DataError
from trans4pass.labels import LabelSpace

ROLL = TrainTransform((32, 32), yaw_roll=True)


def one_image(root, pixels: Image.Image, labels: LabelSpace, label: np.ndarray | Image.Image | None = None):
    """A data set of one image and one label, saved as they are."""
    pixels.save(root / "image.png")
    label = np.zeros((pixels.height, pixels.width), np.uint8) if label is None else label
    label = label if isinstance(label, Image.Image) else Image.fromarray(label)
    label.save(root / "label.png")
    return SegmentationDataset([Item("a", root / "image.png", root / "label.png", labels.name)], labels)


# ------------------------------------------------------------------------------------------------------ what is found


def test_cityscapes_finds_images_in_order_with_their_names(cityscapes_root, outdoor13):
    dataset = Cityscapes(cityscapes_root, "train", outdoor13)
    assert [item.name for item in dataset.items] == [
        "aachen/aachen_000000_000019",
        "aachen/aachen_000001_000019",
        "bonn/bonn_000002_000019",
    ]
    assert (dataset.name, dataset.panorama, len(dataset)) == ("cityscapes", False, 3)


def test_cityscapes_sample_is_the_file_with_decoded_labels(cityscapes_root, outdoor13):
    sample = Cityscapes(cityscapes_root, "train", outdoor13)[1]
    assert sample["image"].dtype == sample["label"].dtype == torch.uint8
    assert type(sample["image"]) is type(sample["label"]) is torch.Tensor
    assert np.array_equal(sample["image"].permute(1, 2, 0), picture(1))
    raw = label_map(1, [7, 25, 4])
    assert np.array_equal(sample["label"], np.select([raw == 7, raw == 25], [0, 11], 255))
    assert sample["name"] == "aachen/aachen_000001_000019"


def test_cityscapes_prefers_train_ids_image_by_image(cityscapes_root, outdoor13):
    stem = "aachen/aachen_000001_000019_gtFine_labelTrainIds.png"
    save(cityscapes_root / "gtFine/train" / stem, np.full(SIZE[::-1], 18, np.uint8))
    dataset = Cityscapes(cityscapes_root, "train", outdoor13)
    assert [item.encoding for item in dataset.items] == ["cityscapes_ids", "cityscapes19", "cityscapes_ids"]
    assert (dataset[1]["label"] == outdoor13.classes.index("car")).all()
    assert set(dataset[0]["label"].unique().tolist()) == {0, 11, 255}


def test_densepass_accepts_both_namings_and_its_val_labels(densepass_root, cityscapes19):
    dataset = DensePASS(densepass_root, "val", cityscapes19)
    assert [item.name for item in dataset.items] == ["cs/100", "cs/7"]
    assert dataset.panorama
    for sample, n in zip(dataset, (100, 7)):
        assert np.array_equal(sample["label"], label_map(n, [0, 13, 255]))
        assert np.array_equal(sample["image"].permute(1, 2, 0), picture(3))


def test_densepass_train_is_unlabelled_and_all_ignored(densepass_root, cityscapes19):
    dataset = DensePASS(densepass_root, "train", cityscapes19)
    assert not dataset.labelled and all(item.label is None for item in dataset.items)
    assert (dataset[0]["label"] == 255).all() and dataset[0]["label"].shape == SIZE[::-1]


@pytest.mark.parametrize(("family", "split"), [(DensePASS, "val"), (Cityscapes, "train")])
def test_unlabelled_never_touches_labels(family, split, densepass_root, cityscapes_root, outdoor13):
    root = densepass_root if family is DensePASS else cityscapes_root
    shutil.rmtree(root / "gtFine")
    assert (family(root, split, outdoor13, labelled=False)[0]["label"] == 255).all()


def test_files_of_a_mac_archive_are_no_images(cityscapes_root, outdoor13):
    (cityscapes_root / "leftImg8bit/train/bonn/._bonn_000002_000019_leftImg8bit.png").write_bytes(b"")
    assert len(Cityscapes(cityscapes_root, "train", outdoor13)) == 3


# -------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA", "1"])
def test_every_common_image_mode_becomes_rgb(tmp_path, cityscapes19, mode):
    pixels = Image.fromarray(picture(0)).convert(mode)
    sample = one_image(tmp_path, pixels, cityscapes19)[0]
    assert np.array_equal(sample["image"].permute(1, 2, 0), np.asarray(pixels.convert("RGB")))


def test_sixteen_bit_grey_image_keeps_its_upper_bits(tmp_path, cityscapes19):
    grey = np.tile(np.array([0, 255, 256, 65535] * 2, np.uint16), (8, 1))
    sample = one_image(tmp_path, Image.fromarray(grey), cityscapes19)[0]
    assert sample["image"][:, 0].tolist() == [[0, 0, 1, 255] * 2] * 3


def test_floating_point_image_is_refused(tmp_path, cityscapes19):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff holds floating-point values"):
        SegmentationDataset([Item("a", tmp_path / "a.tiff")], cityscapes19, labelled=False)[0]


def test_indices_of_a_paletted_label_are_its_values(tmp_path, cityscapes19):
    values = np.tile(np.array([[3, 18], [255, 0]], np.uint8), (4, 4))
    label = Image.fromarray(values)
    label.putpalette([200, 100, 50] * 256)
    assert label.mode == "P"
    sample = one_image(tmp_path, Image.new("RGB", (8, 8)), cityscapes19, label)[0]
    assert np.array_equal(sample["label"], values)


def test_sixteen_bit_label_is_read_in_full(tmp_path):
    space = LabelSpace.from_dict({"name": "x", "classes": {"a": [0, 0, 0]}, "encodings": {"raw": {"a": [1000]}}})
    dataset = one_image(tmp_path, Image.new("RGB", (8, 8)), space, np.full((8, 8), 1000, np.uint16))
    dataset.items = [Item("a", tmp_path / "image.png", tmp_path / "label.png", "raw")]
    assert (dataset[0]["label"] == 0).all()


def test_class_counts_are_those_of_all_files(cityscapes_root, outdoor13):
    raw = np.stack([label_map(i, [7, 25, 4]) for i in range(3)])
    expected = torch.zeros(13, dtype=torch.int64)
    expected[0], expected[11] = int((raw == 7).sum()), int((raw == 25).sum())
    assert Cityscapes(cityscapes_root, "train", outdoor13).class_counts().equal(expected)


def test_class_counts_without_labels_are_refused(densepass_root, cityscapes19):
    with pytest.raises(DataError, match="class counts need labels"):
        DensePASS(densepass_root, "train", cityscapes19).class_counts()


def test_relabelled_reads_the_given_folder_and_leaves_the_original_alone(densepass_root, cityscapes19, tmp_path):
    dataset = DensePASS(densepass_root, "train", cityscapes19)
    for item in dataset.items:
        save(tmp_path / "pseudo" / f"{item.name}_labelTrainIds.png", np.full(SIZE[::-1], 9, np.uint8))
    relabelled = dataset.relabelled(tmp_path / "pseudo")
    assert (relabelled[1]["label"] == 9).all() and relabelled.labelled and type(relabelled) is DensePASS
    assert (dataset[1]["label"] == 255).all() and not dataset.labelled


def test_relabelled_reads_its_own_train_ids_whatever_the_files_were(cityscapes_root, outdoor13, tmp_path):
    dataset = Cityscapes(cityscapes_root, "train", outdoor13)
    for item in dataset.items:
        save(tmp_path / "pseudo" / f"{item.name}_labelTrainIds.png", np.full(SIZE[::-1], 12, np.uint8))
    assert (dataset.relabelled(tmp_path / "pseudo")[0]["label"] == 12).all()


def test_relabelled_needs_every_label(densepass_root, cityscapes19, tmp_path):
    save(tmp_path / "pseudo/1/1_labelTrainIds.png", np.zeros(SIZE[::-1], np.uint8))
    with pytest.raises(DataError, match=r"2_\.png has no label; looked for .*pseudo/1/2_labelTrainIds\.png; .*anew"):
        DensePASS(densepass_root, "train", cityscapes19).relabelled(tmp_path / "pseudo")


# ------------------------------------------------------------------------------------------------------- augmentation


def test_augmentation_depends_on_seed_and_position_only(cityscapes_root, cityscapes19):
    def image(seed, key):
        transform = TrainTransform((32, 32), fit="cover_crop", jitter=0.5)
        return Cityscapes(cityscapes_root, "train", cityscapes19, transform=transform, seed=seed)[key]["image"]

    assert image(0, (1, 5)).equal(image(0, (1, 5)))
    assert not image(0, (1, 5)).equal(image(0, (1, 6)))
    assert not image(0, (1, 5)).equal(image(1, (1, 5)))
    assert image(0, 1).equal(image(0, (1, 1)))


def test_augmentation_leaves_the_global_generator_alone(cityscapes_root, cityscapes19):
    dataset = Cityscapes(cityscapes_root, "train", cityscapes19, transform=TrainTransform((32, 32), fit="cover_crop"))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    dataset[(0, 7)]
    assert torch.get_rng_state().equal(before)


def test_with_transform_leaves_the_original_alone(cityscapes_root, cityscapes19):
    dataset = Cityscapes(cityscapes_root, "train", cityscapes19)
    assert dataset.with_transform(EvalTransform((32, 32)))[0]["image"].shape == (3, 32, 32)
    assert dataset[0]["image"].shape == (3, *SIZE[::-1])


def test_yaw_roll_belongs_to_panoramas(cityscapes_root, densepass_root, cityscapes19):
    DensePASS(densepass_root, "train", cityscapes19, transform=ROLL)
    with pytest.raises(ConfigError, match=r"those of cityscapes are no panoramas.*set yaw_roll=false"):
        Cityscapes(cityscapes_root, "train", cityscapes19, transform=ROLL)
    with pytest.raises(ConfigError, match="yaw_roll"):
        Cityscapes(cityscapes_root, "train", cityscapes19).with_transform(ROLL)


# ------------------------------------------------------------------------------------------------------------ refusals


def refusal(family, root, split, labels, **settings) -> str:
    with pytest.raises(DataError) as error:
        family(root, split, labels, **settings)
    return str(error.value)


@pytest.mark.parametrize("family", [Cityscapes, DensePASS])
def test_missing_root_says_where_it_looked_and_what_needs_no_data(family, tmp_path, cityscapes19):
    text = refusal(family, tmp_path / "nowhere", "train", cityscapes19)
    for word in (str(tmp_path / "nowhere"), "data_root=", "datasets_layout.md", "experiment=pin2pan_toy"):
        assert word in text


def test_missing_split_names_those_there_are(cityscapes_root, cityscapes19):
    text = refusal(Cityscapes, cityscapes_root, "val", cityscapes19)
    assert "leftImg8bit/val" in text and "has only ['train']" in text


def test_root_of_something_else_says_what_is_missing(tmp_path, cityscapes19):
    assert f"{tmp_path / 'leftImg8bit'} is missing or empty" in refusal(DensePASS, tmp_path, "val", cityscapes19)


def test_empty_split_is_named(cityscapes_root, cityscapes19):
    (cityscapes_root / "leftImg8bit/val/aachen").mkdir(parents=True)
    text = refusal(Cityscapes, cityscapes_root, "val", cityscapes19)
    assert "leftImg8bit/val/*/*_leftImg8bit.png" in text and "the split is empty" in text


def test_a_data_set_without_items_is_refused(cityscapes19):
    with pytest.raises(DataError, match="no images"):
        SegmentationDataset([], cityscapes19)


def test_image_without_label_names_both_candidates(cityscapes_root, cityscapes19):
    (cityscapes_root / "gtFine/train/bonn/bonn_000002_000019_gtFine_labelIds.png").unlink()
    text = refusal(Cityscapes, cityscapes_root, "train", cityscapes19)
    for word in ("bonn_000002_000019_leftImg8bit.png has no label", "_gtFine_labelTrainIds.png and", "labelled=false"):
        assert word in text
    text = refusal(DensePASS, cityscapes_root, "train", cityscapes19, labelled=True)
    assert "_leftImg8bit_labelTrainIds.png" in text


def test_one_name_for_two_images_is_refused(densepass_root, cityscapes19):
    save(densepass_root / "leftImg8bit/val/cs/7.png", picture(0))
    text = refusal(DensePASS, densepass_root, "val", cityscapes19)
    assert "7.png" in text and "7_.png" in text and "'cs/7'" in text


def test_label_among_the_images_is_refused(densepass_root, cityscapes19):
    shutil.copytree(densepass_root / "gtFine/val/cs", densepass_root / "leftImg8bit/val/cs", dirs_exist_ok=True)
    text = refusal(DensePASS, densepass_root, "val", cityscapes19)
    assert "100_labelTrainIds.png lies among the images; move it to" in text


def test_image_that_is_its_own_label_is_refused(tmp_path, cityscapes19):
    with pytest.raises(DataError, match="is its own label"):
        SegmentationDataset([Item("a", tmp_path / "a.png", tmp_path / "a.png", "cityscapes19")], cityscapes19)


def test_label_space_without_the_encoding_is_refused_at_the_start(cityscapes_root, densepass_root):
    space = LabelSpace.from_dict({"name": "x", "classes": {"road": [0, 0, 0]}, "encodings": {}})
    with pytest.raises(ConfigError, match="cityscapes needs the encoding 'cityscapes_ids'"):
        Cityscapes(cityscapes_root, "train", space)
    with pytest.raises(ConfigError, match="densepass needs the encoding 'cityscapes19'"):
        DensePASS(densepass_root, "val", space)
    DensePASS(densepass_root, "train", space)


def test_label_of_another_size_names_both_files_and_sizes(densepass_root, cityscapes19):
    save(densepass_root / "gtFine/val/cs/100_labelTrainIds.png", np.zeros((20, 32), np.uint8))
    with pytest.raises(DataError, match=r"100_labelTrainIds\.png is 32x20 and its image .*100\.png is 64x40"):
        DensePASS(densepass_root, "val", cityscapes19)[0]


def test_value_outside_the_label_space_names_file_and_value(densepass_root, cityscapes19):
    save(densepass_root / "gtFine/val/cs/100_labelTrainIds.png", np.full(SIZE[::-1], 33, np.uint8))
    with pytest.raises(DataError, match=r"label value 33 in .*cs/100_labelTrainIds\.png is not in labels/cityscapes19"):
        DensePASS(densepass_root, "val", cityscapes19)[0]


def test_coloured_label_is_refused_as_such(densepass_root, cityscapes19):
    save(densepass_root / "gtFine/val/cs/100_labelTrainIds.png", picture(0))
    with pytest.raises(DataError, match=r"100_labelTrainIds\.png has 3 channel\(s\) of mode RGB.*coloured picture"):
        DensePASS(densepass_root, "val", cityscapes19)[0]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"<html>"])
@pytest.mark.parametrize("file", ["leftImg8bit/val/cs/100.png", "gtFine/val/cs/100_labelTrainIds.png"])
def test_damaged_file_is_named(densepass_root, cityscapes19, file, damage):
    dataset = DensePASS(densepass_root, "val", cityscapes19)
    path = densepass_root / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path} .*copy it anew"):
        dataset[0]


def test_file_that_vanished_is_named(densepass_root, cityscapes19):
    dataset = DensePASS(densepass_root, "val", cityscapes19)
    (densepass_root / "leftImg8bit/val/cs/100.png").unlink()
    with pytest.raises(DataError, match=r"100\.png is gone"):
        dataset[0]
