"""Every model, head and option on a GPU that computes nothing: no mixing of devices, no sizes that it alone knows."""

from itertools import product
from typing import Any

import pytest
import torch

from trans4pass import create_model
from trans4pass.models.registry import HEADS

from .fake import CUDA, fake_cuda, on_cuda

ALIGNED = {"align": 0.5, "statistics": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
EVERYTHING = {"ecrm": {"width": 16, "attention_width": 8}, "edges": {"width": 64}, **ALIGNED}
CASES = {f"micro, {head}, {name}": ("trans4pass_micro", {"head": head, **options})
    for head, (name, options) in product(HEADS, {"plain": {}, "everything": EVERYTHING}.items())
    if not (options and head == "coarse_to_fine")}  # fmt: skip
CASES |= {
    "micro, coarse_to_fine, ecrm": ("trans4pass_micro", {"head": "coarse_to_fine", "ecrm": EVERYTHING["ecrm"]}),
    "plus": ("trans4pass_plus_micro", {"deform": (True, True, True, True)}),
    "danet": ("danet_resnet50", {}),
    "timm": ("timm/resnet18", {"head": "linear"}),
    "micro, wrap": ("trans4pass_micro", {"wrap": True, **EVERYTHING}),
    "plus, wrap": ("trans4pass_plus_micro", {"wrap": True}),
    "native": ("trans4pass_micro", {"deform_backend": "native"}),
    "native, wrap": ("trans4pass_micro", {"deform_backend": "native", "wrap": True}),
    "triton": ("trans4pass_micro", {"deform_backend": "triton"}),
    "triton, wrap": ("trans4pass_plus_micro", {"deform_backend": "triton", "wrap": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_forward_pass_waits_for_nothing(case: str) -> None:
    name, options = CASES[case]
    with fake_cuda() as launches, torch.autocast("cuda", torch.bfloat16):
        model = on_cuda(create_model, name, 5, **options)
        launches.waits.clear()
        output = model(torch.zeros(2, 3, 64, 128, dtype=torch.uint8, device=CUDA))
        assert {x.device for x in (output.logits, output.features, *output.aux.values())} == {CUDA}
        assert output.logits.shape == (2, 5, 64, 128)
    # ECRM asks how many entries its ring has, until that is full.
    assert launches.waits.total() == ("ecrm" in options)


def launched(**options: Any) -> int:
    """Launches of one prediction of a panorama of 2048x384."""
    with fake_cuda() as launches, torch.no_grad():
        model = on_cuda(create_model, "trans4pass_tiny", 19, **options).eval()
        launches.kernels.clear()
        model(torch.zeros(1, 3, 384, 2048, dtype=torch.uint8, device=CUDA))
    return launches.kernels.total()


def test_a_full_panorama_takes_at_most_twice_the_launches() -> None:
    assert launched() < launched(wrap=True) <= 2 * launched()


@pytest.mark.parametrize(("wrap", "times"), [(False, 1.4), (True, 2)])
def test_a_deterministic_panorama_takes_at_most_twice_the_launches(
    wrap: bool, times: float, request: pytest.FixtureRequest
) -> None:
    """Of those that torchvision's path takes where nothing need be repeatable."""
    plain = launched(deform_backend="torchvision")
    request.getfixturevalue("deterministic")
    assert launched(wrap=wrap) <= times * plain
