"""A GPU that computes nothing: tensors say that they are on it, kernels are counted, and so is each wait for it."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

M = TypeVar("M", bound=nn.Module)
CUDA = torch.device("cuda", 0)
VIEWS = {"view", "_unsafe_view", "reshape", "transpose", "t", "permute", "expand", "slice", "select", "split", "unbind"}
VIEWS |= {"split_with_sizes", "unsqueeze", "squeeze", "detach", "alias", "as_strided", "_reshape_alias", "empty"}
VIEWS |= {"lift_fresh", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "diagonal", "unfold", "chunk"}


class Launches(TorchDispatchMode):
    """Counts operations on CUDA by name, views left out, and the host's waits for the device.

    A number that the host asks the device for is `number`. What it draws by itself is 0.3, so that what has a larger
    probability happens, and 0, 1, 2, 3 in turn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = 1
        self.drawn = cycle(range(4))
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name == "_local_scalar_dense":
            self.waits["number"] += tensors[0].device.type == "cuda"
            kind, on_device = tensors[0].dtype, tensors[0].device.type == "cuda"
            if kind.is_floating_point:
                return float(self.number) if on_device else 0.3
            return kind == torch.bool or (self.number if on_device else next(self.drawn))
        found = func(*args, **kwargs)
        made = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        kinds = {x.device.type for x in [*tensors, *made]}
        if name in ("_to_copy", "copy_") and kinds == {"cuda", "cpu"}:
            blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            self.waits[f"copy of {list(tensors[-1].shape)}"] += blocking
        if "cuda" in kinds and name not in VIEWS and name != "device":
            self.kernels[name] += 1
        return found


def on_cuda(make: Callable[..., M], *args: Any, **kwargs: Any) -> M:
    """A module on the device; call it inside of `fake_cuda`."""
    with _disable_current_modes(), torch.device("meta"):
        module = make(*args, **kwargs)
    for part in module.modules():
        for name, x in part._parameters.items():
            if x is not None:
                made = torch.empty(x.shape, dtype=x.dtype, device=CUDA)
                part._parameters[name] = nn.Parameter(made, requires_grad=x.requires_grad)
        for name, x in part._buffers.items():
            if x is not None:
                part._buffers[name] = torch.empty(x.shape, dtype=x.dtype, device=CUDA)
    return module


@contextmanager
def fake_cuda() -> Iterator[Launches]:
    """Everything inside lies on no device; what mixes devices, or has a size that only the device knows, raises."""
    with (
        mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        mock.patch.object(torch.cuda, "is_bf16_supported", lambda: True),
        FakeTensorMode(allow_non_fake_inputs=False),
        Launches() as launches,
    ):
        yield launches
