"""The kernels in Triton: in Triton's interpreter against the native backend, and through the compiler for GPUs."""

import importlib
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version

from tests.ops.test_deform_conv import Case, assert_close
from trans4pass import create_model
from trans4pass.errors import ConfigError
from trans4pass.ops import check_backend, deform_conv2d

triton = pytest.importorskip("triton", reason="comes with torch for GPUs on Linux")
# What needs it.
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from trans4pass.ops import fused  # noqa: E402

pytestmark = pytest.mark.skipif(
    Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"),
    reason="Triton's interpreter fails beside numpy 2.4 until Triton 3.7 (triton-lang/triton, issue 9171)",
)

CASES = {
    "a group per channel": Case(2, 3, 4, 5, 7, 1, 1, 0, 3),
    "3x3, stride 2": Case(1, 2, 3, 5, 4, 3, 2, 1, 1),
    "2x2, two groups": Case(1, 4, 2, 3, 4, 2, 1, 1, 2),
}


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> Iterator[None]:
    """The kernels as Triton's interpreter runs them, several programs to a few positions."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    importlib.reload(fused).POSITIONS = 32
    yield
    del os.environ["TRITON_INTERPRET"]
    if before is not None:
        os.environ["TRITON_INTERPRET"] = before
    importlib.reload(fused)


@pytest.mark.parametrize(("case", "offsets"), list(product(CASES, ["whole", "far outside"])))
def test_equal_to_native(case: str, offsets: str) -> None:
    tensors, grad = CASES[case].tensors(offsets)
    assert_close(CASES[case].run(tensors, grad, "triton"), CASES[case].run(tensors, grad, "native"), 1e-5)


@pytest.mark.parametrize("case", ["a group per channel", "3x3, stride 2"])
def test_without_mask_and_bias(case: str) -> None:
    (input, offset, _, weight, _), grad = CASES[case].tensors()
    tensors = [input, offset, None, weight, None]
    assert_close(CASES[case].run(tensors, grad, "triton"), CASES[case].run(tensors, grad, "native"), 1e-5)


@pytest.mark.parametrize("case", ["a group per channel", "3x3, stride 2"])
def test_round_the_map(case: str) -> None:
    """Offsets go round several times, and to the side exactly."""
    tensors, grad = CASES[case].tensors("far outside")
    tensors[1][:, 1::4] = tensors[1][:, 1::4].round()
    assert_close(*(CASES[case].run(tensors, grad, backend, wrap=True) for backend in ("triton", "native")), 1e-5)


def test_double_precision_is_exact() -> None:
    case = CASES["a group per channel"]
    tensors, grad = case.tensors(dtype=torch.float64)
    assert_close(case.run(tensors, grad, "triton"), case.run(tensors, grad, "native"), 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_for_values_not_for_positions(dtype: torch.dtype) -> None:
    """At column 300 a position in bfloat16 would be right to two pixels."""
    case = Case(1, 2, 2, 1, 310, 1, 1, 0, 2)
    tensors, grad = case.tensors()
    exact = [tensor if number == 1 else tensor.to(dtype).float() for number, tensor in enumerate(tensors)]
    expected = case.run(exact, grad.to(dtype).float(), "native")
    with torch.autocast("cpu", dtype):
        found = case.run(tensors, grad.to(dtype), "triton")
    assert [tensor.dtype for tensor in found] == [dtype, *[torch.float32] * 5]
    assert_close([tensor.float() for tensor in found], expected, 2e-2 if dtype == torch.bfloat16 else 3e-3)


def test_an_input_without_gradient_changes_no_other() -> None:
    case = CASES["3x3, stride 2"]
    tensors, grad = case.tensors()
    _, _, *expected = case.run(tensors, grad, "triton")
    input, *leaves = (tensor.clone().requires_grad_() for tensor in tensors)
    deform_conv2d(input.detach(), *leaves, case.stride, case.padding, "triton").backward(grad)
    assert all(torch.equal(leaf.grad, gradient) for leaf, gradient in zip(leaves, expected, strict=True))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # numpy's, of NaN as an index
@pytest.mark.parametrize("wrap", [False, True])
def test_a_nan_offset_gives_nan_at_its_place_only(wrap: bool) -> None:
    tensors, _ = CASES["a group per channel"].tensors()
    tensors[1][0, 0, 2, 3] = tensors[1][1, 3, 4, 5] = torch.nan
    result = deform_conv2d(*tensors, backend="triton", wrap=wrap)
    assert result[0, :, 2, 3].isnan().all() and result[1, :, 4, 5].isnan().all()
    assert result.isnan().sum() == 2 * result.shape[1]


def test_memory_layout_does_not_matter() -> None:
    case = CASES["a group per channel"]
    tensors, grad = case.tensors()
    other = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in (*tensors[:4], grad)]
    for one, two in zip(case.run(tensors, grad, "triton"), case.run([*other[:4], tensors[4]], other[4], "triton")):
        assert torch.equal(one, two)


@pytest.mark.slow
def test_one_graph_holds_the_kernels() -> None:
    case = CASES["a group per channel"]
    tensors, grad = case.tensors()
    expected = case.run(tensors, grad, "triton")
    leaves = [tensor.requires_grad_() for tensor in tensors]
    result = torch.compile(deform_conv2d, backend="aot_eager", fullgraph=True, dynamic=False)(*leaves, backend="triton")
    result.backward(grad)
    assert_close([result.detach(), *(leaf.grad for leaf in leaves)], expected, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "values", "kernel"), [(80, "*fp32", 1), (90, "*bf16", 1), (75, "*fp16", 3)])
def test_a_gpus_compiler_takes_the_kernels(
    architecture: int, values: str, kernel: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Which needs no GPU; the interpreter takes much that the compiler does not."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET")
    compiled = importlib.reload(fused)
    target = GPUTarget("cuda", architecture, 32)
    positions = {"offset": "*fp32", "grad_offset": "*fp32", "grad_input": "*fp32"}
    tensors = ("input", "offset", "mask", "samples", "grad", "grad_input", "grad_offset", "grad_mask")
    constants = {"WRAP": kernel > 1, "SCATTER": True, "POSITIONS": 256}
    constants |= {"kernel": 1, "stride": 1, "depth": 1} if kernel == 1 else {}
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for function in (compiled._sample, compiled._sample_backward):
        chosen = {name: value for name, value in constants.items() if name in function.arg_names}
        kinds = {name: positions.get(name, values) if name in tensors else "i32" for name in function.arg_names}
        source = ASTSource(function, kinds | dict.fromkeys(chosen, "constexpr"), chosen)
        assert triton.compile(source, target=target).asm["cubin"]
    importlib.reload(fused).POSITIONS = 32


def test_deterministic_mode_is_refused() -> None:
    tensors, _ = CASES["a group per channel"].tensors()
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(ConfigError, match="any order"):
            deform_conv2d(*tensors, backend="triton")
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_cpu_is_refused_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "InterpretedFunction", type(None))
    model = create_model("trans4pass_micro", 3, deform_backend="triton")
    with pytest.raises(ConfigError, match=r"on the CPU: use 'auto', or set TRITON_INTERPRET=1"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_a_machine_without_triton_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trans4pass.ops.deform_conv.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="'triton' needs the package triton"):
        check_backend("triton")
