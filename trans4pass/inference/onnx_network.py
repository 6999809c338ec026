"""A network in an ONNX file that tools/export.py wrote, run by onnxruntime."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from trans4pass.errors import ConfigError, WeightsError, first_line
from trans4pass.labels import LabelSpace
from trans4pass.models import SegOutput


class OnnxNetwork(nn.Module):
    """Logits of images, without the layers of this package.

    Attributes:
        labels: the label space that it predicts in.
        wrap: whether it takes full panoramas, whose sides are neighbours.
        size: the (width, height) of the images that it takes; None: any.
    Raises:
        ConfigError: onnxruntime is not installed, or the file gives labels instead of logits.
        WeightsError: the file cannot be read, or was not written by tools/export.py.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(f"{path} needs onnxruntime: pip install 'trans4pass[onnx]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(path, options, onnxruntime.get_available_providers())
        except Exception as error:  # its errors have no common base
            raise WeightsError(f"{path} cannot be read as ONNX: {first_line(error)} Get it again") from error
        metadata = self.session.get_modelmeta().custom_metadata_map  # texts by name, of which ours are JSON
        if not {"labels", "result", "wrap"} <= metadata.keys():
            raise WeightsError(f"{path} does not say what its classes are: write it with tools/export.py format=onnx")
        if json.loads(metadata["result"]) != "logits":
            raise ConfigError(f"{path} gives labels, and predicting needs logits: export with result=logits")
        self.labels, self.wrap = LabelSpace.from_dict(json.loads(metadata["labels"])), json.loads(metadata["wrap"])
        (self.input,) = self.session.get_inputs()
        height, width = self.input.shape[2:]
        self.size = (width, height) if isinstance(width, int) and isinstance(height, int) else None

    def forward(self, image: Tensor) -> SegOutput:
        """Logits of images (B,3,H,W), uint8 or floating in [0,1], which are rounded to uint8; no features."""
        if self.size not in (None, (image.shape[-1], image.shape[-2])):
            width, height = self.size or ()
            raise ConfigError(
                f"this ONNX file takes images of {width}x{height} only: size=[{width},{height}], no scales"
            )
        if image.is_floating_point():
            image = (image * 255).round().to(torch.uint8)
        logits = [self.session.run(None, {self.input.name: one[None].cpu().numpy()})[0] for one in image]
        stacked = torch.cat([torch.from_numpy(one) for one in logits]).to(image.device)
        return SegOutput(stacked, stacked.new_empty(0), {})
