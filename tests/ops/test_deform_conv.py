"""The deformable convolution: every backend against torchvision's operator, and against the plain convolution."""

from importlib.util import find_spec
from itertools import product
from typing import NamedTuple
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trans4pass.errors import ConfigError
from trans4pass.ops import check_backend, deform_conv2d, native, sampling


class Case(NamedTuple):
    batch: int
    channels: int
    out: int
    height: int
    width: int
    kernel: int
    stride: int
    padding: int
    groups: int

    def tensors(self, offsets: str = "random", dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
        """(input, offset, mask, weight, bias) and a gradient for the result."""
        torch.manual_seed(0)
        sides, taps = (self.height, self.width), self.kernel**2
        size = [(side + 2 * self.padding - self.kernel) // self.stride + 1 for side in sides]
        offset = OFFSETS[offsets]((self.batch, 2 * self.groups * taps, *size), max(sides))
        tensors = [
            torch.randn(self.batch, self.channels, *sides),
            offset,
            2 * torch.rand(self.batch, self.groups * taps, *size),
            torch.randn(self.out, self.channels, self.kernel, self.kernel),
            torch.randn(self.out),
        ]
        return [tensor.to(dtype) for tensor in tensors], torch.randn(self.batch, self.out, *size, dtype=dtype)

    def run(self, tensors: list[Tensor | None], grad: Tensor, backend: str, wrap: bool = False) -> list[Tensor]:
        """The result, and the gradients of all tensors that are given."""
        leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors]
        out = deform_conv2d(*leaves, self.stride, self.padding, backend, wrap)
        out.backward(grad)
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


CASES = {
    "3x3, one group": Case(2, 16, 5, 9, 7, 3, 1, 1, 1),
    "3x3, three groups": Case(2, 6, 5, 9, 7, 3, 1, 1, 3),
    "a group per channel": Case(3, 6, 4, 9, 7, 1, 1, 0, 6),
    "7x7, stride 4": Case(2, 3, 8, 17, 23, 7, 4, 3, 1),
    "stride 2": Case(2, 8, 6, 8, 11, 3, 2, 1, 1),
    "one pixel high": Case(2, 4, 3, 1, 9, 3, 1, 1, 4),
    "one pixel wide": Case(2, 8, 3, 9, 1, 3, 1, 1, 1),
    "a single pixel": Case(1, 4, 3, 1, 1, 1, 1, 0, 4),
}
OFFSETS = {
    "zero": lambda shape, side: torch.zeros(shape),
    "whole": lambda shape, side: torch.randint(-3, 4, shape).float(),
    "random": lambda shape, side: 2 * torch.randn(shape),
    "clamped": lambda shape, side: (4 * torch.randn(shape)).clamp(-2, 2),
    "to the border": lambda shape, side: torch.randint(-side, side + 1, shape).float(),
    "far outside": lambda shape, side: 30 * torch.randn(shape),
    "tiny": lambda shape, side: 1e-6 * torch.randn(shape),
}


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert (a - e).abs().max() <= tolerance * e.abs().max().clamp_min(1e-3)


@pytest.mark.parametrize(("case", "offsets"), list(product(CASES, OFFSETS)))
def test_native_equals_torchvision(case: str, offsets: str) -> None:
    tensors, grad = CASES[case].tensors(offsets)
    expected = CASES[case].run(tensors, grad, "torchvision")
    assert_close(CASES[case].run(tensors, grad, "native"), expected, 1e-5)


def test_mmcv_equals_torchvision() -> None:
    """But for offsets' gradients at -1 exactly, a kink from which mmcv looks outwards and torchvision inwards."""
    pytest.importorskip("mmcv.ops", reason="optional: make setup-mmcv")
    for case, offsets in product(CASES, OFFSETS):
        tensors, grad = CASES[case].tensors(offsets)
        expected = CASES[case].run(tensors, grad, "torchvision")
        actual = CASES[case].run(tensors, grad, "mmcv")
        if offsets not in ("random", "far outside"):  # whole numbers, or within rounding of them
            del expected[2], actual[2]
        assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("backend", ["native", "torchvision", "mmcv"])
def test_memory_layout_does_not_matter(backend: str) -> None:
    if backend == "mmcv":
        pytest.importorskip("mmcv.ops", reason="optional: make setup-mmcv")
    tensors, _ = CASES["3x3, three groups"].tensors()
    other = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in tensors[:4]] + tensors[4:]
    assert not any(x.is_contiguous() for x in other[:4])
    assert torch.equal(deform_conv2d(*other, 1, 1, backend), deform_conv2d(*tensors, 1, 1, backend))


@pytest.mark.skipif(find_spec("mmcv") is not None, reason="mmcv is there")
def test_mmcv_is_asked_for_where_it_is_not() -> None:
    with pytest.raises(ConfigError, match="make setup-mmcv"):
        check_backend("mmcv")


