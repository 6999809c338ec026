"""A video is predicted frame by frame, and its overlay is a video of the same frames."""

from pathlib import Path

import numpy as np
import pytest
import torch

from trans4pass.errors import ConfigError, DataError
from trans4pass.inference import Predictor
from trans4pass.inference.images import predict_images
from trans4pass.inference.video import predict_video
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.models import SegOutput

av = pytest.importorskip("av")
LABELS = LabelSpace.from_yaml(Path(__file__).parents[2] / "configs/labels/cityscapes19.yaml")
GREYS = [0, 60, 120, 180, 240]


class Bright(torch.nn.Module):
    """Bright pixels are sky, dark ones road."""

    wrap = False

    def forward(self, image: torch.Tensor) -> SegOutput:
        bright = (image if image.is_floating_point() else image / 255).mean(1) > 0.5
        logits = torch.zeros(len(image), 19, *image.shape[2:])
        logits[:, 10], logits[:, 0] = bright.float(), (~bright).float()
        return SegOutput(logits, logits, {})


def video(path: Path, width: int = 64, height: int = 48) -> Path:
    """A frame of each grey, 10 in a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for grey in GREYS:
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def predicted(source: Path, output: Path) -> int:
    predictor = Predictor(Bright(), torch.device("cpu"))
    return predict_video(predictor, LABELS, source, output, (32, 32), 1.0, Interrupts())


@pytest.mark.parametrize("size", [(64, 48), (65, 47)])
def test_every_frame_is_shown_in_its_classes_colours(size: tuple[int, int], tmp_path: Path) -> None:
    output = tmp_path / "out/overlay.mp4"
    assert predicted(video(tmp_path / "street.mp4", *size), output) == len(GREYS)
    with av.open(str(output)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert container.streams.video[0].average_rate == 10
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(size[1] // 2 * 2, size[0] // 2 * 2, 3)] * len(GREYS)
    for grey, frame in zip(GREYS, frames, strict=True):
        colour = LABELS.palette[10 if grey > 127 else 0].astype(float)
        assert np.abs(frame.mean((0, 1)) - colour).max() < 8  # what compression and its colour space leave
    assert [path.name for path in output.parent.iterdir()] == ["overlay.mp4"]


def test_what_is_no_video_is_named_and_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"text.mp4 cannot be decoded .*convert it"):
        predicted(tmp_path / "text.mp4", tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def test_a_video_that_is_stored_turned_is_refused(tmp_path: Path) -> None:
    source = video(tmp_path / "street.mp4")
    content = bytearray(source.read_bytes())
    one = (1 << 16).to_bytes(4, "big")
    zero = bytes(4)
    upright = one + zero * 3 + one + zero * 3 + (1 << 30).to_bytes(4, "big")
    at = content.index(upright, content.index(b"tkhd"))
    turned = zero + one + zero + (-(1 << 16) & 0xFFFFFFFF).to_bytes(4, "big") + zero * 4 + (1 << 30).to_bytes(4, "big")
    content[at : at + len(turned)] = turned
    source.write_bytes(content)
    with pytest.raises(DataError, match=r"is stored turned by -?90 degrees.*ffmpeg -i street.mp4"):
        predicted(source, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def test_a_video_that_breaks_off_leaves_no_half(tmp_path: Path) -> None:
    whole = video(tmp_path / "street.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.mp4"):
        predicted(tmp_path / "cut.mp4", tmp_path / "out.mp4")
    assert {path.name for path in tmp_path.iterdir()} == {"street.mp4", "cut.mp4"}


def test_a_page_of_images_is_not_made_of_a_video(tmp_path: Path) -> None:
    (tmp_path / "street.MP4").touch()
    config = {"checkpoint": "none.pt", "input": str(tmp_path / "street.MP4"), "output": str(tmp_path), "html": True}
    with pytest.raises(ConfigError, match="html=true makes a page of images"):
        predict_images(config, torch.device("cpu"), Interrupts())
