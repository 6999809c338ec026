"""Predict a video frame by frame: its overlay as a video without sound."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from trans4pass import dist
from trans4pass.console import progress_bar
from trans4pass.data import Size
from trans4pass.data.views import EvalTransform
from trans4pass.errors import ConfigError, DataError
from trans4pass.interrupts import Interrupts
from trans4pass.labels import LabelSpace
from trans4pass.storage import replacing

from .predictor import Predictor

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm")
RATE = 25  # frames per second, of a file that does not say


def predict_video(
    predictor: Predictor,
    labels: LabelSpace,
    source: Path,
    output: Path,
    size: Size | None,
    opacity: float,
    interrupts: Interrupts,
) -> int:
    """Write `output` (.mp4), the video `source` under its predictions' colours; returns the number of frames.

    Frames are predicted at `size` = (W,H), or their own, and follow each other at the video's average rate; of sides
    of odd length the last row or column is left out, since the format has none.

    Raises:
        ConfigError: there is no PyAV, or there are several processes.
        DataError: the file holds no video that can be decoded.
    """
    try:
        import av
    except ModuleNotFoundError:
        raise ConfigError("videos need PyAV: pip install 'trans4pass[video]'") from None
    if dist.world_size() > 1:
        raise ConfigError(
            f"input={source}: frames follow each other, so one process predicts a video: leave torchrun out"
        )
    transform, count = EvalTransform(size), 0
    try:
        with av.open(str(source)) as container:
            if not container.streams.video:
                raise DataError(f"{source} holds no pictures, only {', '.join(s.type for s in container.streams)}")
            stream = container.streams.video[0]
            with replacing(output) as file, progress_bar() as bar, av.open(file, "w", format="mp4") as result:
                task = bar.add_task(f"predict {source.name}", total=stream.frames or None)
                target = result.add_stream("libx264", rate=stream.average_rate or RATE)
                target.pix_fmt = "yuv420p"
                target.width, target.height = (side // 2 * 2 for side in (stream.width, stream.height))
                for frame in container.decode(stream):
                    interrupts.check()
                    if frame.rotation:
                        raise DataError(
                            f"{source} is stored turned by {frame.rotation} degrees, which players undo: turn its "
                            f"frames for good, e.g. ffmpeg -i {source.name} upright.mp4"
                        )
                    pixels = frame.to_ndarray(format="rgb24")[: target.height, : target.width]
                    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W]
                    shown = overlay(predictor, labels, transform, image, opacity)
                    result.mux(target.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
                    count += 1
                    bar.advance(task)
                if not count:
                    raise DataError(
                        f"{source} holds no frame that can be decoded; convert it, or give its images as a folder"
                    )
                result.mux(target.encode())
    except av.FFmpegError as error:  # it is no video, or breaks off
        raise DataError(
            f"{source} cannot be decoded ({error.strerror}): convert it, or give its images as a folder"
        ) from error
    return count


def overlay(
    predictor: Predictor, labels: LabelSpace, transform: EvalTransform, image: Tensor, opacity: float
) -> np.ndarray:
    """An image (3,H,W) uint8 under the colours of its classes, (H,W,3)."""
    classes = predictor.classes(transform({"image": image[None]}, [Generator()])["image"])[0].cpu().numpy()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    colour = Image.fromarray(labels.colorize(classes)).resize(picture.size, Image.Resampling.NEAREST)
    return np.asarray(Image.blend(picture, colour, opacity))
