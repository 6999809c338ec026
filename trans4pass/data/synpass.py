"""SynPASS: synthetic street panoramas, 2048x1024, in four kinds of weather, by day and by night."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Unpack, get_args

from annotated_types import MinLen

from trans4pass.errors import ConfigError, DataError
from trans4pass.labels import LabelSpace

from .base import Common, Item, SegmentationDataset
from .files import find_images, read_path_list

Weather = Literal["cloud", "fog", "rain", "sun"]
Time = Literal["day", "night"]
LABEL_SUFFIX = "_trainID.png"


class SynPASS(SegmentationDataset):
    """`<root>/img/<weather>/<split>/<sequence>/<n>.jpg`; names are `<weather>/<sequence>/<n>`.

    Labels, raw values 0 to 22, are `<root>/semantic/<weather>/<split>/<sequence>/<n>_trainID.png`. `weather` picks
    some of cloud, fog, rain and sun. `time`, day or night, reads the images of the list that comes with the data: the
    text file in `root` or a folder of it with that word in its name, and the split's where there are several.
    `subset_list` names any such list instead, relative to `root`: images relative to `root`, one a line.
    """

    name = "synpass"
    panorama = True

    def __init__(
        self,
        root: str | Path,
        split: str,
        labels: LabelSpace,
        weather: Annotated[Sequence[Weather], MinLen(1)] | None = None,
        time: Time | None = None,
        subset_list: str | Path | None = None,
        **common: Unpack[Common],
    ):
        self.root, self.split = Path(root), split
        self.weathers = get_args(Weather) if weather is None else tuple(weather)
        if time is not None and subset_list is not None:
            raise ConfigError(f"time={time} and subset_list={subset_list} each name a list: leave one of them null")
        self.subset_list = subset_list if time is None else self._list_of(time)
        super().__init__(map(self._item, self._images()), labels, **common)

    def _list_of(self, time: Time) -> Path:
        (other,) = {*get_args(Time)} - {time}
        texts = [path for pattern in ("*.txt", "*/*.txt") for path in sorted(self.root.glob(pattern))]
        fitting = [path for path in texts if time in path.stem.lower() and other not in path.stem.lower()]
        fitting = [path for path in fitting if self.split in path.stem.lower()] or fitting
        if len(fitting) != 1:
            found = ", ".join(str(path.relative_to(self.root)) for path in fitting or texts) or "none"
            raise DataError(
                f"{self.name}: time={time} needs one text file under {self.root} with {time} in its name, there are: "
                f"{found}. Copy the list that comes with the data there, or name it with subset_list=<file>"
            )
        return fitting[0].relative_to(self.root)

    def _images(self) -> list[Path]:
        folders = [f"img/{weather}/{self.split}" for weather in self.weathers]
        images = [image for folder in folders for image in find_images(self.name, self.root, folder, "*/*.jpg")]
        if self.subset_list is None:
            return images
        listed = read_path_list(self.name, self.root, self.subset_list)
        chosen = [image for image in images if image in listed]
        if not chosen:
            raise DataError(
                f"{self.name}: {self.root / self.subset_list} names none of the {len(images)} images of {folders}; "
                f"a line looks like {images[0].relative_to(self.root)}"
            )
        return chosen

    def _item(self, image: Path) -> Item:
        weather, _, sequence, _ = image.relative_to(self.root / "img").parts
        folder = self.root / "semantic" / weather / self.split / sequence
        return Item(f"{weather}/{sequence}/{image.stem}", image, folder / f"{image.stem}{LABEL_SUFFIX}", "synpass_ids")

    def label_files(self) -> Iterator[Path]:
        # The labels of the images that a list leaves out have their images, too.
        for weather in () if self.subset_list else self.weathers:
            yield from (self.root / "semantic" / weather / self.split).glob(f"*/*{LABEL_SUFFIX}")
