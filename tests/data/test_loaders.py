"""Loaders: batches follow from (seed, position) alone, whatever the ranks, workers and restarts."""

import signal
from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
import pytest
import torch

from tests.data.tiny_images import SIZE, picture, save
from trans4pass import dist
from trans4pass.data import (
    Cityscapes,
    EvalTransform,
    Item,
    Sample,
    Sampler,
    SegmentationDataset,
    Shuffle,
    TrainTransform,
    View,
    eval_loader,
)
from trans4pass.data import train_loader as loader_of
from trans4pass.data.base import derive_seed
from trans4pass.data.loaders import position_batches
from trans4pass.errors import ConfigError, DataError

AUGMENT = TrainTransform((48, 32), fit="cover_crop", flip=0.5, jitter=0.3)


def batches(count: int, length: int, batch_size: int, seed: int = 0, **place) -> list:
    return list(islice(position_batches(shuffle(length, seed), batch_size, **place), count))


def shuffle(length: int, seed: int) -> Shuffle:
    return Shuffle(range(length), seed)  # of a data set only its length counts


def train_loader(dataset: SegmentationDataset, batch_size: int, seed: int, **settings) -> Iterator[dict]:
    return loader_of(dataset, Shuffle(dataset, seed), batch_size, **settings)


def train_loader_of(rank: int, world_size: int, *args, **settings) -> Iterator[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "rank", lambda: rank)
        patch.setattr(dist, "world_size", lambda: world_size)
        return loader_of(*args, **settings)


def same(a: dict, b: dict) -> bool:
    return a["name"] == b["name"] and all(a[key].equal(b[key]) for key in ("image", "label", "seed"))


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
    first, again, other = ([shuffle(20, seed).index(i) for i in range(40)] for seed in (0, 0, 1))
    assert first == again
    assert first[:20] != other[:20] and first[:20] != first[20:]


def test_start_batch_continues_exactly():
    assert (
        batches(5, 7, 3, seed=2, rank=1, world_size=2, start_batch=9)
        == batches(14, 7, 3, seed=2, rank=1, world_size=2)[9:]
    )


def test_a_sampler_jumps_to_any_position():
    inorder = shuffle(7, 3)
    expected = [inorder.index(position) for position in range(30)]
    jumping = shuffle(7, 3)
    assert {position: jumping.index(position) for position in (29, 3, 15, 0)} == {
        position: expected[position] for position in (29, 3, 15, 0)
    }


class Backwards(Sampler):
    """A sampler of one's own."""

    def index(self, position: int) -> int:
        return -position % len(self.dataset)


def test_a_sampler_of_ones_own_decides_what_is_read(seven):
    loader = train_loader_of(1, 2, seven, Backwards(seven, 0), 4, start_batch=1)
    assert next(loader)["name"] == [str(-position % 7) for position in (12, 13, 14, 15)]


def test_an_index_that_is_none_is_refused(seven):
    sampler = Backwards(seven, 0)
    sampler.index = lambda position: position + 5
    with pytest.raises(ConfigError, match=r"a sampler drew image 7 of 7: `index` must return 0 to 6"):
        next(train_loader_of(0, 1, seven, sampler, 4))


# ------------------------------------------------------------------------------------------------------------- batches


def test_batch_has_the_seams_types(dataset):
    batch = next(train_loader(dataset, 2, seed=0))
    assert batch["image"].shape == (2, 3, 32, 48) and batch["image"].dtype == torch.uint8
    assert batch["label"].shape == (2, 32, 48) and batch["label"].dtype == torch.uint8
    assert len(batch["name"]) == 2 and set(batch) == {"image", "label", "name", "seed"}


def test_every_sample_has_a_seed_of_its_position(dataset):
    """Methods draw their own views with it: never the seed that the data set's transform draws from, nor a rank's."""
    one = next(train_loader(dataset, 4, seed=0, start_batch=2))["seed"]
    halves = [next(train_loader_of(r, 2, dataset, Shuffle(dataset, 0), 2, start_batch=2)) for r in (0, 1)]
    assert one.dtype == torch.int64 and one.min() >= 0 and len(set(one.tolist())) == 4
    assert torch.cat([half["seed"] for half in halves]).equal(one)
    assert set(one.tolist()).isdisjoint(derive_seed(5, position) for position in range(16))
    assert one.tolist() != next(train_loader(dataset, 4, seed=0, start_batch=3))["seed"].tolist()


def test_what_a_view_puts_into_a_sample_comes_along(dataset):
    class Weighing(View):
        def one(self, sample: Sample, generator: torch.Generator) -> Sample:
            return {**sample, "weight": torch.rand(sample["label"].shape, generator=generator)}

    batch = next(train_loader(dataset.with_transform(Weighing()), 2, seed=0))
    assert batch["weight"].shape == batch["label"].shape and batch["weight"].dtype == torch.float32


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
    halves = [next(train_loader_of(r, 2, dataset, Shuffle(dataset, 0), 2, start_batch=2)) for r in (0, 1)]
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


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_batches_hold_images_of_one_size(num_workers, seven, tmp_path):
    save(tmp_path / "1.png", picture(1, (50, 70)))
    (tmp_path / "4.png").write_bytes(b"no picture")
    bad = []
    loader = eval_loader(seven, num_workers, on_bad=lambda *sample: bad.append(sample), batch_size=3)
    found = [(batch["name"], tuple(batch["image"].shape)) for batch in loader]
    size = SIZE[::-1]
    assert found == [
        (["0", "2"], (2, 3, *size)),
        (["1"], (1, 3, 70, 50)),
        (["3", "5"], (2, 3, *size)),
        (["6"], (1, 3, *size)),
    ]
    assert [image for image, _ in bad] == [str(tmp_path / "4.png")]


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


class WorkerState(View):
    """Reports the worker's threads and its handling of Ctrl-C as pixels."""

    def one(self, sample: Sample, generator: torch.Generator) -> Sample:
        ignores = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        sample["image"][:] = torch.tensor([torch.get_num_threads(), ignores, 0], dtype=torch.uint8)[:, None, None]
        return sample


def test_workers_have_one_thread_and_leave_ctrl_c_to_the_main_process(seven):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us with it ignored
    try:
        image = next(iter(eval_loader(seven.with_transform(WorkerState()), num_workers=1)))["image"]
        assert image[0, :2, 0, 0].tolist() == [1, 1]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
