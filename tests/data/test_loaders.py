"""Loaders: batches follow from (seed, position) alone, whatever the ranks, workers and restarts."""

import signal
from itertools import chain, islice

import numpy as np
import pytest
import torch
from tests.data.tiny_images import SIZE, picture, save

from trans4pass.data import Cityscapes, EvalTransform, Item, SegmentationDataset, TrainTransform, eval_loader
from trans4pass.data.loaders import PositionSampler, permutation, train_loader
from trans4pass.errors import ConfigError, DataError

AUGMENT = TrainTransform((48, 32), fit="cover_crop", flip=0.5, jitter=0.3)


def batches(count: int, *args, **kwargs) -> list:
    return list(islice(PositionSampler(*args, **kwargs), count))


def same(a: dict, b: dict) -> bool:
    return a["name"] == b["name"] and a["image"].equal(b["image"]) and a["label"].equal(b["label"])


@pytest.fixture
def dataset(cityscapes_root, outdoor13) -> Cityscapes:
    return Cityscapes(cityscapes_root, "train", outdoor13, transform=AUGMENT, seed=5)


@pytest.fixture
def seven(tmp_path, outdoor13) -> SegmentationDataset:
    items = [Item(str(i), save(tmp_path / f"{i}.png", picture(i))) for i in range(7)]
    return SegmentationDataset(items, outdoor13, labelled=False)


# ------------------------------------------------------------------------------------------------------------- sampler


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_read_what_one_process_reads(world_size):
    one = batches(12, 7, 2 * world_size, seed=3)
    ranks = [batches(12, 7, 2, seed=3, rank=r, world_size=world_size) for r in range(world_size)]
    assert [list(chain(*step)) for step in zip(*ranks)] == one


def test_positions_count_up_and_every_epoch_holds_every_image_once():
    keys = list(chain(*batches(35, 7, 2, seed=1)))
    assert [position for _, position in keys] == list(range(70))
    epochs = [[index for index, _ in keys[i : i + 7]] for i in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


def test_a_batch_may_hold_several_epochs():
    keys = batches(1, 2, 6, seed=0)[0]
    assert sorted(index for index, _ in keys) == [0, 0, 0, 1, 1, 1]


def test_order_depends_on_the_seed():
    assert permutation(20, 0, 0) == permutation(20, 0, 0)
    assert permutation(20, 0, 0) != permutation(20, 1, 0)
    assert permutation(20, 0, 0) != permutation(20, 0, 1)


def test_start_batch_continues_exactly():
    assert (
        batches(5, 7, 3, seed=2, rank=1, world_size=2, start_batch=9)
        == batches(14, 7, 3, seed=2, rank=1, world_size=2)[9:]
    )


def test_batch_size_must_be_positive():
    with pytest.raises(ConfigError, match="batch_size=0"):
        PositionSampler(3, 0, seed=0)


# ------------------------------------------------------------------------------------------------------------- batches


def test_batch_has_the_seams_types(dataset):
    batch = next(train_loader(dataset, 2, seed=0))
    assert batch["image"].shape == (2, 3, 32, 48) and batch["image"].dtype == torch.uint8
    assert batch["label"].shape == (2, 32, 48) and batch["label"].dtype == torch.int64
    assert len(batch["name"]) == 2 and set(batch) == {"image", "label", "name"}


def test_batches_do_not_depend_on_the_number_of_workers(dataset):
    here = list(islice(train_loader(dataset, 2, seed=0), 6))
    apart = list(islice(train_loader(dataset, 2, seed=0, num_workers=2), 6))
    assert all(same(a, b) for a, b in zip(here, apart))


def test_resumed_loader_gives_the_same_pixels(dataset):
    whole = list(islice(train_loader(dataset, 2, seed=0), 7))
    resumed = list(islice(train_loader(dataset, 2, seed=0, start_batch=4), 3))
    assert all(same(a, b) for a, b in zip(whole[4:], resumed))


def test_ranks_give_the_pixels_of_one_process(dataset):
    one = next(train_loader(dataset, 4, seed=0, start_batch=2))
    halves = [next(train_loader(dataset, 2, seed=0, start_batch=2, rank=r, world_size=2)) for r in (0, 1)]
    assert torch.cat([half["image"] for half in halves]).equal(one["image"])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_leaves_the_global_generator_alone(dataset, num_workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(train_loader(dataset, 2, seed=0, num_workers=num_workers))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_reads_every_image_once_over_all_ranks(seven, world_size):
    ranks = [eval_loader(seven, rank=r, world_size=world_size) for r in range(world_size)]
    names = [batch["name"][0] for loader in ranks for batch in loader]
    assert sorted(names) == sorted(item.name for item in seven.items)
    assert sum(map(len, ranks)) == 7


def test_evaluation_loader_can_be_read_again_with_images_of_any_size(seven, tmp_path):
    save(tmp_path / "3.png", picture(3, (50, 70)))
    loader = eval_loader(seven, num_workers=1)
    for _ in range(2):
        shapes = [tuple(batch["image"].shape) for batch in loader]
        assert shapes == [(1, 3, 70, 50) if i == 3 else (1, 3, *SIZE[::-1]) for i in range(7)]


# ----------------------------------------------------------------------------------------------------- workers, errors


def refusal(loader) -> str:
    """The text of the loader's error; `pytest.raises` would keep the workers alive in a cycle of frames."""
    try:
        list(loader)
    except DataError as error:
        return str(error)
    pytest.fail("no error")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_file_is_named_without_a_traceback(cityscapes_root, outdoor13, num_workers):
    stem = "gtFine/train/bonn/bonn_000002_000019_gtFine_labelIds.png"
    path = save(cityscapes_root / stem, np.full(SIZE[::-1], 77, np.uint8))
    dataset = Cityscapes(cityscapes_root, "train", outdoor13, transform=EvalTransform((32, 32)))
    for loader in (train_loader(dataset, 3, seed=0, num_workers=num_workers), eval_loader(dataset, num_workers)):
        text = refusal(loader)
        assert text.startswith(f"label value 77 in {path} ")
        assert "Traceback" not in text and "\n" not in text


def worker_state(image, label):
    """Stands in for a transform and reports the worker's threads and its handling of Ctrl-C as pixels."""
    ignores = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    image[:] = torch.tensor([torch.get_num_threads(), ignores, 0], dtype=torch.uint8)[:, None, None]
    return image, label


def test_workers_have_one_thread_and_leave_ctrl_c_to_the_main_process(seven):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us with it ignored
    try:
        image = next(iter(eval_loader(seven.with_transform(worker_state), num_workers=1)))["image"]
        assert image[0, :2, 0, 0].tolist() == [1, 1]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
