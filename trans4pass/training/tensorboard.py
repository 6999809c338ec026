"""TensorBoard's event files: no point twice, whenever a run was stopped, and no training stopped by a full disk.

torch's own writer leaves it to the readers to drop what a stopped run had written ahead of its checkpoint. They do so
file by file in the order of the names, which begin with the clock's time, and not before a stage's first checkpoint.
"""

import io
import logging
import struct
import time
from collections.abc import Mapping
from io import BufferedWriter
from pathlib import Path

from google.protobuf.message import DecodeError
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from .trackers import MIOU, Tracker

log = logging.getLogger(__name__)

PREFIX = "events.out.tfevents."  # TensorBoard knows its files by it


class TensorBoard(Tracker):
    """Event files in the stage's folder `tensorboard`, one more at each start: tensorboard --logdir runs.

    A file that cannot be written is a warning: the training is worth more than its curves.
    """

    _file: BufferedWriter | None = None

    def begin(self, step: int, evaluated: int) -> None:
        folder = self.folder / "tensorboard"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            earlier = sorted(folder.glob(f"{PREFIX}*"))
            for path in earlier:
                drop_later(path, step, evaluated)
            # Above all others, even where the clock has gone back: readers follow the names' order.
            numbers = [int(digits) for path in earlier if (digits := path.name.split(".")[3]).isdigit()]
            path = folder / f"{PREFIX}{max([int(time.time()), *(number + 1 for number in numbers)]):010d}.trans4pass"
            self._file = path.open("wb")
        except OSError as error:
            self._give_up(error)
        self._write(Event(file_version="brain.Event:2"))
        # A TensorBoard that has been watching all the time drops the later points too.
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def log(self, values: Mapping[str, float], step: int) -> None:
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=points)))

    def image(self, name: str, picture: Tensor, step: int) -> None:
        png = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(png, "PNG")
        _, height, width = picture.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png.getvalue())
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)])))

    def close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._give_up(error)

    def _write(self, event: Event) -> None:
        if self._file is None:
            return
        event.wall_time = time.time()
        try:
            RecordWriter(self._file).write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("no more points for TensorBoard until the run is started again: %s", error)
        if self._file is not None:
            self._file.raw.close()  # without another try to write what is buffered
        self._file = None


def drop_later(path: Path, start: int, evaluated: int) -> None:
    """Cut an event file in front of its first record that is later than `start`, repeated, or damaged.

    Steps never go back within a file, so that all behind it is later too.
    """
    size = path.stat().st_size
    with path.open("r+b") as file:
        while True:
            begin = file.tell()
            header = file.read(12)  # length, and its checksum
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            if begin + 12 + length + 4 > size:
                break
            try:
                event = Event.FromString(file.read(length))
            except DecodeError:
                break
            file.seek(4, io.SEEK_CUR)  # the record's checksum
            judged = any(value.tag.startswith(MIOU) or value.HasField("image") for value in event.summary.value)
            if event.step > (evaluated if judged else start):
                break
        if begin < size:
            file.truncate(begin)
