"""A network as one computation, from uint8 images to logits or labels: ONNX and torch.export.

Every model of the registry is exported with any height and width, but for what `fixed_size` names.
"""

import functools
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from trans4pass.console import console
from trans4pass.errors import ConfigError, WeightsError, first_line
from trans4pass.labels import LabelSpace
from trans4pass.models import Segmentor
from trans4pass.models.ecrm import PrototypeRing
from trans4pass.storage import replacing

log = logging.getLogger(__name__)

Result = Literal["logits", "labels"]
Exported = tuple[bytes, Callable[[Tensor], Tensor]]  # a file's content, and what it computes
OPSET = 20
Opset = Annotated[int, Ge(19)]  # below there is no deformable convolution, and the exporter writes an invalid graph
TOLERANCE = 1e-3  # largest difference of a logit, or share of pixels with another label


class Graph(nn.Module):
    """Images [1, 3, H, W] uint8 -> logits [1, K, H, W] float32, or labels [1, H, W] uint8."""

    def __init__(self, network: Segmentor, result: Result) -> None:
        super().__init__()
        self.network, self.result = network, result

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network(image).logits
        return logits if self.result == "logits" else logits.argmax(1).to(torch.uint8)


def check_exporter() -> None:
    """Raise ConfigError where ONNX's exporter is not installed."""
    if lacking := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ConfigError(f"format=onnx needs {', '.join(lacking)}: pip install 'trans4pass[export]'")


@torch.no_grad()
def export_graph(
    target: Path,
    network: Segmentor,
    labels: LabelSpace,
    result: Result,
    size: tuple[int, int],
    dynamic: bool,
    opset: int | None,
) -> None:
    """Write a network as ONNX of version `opset`, or, with None, as torch.export's .pt2, and try it.

    What it says about itself is JSON, in ONNX's metadata or in the .pt2's file metadata.json: labels (classes and
    colours), classes, result, wrap, size (null: any).

    Args:
        size: (width, height) that it is traced with.
        dynamic: whether it shall take others; where that cannot be, a line says why.
    Raises:
        ConfigError: the exporter cannot do this model.
        WeightsError: the exported computation does not give what the model gives.
    """
    graph = Graph(network.eval(), result)
    prepare_layers(network)
    if dynamic and (reason := fixed_size(network)):
        log.info("only images of %dx%d: %s", *size, reason)
        dynamic = False
    program = traced(graph, size, dynamic)
    metadata = {
        "labels": labels.to_dict(), "classes": list(labels.classes), "result": result, "wrap": network.wrap,
        "size": None if dynamic else list(size),
    }  # fmt: skip
    content, run = as_torch(program, metadata) if opset is None else as_onnx(program, metadata, opset)
    images = list(trial_images(size, dynamic))
    with errors_of_exporter("exported", "; try dynamic=false"):
        differences = [difference(graph(image), run(image), result) for image in images]
    sizes = " and ".join(f"{image.shape[3]}x{image.shape[2]}" for image in images)
    what = "logits differ from the model's by" if result == "logits" else "share of pixels with another label:"
    if not max(differences) <= TOLERANCE:  # NaN is worse, too
        raise WeightsError(f"{target} is not written: on {sizes}, {what} {differences}, and {TOLERANCE} is allowed")
    with replacing(target) as file:
        file.write(content)
    console.print(f"wrote {target}; tried on {sizes}: {what} at most {max(differences):.1e}", soft_wrap=True)


@contextmanager
def errors_of_exporter(what: str, fix: str) -> Iterator[None]:
    """Exporters meet whatever a model does, and their errors, as onnxruntime's, have no common base."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"this model cannot be {what}: {first_line(error)}{fix}") from error


def prepare_layers(network: Segmentor) -> None:
    """Make layers traceable: torchvision's deformable convolution, one operator of any size, and ECRM's memory fixed.

    That convolution cannot wrap; with `wrap` it stays `native`.
    """
    for module in network.modules():
        if isinstance(module, PrototypeRing):
            setattr(module, "read", functools.partial(torch.clone, module.read()))  # noqa: B010 - as below
        if hasattr(module, "backend") and not network.wrap:
            setattr(module, "backend", "torchvision")  # noqa: B010 - pyright takes it for a tensor or module


def fixed_size(network: Segmentor) -> str:
    """Why a network can only be exported for images of one size; empty where it need not be."""
    if network.wrap:
        return "with wrap=true, columns are indexed by their number"
    layers = list(network.modules())
    if any(isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size not in (1, (1, 1)) for layer in layers):
        return "pooling over a fixed number of cells has no operator of any size"
    if any(getattr(layer, "window_size", None) for layer in layers):
        return "how many windows the encoder's attention has is fixed when it is traced"
    if any(type(layer).__name__.endswith("Same") for layer in layers):
        return "the encoder's paddings of one side depend on the size"
    return ""


def traced(graph: Graph, size: tuple[int, int], dynamic: bool) -> torch.export.ExportedProgram:
    """The computation on images of `size` (W,H), or of any."""
    fixed = torch.export.Dim.STATIC
    side = torch.export.Dim.DYNAMIC if dynamic else fixed
    example = torch.zeros(1, 3, size[1], size[0], dtype=torch.uint8)
    fix = " try dynamic=false" if dynamic else " it has operations that torch.export cannot follow"
    with errors_of_exporter("exported", fix), warnings.catch_warnings(action="ignore"):
        return torch.export.export(graph, (example,), dynamic_shapes=({0: fixed, 1: fixed, 2: side, 3: side},))


def as_torch(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> Exported:
    """The .pt2 file, and what it computes once it is read again."""
    buffer = io.BytesIO()
    with errors_of_exporter("written as .pt2", "; try dynamic=false"):  # it may lack an operation
        torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
    content = buffer.getvalue()
    with warnings.catch_warnings(action="ignore"):  # of a buffer that nobody writes to
        module: Callable[[Tensor], Tensor] = torch.export.load(io.BytesIO(content)).module()
    return content, module


def as_onnx(program: torch.export.ExportedProgram, metadata: dict[str, Any], opset: int) -> Exported:
    """The ONNX file, checked by ONNX itself, and what onnxruntime makes of it."""
    import onnx
    import onnxruntime

    with errors_of_exporter("written as ONNX", ""), warnings.catch_warnings(action="ignore"):
        converted = torch.onnx.export(
            program, dynamo=True, opset_version=opset, input_names=["image"], output_names=[metadata["result"]],
            verbose=False,
        )  # fmt: skip
    assert converted is not None
    converted.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    proto = converted.model_proto
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def trial_images(size: tuple[int, int], dynamic: bool) -> Iterator[Tensor]:
    """Two images [1, 3, H, W]: noise, and a smooth one, of another size where that can be."""
    width, height = size
    generator = torch.Generator().manual_seed(0)
    yield torch.randint(0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8)
    height, width = (height + 17, width + 33) if dynamic else (height, width)
    rows, columns = torch.linspace(0, 255, height)[:, None], torch.linspace(0, 255, width)
    yield torch.stack([rows.expand(-1, width), columns.expand(height, -1), (rows + columns) / 2]).byte()[None]


def difference(expected: Tensor, got: Tensor, result: Result) -> float:
    """The largest difference of two logits, or the share of pixels whose labels differ."""
    if expected.shape != got.shape:
        return float("nan")
    if result == "labels":
        return float((expected != got).float().mean())
    return float((expected - got).abs().max())
