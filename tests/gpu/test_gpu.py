"""What only a GPU can tell (`make gpu`). Not run on one yet; the bodies are tried on a CPU, where GPU is one.

Backward passes are among it: autograd's engine goes back on a real device, so that fake CUDA tensors (tests/devices)
have none.
"""

import copy
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import product, repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from timm.layers.norm_act import convert_sync_batchnorm
from torch.export.passes import move_to_device_pass
from torch.nn.utils import parameters_to_vector

from tests.devices.test_models import CASES
from tests.ops.test_deform_conv import CASES as LAYERS
from tests.ops.test_deform_conv import assert_close
from tests.small import label_space, tiny_segmentor
from tests.training.small import trainer_of
from tests.training.test_distributed import METHODS
from trans4pass import create_model
from trans4pass.inference.graph import export_graph
from trans4pass.methods import Batch, Method
from trans4pass.methods.prototypes import PrototypeBank
from trans4pass.models import Segmentor
from trans4pass.models.registry import HEADS
from trans4pass.training import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
CPU = torch.device("cpu")
K = 4
# Relative, of a step's losses and of its whole gradient. Half-precise steps on a CPU are off by less than half of this:
# bf16 by 1e-2 and 0.1, fp16 by 2e-3 and 3e-2; TF32 keeps as many digits as fp16.
TOLERANCE = {"fp32": (1e-3, 2e-3), "tf32": (1e-2, 6e-2), "bf16": (5e-2, 0.25), "fp16": (1e-2, 6e-2)}
TIPPED = 0.5  # of a teacher's gradient otherwise than in fp32: where two classes are close, it labels the other one
LAYER_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 3e-3}  # relative to the largest value, as in tests/ops
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
HALF_LAYERS = ["a group per channel", "7x7, stride 4", "3x3, three groups"]  # a GPU compiles triton's for each
STEPS = [
    *product(METHODS, ["micro, dmlp, plain", "micro, wrap"]),
    *product(["cross-entropy"], ["native", "native, wrap", "triton", "triton, wrap"]),
]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """No TF32 unless a test says so."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("backend", ["torchvision", "deterministic", "native", "triton"])
@pytest.mark.parametrize(("case", "precision"), [*product(LAYERS, ["fp32"]), *product(HALF_LAYERS, HALF)])
def test_the_backends_are_equal(case: str, precision: str, backend: str, wrap: bool) -> None:
    tensors, grad = LAYERS[case].tensors()
    if precision in HALF:  # numbers that half precision has; offsets stay in fp32
        tensors = [x if number == 1 else x.to(HALF[precision]).float() for number, x in enumerate(tensors)]
        grad = grad.to(HALF[precision]).float()
    expected = LAYERS[case].run(tensors, grad, "native", wrap)
    with torch.autocast(GPU.type, HALF.get(precision), enabled=precision in HALF):
        found = LAYERS[case].run([x.to(GPU) for x in tensors], grad.to(GPU, HALF.get(precision)), backend, wrap)
    assert [x.dtype for x in found] == [HALF.get(precision, torch.float32), *[torch.float32] * 5]
    assert_close([x.float().cpu() for x in found], expected, LAYER_TOLERANCE[precision])


def model_of(case: str, device: torch.device, **more: Any) -> Segmentor:
    """A fresh model, on the CPU with the backend that `auto` takes."""
    name, options = CASES[case]
    if device == CPU:
        options = {key: value for key, value in options.items() if key != "deform_backend"}
    torch.manual_seed(0)
    return create_model(name, K, **options, **more).to(device)


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_the_cpus(case: str) -> None:
    image = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = (model_of(case, device).eval()(image.to(device)).logits.cpu() for device in (CPU, GPU))
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def trained(
    name: str, folder: Path, device: torch.device, precision: str = "fp32", steps: int = 1, case: str | None = None
) -> Trainer:
    """A trainer after some steps on one random batch of each domain, of a network of few weights or a case's.

    Its losses of the last step are `losses`, the way that all its weights went is `way`: of one step the gradient.
    """
    network = tiny_segmentor(K) if case is None else model_of(case, device, drop_path=0.0)
    method = METHODS[name](network).to(device).train()
    fill_bank(method)
    learned = [parameter for parameter in method.parameters() if parameter.requires_grad]
    before = parameters_to_vector(learned).detach().clone()
    half = precision if precision in HALF else "fp32"
    trainer: Any = trainer_of(method, folder, precision=half, steps=steps, device=device)
    # With torch's first scale, 65536, gradients overflow, and the step is left out.
    trainer.scaler = torch.amp.GradScaler(device.type, init_scale=1024, enabled=precision == "fp16")
    for _ in range(steps):
        trainer.losses = trainer.train_step([batch(method.domains)])
        trainer.step += 1
    trainer.way = (before - parameters_to_vector(learned).detach()).cpu()
    return trainer


@cache
def on_cpu(name: str, case: str) -> Any:
    """`trained` for one step in fp32."""
    with TemporaryDirectory() as folder:
        return trained(name, Path(folder), CPU, case=case)


def batch(domains: tuple[str, ...]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for domain in domains:
        image = torch.randint(0, 256, (4, 3, 64, 128), generator=generator, dtype=torch.uint8)
        label = torch.randint(0, K, (4, 64, 128), generator=generator, dtype=torch.uint8)
        made[domain] = {"image": image, "label": label, "name": list("abcd"), "seed": torch.arange(4)}
    return made


def fill_bank(method: Method) -> None:
    """First prototypes, which come of data sets otherwise."""
    for module in method.modules():
        if isinstance(module, PrototypeBank):
            generator = torch.Generator().manual_seed(1)
            module.prototypes.copy_(torch.randn(module.prototypes.shape, generator=generator))


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize(("name", "case"), STEPS)
def test_a_step_is_the_cpus(name: str, case: str, precision: str, tmp_path: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    expected, found = on_cpu(name, case), trained(name, tmp_path, GPU, precision, case=case)
    of_losses, of_gradient = TOLERANCE[precision]
    of_gradient = TIPPED if name == "teacher" and precision != "fp32" else of_gradient
    assert found.losses.keys() == expected.losses.keys()
    for key, value in expected.losses.items():
        if not key.startswith("grad_norm"):  # the gradient's own length follows
            assert found.losses[key].item() == pytest.approx(value.item(), rel=of_losses, abs=of_losses), key
    assert (found.way - expected.way).norm() <= of_gradient * expected.way.norm()


@pytest.mark.parametrize("name", METHODS)
def test_deterministic_steps_are_the_same_twice(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    one, other = (trained(name, tmp_path, GPU, steps=3).method.state_dict() for _ in range(2))
    assert not [key for key in one if not torch.equal(one[key].nan_to_num(), other[key].nan_to_num())]


@pytest.mark.parametrize("head", HEADS)
def test_half_precise_steps_of_a_model_are_the_same_twice(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deformable layers, pooling and resizing, backwards; a fused optimiser and channels-last weights."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)

    def stepped() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = create_model("trans4pass_micro", K, head=head).to(GPU, memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue] torch's stubs lack it
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        for _ in range(2):
            with torch.autocast(GPU.type, torch.bfloat16):
                output = model(torch.rand(2, 3, 64, 64, device=GPU))
            sum(logits.float().square().mean() for logits in (output.logits, *output.aux.values())).backward()
            optimizer.step()
        return model.state_dict()

    one, other = stepped(), stepped()
    assert not [key for key in one if not torch.equal(one[key], other[key])]


@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_at_most_twice(name: str, tmp_path: Path) -> None:
    trainer = trained(name, tmp_path, GPU, steps=4)  # by then ECRM's ring is full
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # else a line that waits twice is heard once
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.train_step([batch(trainer.method.domains)])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # torch also warns once, of the mode itself.
    waits = [str(warning.message) for warning in caught if "called a synchronizing" in str(warning.message)]
    assert len(waits) <= 2, waits


def test_one_process_with_nccl_takes_the_step_of_none(tmp_path: Path) -> None:
    alone = trained("mpa, fixed", tmp_path, GPU).method.state_dict()
    place = {"init_method": f"file://{tmp_path}/store", "rank": 0, "world_size": 1}
    td.init_process_group("cpu:gloo,cuda:nccl", device_id=GPU, **place)
    try:
        method = METHODS["mpa, fixed"](tiny_segmentor(K)).to(GPU).train()
        fill_bank(method)
        trainer = trainer_of(method, tmp_path, device=GPU)
        trainer._parallel = torch.nn.parallel.DistributedDataParallel(
            method, device_ids=[GPU], broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=True
        )
        trainer.train_step([batch(method.domains)])
    finally:
        td.destroy_process_group()
    for key, value in method.state_dict().items():
        assert torch.allclose(value.nan_to_num().float(), alone[key].nan_to_num().float(), atol=1e-4), key


def test_compiled_gradients_are_the_eager_ones() -> None:
    torch.manual_seed(0)
    model = create_model("trans4pass_micro", K, drop_path=0.0).to(GPU).eval()
    compiled, image = copy.deepcopy(model), torch.rand(2, 3, 64, 64, device=GPU)
    compiled.compile(dynamic=False)
    for each in (model, compiled):
        each(image).logits.square().mean().backward()
    for (name, one), other in zip(model.named_parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-2, atol=1e-4 * float(one.grad.abs().max())), name


@pytest.mark.parametrize("name", ["mpa, fixed", "teacher"])
def test_a_stopped_run_ends_as_one_that_was_not(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)

    def fitted(folder: Path, steps: int) -> dict[str, torch.Tensor]:
        method = METHODS[name](tiny_segmentor(K)).to(GPU).train()
        fill_bank(method)
        trainer = trainer_of(method, folder, lambda start: repeat(batch(method.domains)), steps=steps, device=GPU)
        trainer.fit()
        return method.state_dict()

    whole = fitted(tmp_path / "whole", 4)
    fitted(tmp_path / "stopped", 2)
    resumed = fitted(tmp_path / "stopped", 4)
    assert not [key for key in whole if not torch.equal(whole[key].nan_to_num(), resumed[key].nan_to_num())]


def test_an_exported_graph_predicts_as_the_model(tmp_path: Path) -> None:
    model = create_model("trans4pass_micro", K).eval()
    export_graph(tmp_path / "model.pt2", model, label_space("abcd"), "logits", (128, 64), dynamic=False, opset=None)
    program = move_to_device_pass(torch.export.load(tmp_path / "model.pt2"), GPU)
    image = torch.randint(0, 256, (1, 3, 64, 128), dtype=torch.uint8, device=GPU)
    with torch.no_grad():
        expected, found = model.to(GPU)(image).logits, program.module()(image)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def step_of_rank(rank: int, ranks: int, folder: str) -> None:
    """One step of this rank's share of a batch of four, with SyncBN where there are several."""
    device = torch.device(GPU.type, rank) if GPU.type == "cuda" else CPU
    td.init_process_group(
        "cpu:gloo,cuda:nccl" if GPU.type == "cuda" else "gloo",
        init_method=f"file://{folder}/store{ranks}",
        rank=rank,
        world_size=ranks,
    )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    method: Method = METHODS["mpa, fixed"](create_model("trans4pass_micro", K, embed_dim=16, drop_path=0.0))
    fill_bank(method)
    if GPU.type == "cuda":
        torch.cuda.set_device(device)
        method = convert_sync_batchnorm(method)
    method = method.to(device).train()
    trainer = trainer_of(method, Path(folder) / f"{rank} of {ranks}", device=device)
    trainer._parallel = trainer.parallel()
    whole, share = batch(method.domains), slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
    trainer.train_step([{domain: {key: x[share] for key, x in part.items()} for domain, part in whole.items()}])
    torch.save({key: x.cpu() for key, x in method.state_dict().items()}, Path(folder) / f"{rank} of {ranks}.pt")
    td.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_take_the_step_of_one_with_twice_the_batch(tmp_path: Path) -> None:
    """SyncBN, normalisers, banks and gradients are shared."""
    for ranks in (1, 2):
        mp.spawn(step_of_rank, (ranks, str(tmp_path)), ranks)
    alone, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("0 of 1", "0 of 2", "1 of 2"))
    for found in two:
        for key, value in alone.items():
            assert torch.allclose(found[key].nan_to_num().float(), value.nan_to_num().float(), rtol=1e-3, atol=1e-4), (
                key
            )
