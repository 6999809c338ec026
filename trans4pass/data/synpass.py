"""SynPASS: synthetic street panoramas, 2048x1024, in four kinds of weather, by day and by night."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from trans4pass.data.base import Item, SegmentationDataset
from trans4pass.data.files import find_images, read_path_list
from trans4pass.data.transforms import Transform
from trans4pass.errors import ConfigError, DataError
from trans4pass.labels import LabelSpace

WEATHERS = ("cloud", "fog", "rain", "sun")
LABEL_SUFFIX = "_trainID.png"


class SynPASS(SegmentationDataset):
    """`<root>/img/<weather>/<split>/<sequence>/<n>.jpg`; names are `<weather>/<sequence>/<n>`.

    Labels, raw values 0 to 22, are `<root>/semantic/<weather>/<split>/<sequence>/<n>_trainID.png`. `weather` picks
    some of cloud, fog, rain and sun. `subset_list` is a text file, relative to `root`, of images relative to `root`,
    one a line, e.g. the day or the night list that comes with the data: only these are read.
    """

    name = "synpass"
    panorama = True

    def __init__(
        self,
        root: str | Path,
        split: str,
        labels: LabelSpace,
        labelled: bool = True,
        weather: Sequence[str] | None = None,
        subset_list: str | Path | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        cache: str | Path | None = None,
        cache_size: Sequence[int] | None = None,
    ):
        self.root, self.split, self.subset_list = Path(root), split, subset_list
        self.weathers = self._checked_weathers(weather)
        items = map(self._item, self._images())
        super().__init__(items, labels, labelled, transform, seed, cache, cache_size)

    def _checked_weathers(self, weather: Sequence[str] | None) -> tuple[str, ...]:
        if weather is None:
            return WEATHERS
        if isinstance(weather, str) or not weather or not set(weather) <= set(WEATHERS):
            raise ConfigError(f"weather={weather} is not a list of some of {', '.join(WEATHERS)}, e.g. weather=[fog]")
        return tuple(weather)

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
