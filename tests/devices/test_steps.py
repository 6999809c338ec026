"""A whole training step of every method on a GPU that computes nothing: how often the host waits for it.

Without a GPU autograd's engine has no device to go back on, so that gradients are put in place of the backward pass,
which waits for nothing: torch's own and ours (tests/ops) have fixed sizes.
"""

import copy
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.small import tiny_segmentor
from tests.training.small import supervised, trainer_of
from tests.training.test_distributed import METHODS
from trans4pass import create_model
from trans4pass.data import Compose, Tilt, TrainTransform
from trans4pass.losses import CrossEntropy, Dice, Focal, HardPixelCrossEntropy, MaskEdge, OHEMCrossEntropy
from trans4pass.methods import MeanTeacher, Method, Segmentation, Viewed
from trans4pass.models.ecrm import PrototypeRing
from trans4pass.training import Monitor

from .fake import CUDA, Launches, fake_cuda, on_cuda

K = 4
LOSSES = {
    "focal": Focal(), "hard pixel": HardPixelCrossEntropy(0.5, 0), "ohem": OHEMCrossEntropy(min_kept=8), "dice": Dice(),
    "mask edge": MaskEdge(), "weighted": CrossEntropy([1.0, 2.0, 3.0, 4.0]),
}  # fmt: skip


def stepped(method: Method, folder: Path, steps: int, launches: Launches) -> int:
    """The host's waits in the last of some steps, and in its log line."""
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]

    def backward(total: Tensor, gradient: Tensor | None = None) -> None:
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)

    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    trainer = trainer_of(
        method, folder, precision="bf16", optimizer=optimizer, steps=steps, log_every=steps, device=CUDA
    )
    image, label = torch.zeros(2, 3, 64, 128, dtype=torch.uint8), torch.zeros(2, 64, 128, dtype=torch.uint8)
    domain = {"image": image, "label": label, "name": ["a", "b"], "seed": torch.zeros(2, dtype=torch.long)}
    waits = 0
    with mock.patch.object(Tensor, "backward", backward):
        for _ in range(steps):
            launches.waits.clear()
            values = trainer.train_step([dict.fromkeys(method.domains, domain)])
            assert {value.device for value in values.values()} == {CUDA}
            trainer.step += 1
            waits = launches.waits.total()
    return waits


@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_once(name: str, tmp_path: Path) -> None:
    """For whether the gradient is finite."""
    with fake_cuda() as launches:
        launches.number = 8  # entries: ECRM's ring is full
        method = on_cuda(lambda: METHODS[name](tiny_segmentor(K)))
        assert stepped(method, tmp_path, 2, launches) == 1


@pytest.mark.parametrize("pixels", [0, 1 << 20])
def test_a_teachers_scaled_crops_and_tilts_are_not_waited_for(
    pixels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As configs/stage/_teacher.yaml has the view; from `MANY_PIXELS` on a crop is scaled alone."""
    monkeypatch.setattr("trans4pass.data.views.MANY_PIXELS", pixels)
    crop = TrainTransform((48, 48), fit="scale_crop", base=64, scale=(0.8, 1.6), flip=0.5, jitter=0.5, blur=0.5)
    view = Compose({"tilt": Tilt(), "crop": crop})

    def teacher() -> Method:
        network = create_model("trans4pass_micro", K, head="fpn")
        terms = {"self_training": Segmentation(network, CrossEntropy(), "target")}
        return MeanTeacher(network, terms, derive={"target": Viewed("target", view)})

    with fake_cuda() as launches:
        assert stepped(on_cuda(teacher), tmp_path, 1, launches) == 1


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_waits(name: str, tmp_path: Path) -> None:
    with fake_cuda() as launches:
        method = on_cuda(
            lambda: supervised(create_model("trans4pass_micro", K, head="fpn"), copy.deepcopy(LOSSES[name]))
        )
        assert stepped(method, tmp_path, 1, launches) == 1


def test_a_full_ring_is_asked_no_more() -> None:
    torch.manual_seed(0)
    ring = PrototypeRing(4, 3, 2)
    counted: list[int] = []
    number = Tensor.__int__
    with mock.patch.object(Tensor, "__int__", lambda x: counted.append(1) or number(x)):
        for entries, asked in ((3, 1), (3, 1), (2, 0), (5, 0)):
            counted.clear()
            ring.write(torch.randn(entries, 3, 2))
            assert ring.read().shape[1] == 2 * min(4, int(number(ring.written)))
            assert len(counted) == asked
        counted.clear()
        ring.load_state_dict({"bank": torch.zeros(4, 3, 2), "written": torch.tensor(2)})
        assert ring.read().shape[1] == 4
        assert counted


def test_the_log_line_waits_once(tmp_path: Path) -> None:
    tracker = mock.Mock()
    with fake_cuda() as launches:
        monitor = Monitor([tracker], "source", 4, 2, CUDA)
        with monitor.running(0, 0):
            for step in (1, 2):
                launches.waits.clear()
                monitor.step(step, {"a": torch.zeros((), device=CUDA), "b": torch.zeros((), device=CUDA)}, {}, 0)
                assert launches.waits.total() == 2 * (step == 2), launches.waits
    tracker.log.assert_called_once()