@pytest.mark.parametrize("case", ["3x3, one group", "a group per channel"])
def test_native_equals_torchvision_without_mask_and_bias(case: str) -> None:
    (input, offset, _, weight, _), grad = CASES[case].tensors()
    expected = CASES[case].run([input, offset, None, weight, None], grad, "torchvision")
    assert_close(CASES[case].run([input, offset, None, weight, None], grad, "native"), expected, 1e-5)


@pytest.mark.parametrize(("case", "samples"), list(product(CASES, [1, 100, 1000])))
def test_cutting_the_work_changes_nothing(case: str, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, grad = CASES[case].tensors()
    expected = CASES[case].run(tensors, grad, "native")
    monkeypatch.setattr(sampling, "TILE_SAMPLES", samples)
    monkeypatch.setattr(sampling, "BLOCK_POSITIONS", 7)
    assert_close(CASES[case].run(tensors, grad, "native"), expected, 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_deterministic_backend_is_torchvisions_forward_and_natives_backward_pass(case: str) -> None:
    tensors, grad = CASES[case].tensors()
    native, torchvision, both = (CASES[case].run(tensors, grad, b) for b in ("native", "torchvision", "deterministic"))
    assert torch.equal(both[0], torchvision[0])
    assert all(map(torch.equal, both[1:], native[1:]))


@pytest.mark.parametrize("case", CASES)
def test_one_block_as_on_a_gpu_changes_nothing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, grad = CASES[case].tensors()
    expected = CASES[case].run(tensors, grad, "native")
    tiles = mock.Mock(return_value=False)
    monkeypatch.setattr(sampling, "TILE_SAMPLES", 1)
    monkeypatch.setattr(sampling, "BLOCK_POSITIONS", 1)
    monkeypatch.setattr(native, "is_tiled", lambda device: tiles())
    assert_close(CASES[case].run(tensors, grad, "native"), expected, 1e-5)
    tiles.assert_called()


@pytest.mark.parametrize("case", CASES)
def test_double_precision_is_exact(case: str) -> None:
    tensors, grad = CASES[case].tensors(dtype=torch.float64)
    expected = CASES[case].run(tensors, grad, "torchvision")
    assert_close(CASES[case].run(tensors, grad, "native"), expected, 1e-12)


@pytest.mark.parametrize("case", [Case(1, 8, 2, 4, 3, 3, 1, 1, 1), Case(1, 2, 2, 4, 3, 3, 2, 1, 2)], ids=str)
def test_gradients_are_the_derivative(case: Case) -> None:
    leaves = [tensor.requires_grad_() for tensor in case.tensors(dtype=torch.float64)[0]]
    assert torch.autograd.gradcheck(lambda *t: deform_conv2d(*t, case.stride, case.padding, "native"), leaves)


@pytest.mark.parametrize("backend", ["native", "torchvision", "auto"])
@pytest.mark.parametrize(("kernel", "stride"), [(7, 4), (3, 1), (1, 1)])
def test_zero_offset_is_the_plain_convolution(backend: str, kernel: int, stride: int) -> None:
    input, weight, bias = torch.randn(2, 8, 13, 18), torch.randn(4, 8, kernel, kernel), torch.randn(4)
    expected = F.conv2d(input, weight, bias, stride, kernel // 2)
    offset = torch.zeros(2, 2 * kernel**2, *expected.shape[2:])
    actual = deform_conv2d(input, offset, None, weight, bias, stride, kernel // 2, backend)
    assert torch.allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize("backend", ["native", "torchvision"])
def test_autocast_samples_in_float32(backend: str) -> None:
    half, grad = CASES["a group per channel"].tensors(dtype=torch.bfloat16)
    expected = CASES["a group per channel"].run([tensor.float() for tensor in half], grad.float(), backend)
    with torch.autocast("cpu", torch.bfloat16):
        actual = CASES["a group per channel"].run(half, grad, backend)
    assert [tensor.dtype for tensor in actual] == [torch.bfloat16] * 6
    assert_close([tensor.float() for tensor in actual], [tensor.bfloat16().float() for tensor in expected], 1e-6)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("case", ["3x3, one group", "3x3, three groups", "a group per channel"])
def test_tensors_are_made_where_the_inputs_are(case: str, wrap: bool) -> None:
    """Whatever does not say where it is made becomes a meta tensor here, which mixes with no other."""
    tensors, grad = CASES[case].tensors(dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    sizes = (CASES[case].stride, CASES[case].padding)
    deform_conv2d(*leaves, *sizes, "native", wrap).backward(grad)
    expected = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    with torch.device("meta"):
        deform_conv2d(*leaves, *sizes, "native", wrap).backward(grad)
    assert_close([leaf.grad for leaf in leaves], expected, 1e-12)


def test_without_autocast_the_result_has_the_inputs_type() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        tensors, _ = CASES["a group per channel"].tensors(dtype=dtype)
        assert deform_conv2d(*tensors).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert deform_conv2d(*tensors).dtype == torch.float64


@pytest.mark.parametrize("case", ["3x3, one group", "3x3, three groups", "a group per channel"])
def test_an_input_that_needs_no_gradient_changes_no_other(case: str) -> None:
    tensors, grad = CASES[case].tensors()
    _, _, *expected = CASES[case].run(tensors, grad, "native")
    input, *leaves = (tensor.clone().requires_grad_() for tensor in tensors)
    deform_conv2d(input.detach(), *leaves, CASES[case].stride, CASES[case].padding, "native").backward(grad)
    assert all(torch.equal(leaf.grad, gradient) for leaf, gradient in zip(leaves, expected, strict=True))


def test_channels_last_input_changes_nothing() -> None:
    tensors, grad = CASES["3x3, one group"].tensors()
    expected = CASES["3x3, one group"].run(tensors, grad, "native")
    last = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    assert_close(CASES["3x3, one group"].run(last, grad, "native"), expected, 1e-6)


def test_a_nan_offset_gives_nan_at_its_place_only() -> None:
    tensors, _ = CASES["a group per channel"].tensors()
    tensors[1][0, 0, 2, 3] = torch.nan
    result = deform_conv2d(*tensors, backend="native")
    assert result[0, :, 2, 3].isnan().all()
    assert result.isnan().sum() == result.shape[1]


@pytest.mark.parametrize("backend", ["native", "torchvision", "deterministic"])
@pytest.mark.parametrize(
    "case", ["3x3, one group", "3x3, three groups", "a group per channel", "7x7, stride 4", "stride 2"]
)
def test_a_wrapped_map_goes_on_at_its_other_side(case: str, backend: str) -> None:
    case = CASES[case]._replace(width=12)  # a multiple of the strides: only so do the outputs go on, too
    (input, offset, mask, weight, bias), grad = case.tensors()
    leaf, tiled = input.clone().requires_grad_(), input.clone().requires_grad_()
    width, sizes = input.shape[3], (case.stride, case.padding)
    around = offset.clone()
    around[:, 1::2] += 5 * width
    result = deform_conv2d(leaf, around, mask, weight, bias, *sizes, backend, wrap=True)
    result.backward(grad)
    columns = width // case.stride
    far_off = [F.pad(tensor, (4 * columns, 4 * columns)) for tensor in (offset, mask)]
    copies = torch.cat([tiled] * 9, dim=3)
    expected = deform_conv2d(copies, *far_off, weight, bias, *sizes)[..., 4 * columns : 5 * columns]
    expected.backward(grad)
    assert_close([result, leaf.grad], [expected, tiled.grad], 1e-4)


def test_an_unknown_backend_is_told_the_known_ones() -> None:
    tensors, _ = CASES["a single pixel"].tensors()
    with pytest.raises(ConfigError, match=r"'grid'.*auto, native, torchvision"):
        deform_conv2d(*tensors, backend="grid")


WRONG = {
    "columns of the input": lambda x, o, m, w: (x[..., 1:], o, m, w),
    "channels of the input": lambda x, o, m, w: (x[:, 1:], o, m, w),
    "images of the offset": lambda x, o, m, w: (x, o[1:], m, w),
    "no offset": lambda x, o, m, w: (x, o[:, :0], m, w),
    "an odd number of offsets": lambda x, o, m, w: (x, o[:, 1:], m, w),
    "groups that do not divide the channels": lambda x, o, m, w: (x, torch.cat([o] * 3, 1), torch.cat([m] * 3, 1), w),
    "rows of the offset": lambda x, o, m, w: (x, o[:, :, 1:], m, w),
    "channels of the mask": lambda x, o, m, w: (x, o, m[:, 1:], w),
    "rows of the mask": lambda x, o, m, w: (x, o, m[:, :, 1:], w),
    "a kernel that is not square": lambda x, o, m, w: (x, o, m, w[:, :, 1:]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_shapes_that_do_not_fit_are_named(wrong: str) -> None:
    (*tensors, _), _ = CASES["3x3, one group"].tensors()
    with pytest.raises(ValueError, match="expected") as error:
        deform_conv2d(*WRONG[wrong](*tensors), padding=1)
    shapes = ", ".join(str(list(tensor.shape)) for tensor in WRONG[wrong](*tensors))
    assert f"are {shapes}; expected" in str(error.value)


def test_a_mask_that_is_not_there_is_named_so() -> None:
    (input, offset, _, weight, _), _ = CASES["3x3, one group"].tensors()
    with pytest.raises(ValueError, match=r"\], None, \[5, 16, 3, 3\]; expected"):
        deform_conv2d(input[..., 1:], offset, None, weight, padding=1)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["3x3, one group", "a group per channel"])
def test_it_compiles_into_one_graph(case: str) -> None:
    tensors, grad = CASES[case].tensors()
    expected = CASES[case].run(tensors, grad, "native")
    leaves = [tensor.requires_grad_() for tensor in tensors]
    compiled = torch.compile(deform_conv2d, backend="aot_eager", fullgraph=True, dynamic=False)
    result = compiled(*leaves, CASES[case].stride, CASES[case].padding, "native")
    result.backward(grad)
    assert_close([result.detach(), *(leaf.grad for leaf in leaves)], expected, 1e-5)
