"""The training stages that are shipped, with their real views and derivations, on a GPU that computes nothing."""

from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.pipeline.conftest import stages_of
from tests.training.small import trainer_of
from trans4pass.methods import Batch
from trans4pass.pipeline import TrainStage

from .fake import CUDA, fake_cuda, on_cuda

RECIPES = {
    "pin2pan": ("source", "warmup", "mpa"),
    "pin2pan_teacher": ("teacher",),
    "multi_source": ("source", "teacher"),
    "few_labels": ("few_labels",),
    "pin2pan_toy_source_free": ("source_free",),
    "toy_sphere": ("bent", "wrapped"),
}


def batch_of(stage: TrainStage) -> Batch:
    """Black images of the stage's own number and size."""
    batch = {}
    for name, domain in stage.domains.items():
        (width, height), count = domain.settings.transform["size"], domain.batch_size
        image = torch.zeros(count, 3, height, width, dtype=torch.uint8)
        label = torch.zeros(count, height, width, dtype=torch.uint8)
        batch[name] = {"image": image, "label": label, "name": [name] * count, "seed": torch.arange(count)}
    return batch


@pytest.mark.parametrize(("experiment", "name"), [(e, name) for e, names in RECIPES.items() for name in names])
def test_a_recipes_step_waits_once(experiment: str, name: str, tmp_path: Path) -> None:
    stage = stages_of(tmp_path, f"experiment={experiment}", "model=trans4pass_micro", f"data_root={tmp_path}")[name]
    assert isinstance(stage, TrainStage)
    with fake_cuda() as launches:
        method = on_cuda(stage.build_method, ahead=True)
        learned = [parameter for parameter in method.parameters() if parameter.requires_grad]

        def backward(total: Tensor, gradient: Tensor | None = None) -> None:
            for parameter in learned:
                parameter.grad = torch.empty_like(parameter)

        optimizer = partial(torch.optim.AdamW, lr=1e-3)
        trainer = trainer_of(method, tmp_path / "x", precision="bf16", optimizer=optimizer, steps=2, device=CUDA)
        batch = batch_of(stage)
        with mock.patch.object(Tensor, "backward", backward):
            for _ in range(2):
                launches.waits.clear()
                values = trainer.train_step([batch])
                trainer.step += 1
        assert {value.device for value in values.values()} == {CUDA}
        assert launches.waits.total() == 1, launches.waits
