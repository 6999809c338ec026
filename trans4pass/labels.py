"""Label spaces: the one place that knows what a label value means, in a file and in a prediction."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from annotated_types import Interval, Len, MinLen
from pydantic import Strict

from trans4pass.errors import ConfigError, DataError
from trans4pass.settings import parse

IGNORE = 255  # the train id of pixels that no loss and no metric counts
IGNORED_KEY = "ignored"  # the encoding entry that lists known raw values without a class
MAX_CLASSES = IGNORE  # train ids are bytes, and one of them is IGNORE
MAX_RAW = 2**16 - 1  # label files hold 8 or 16 bits
UNLISTED = -1  # lookup table entry of a raw value that the encoding does not name

Name = Annotated[str, MinLen(1)]
Byte = Annotated[int, Strict(), Interval(ge=0, le=255)]
RawValue = Annotated[int, Strict(), Interval(ge=0, le=MAX_RAW)]


@dataclass(frozen=True, eq=False)
class LabelSpace:
    """A set of classes with their colours, and how the raw values of label files (encodings) become its train ids.

    A train id is a class's index in `classes`; 255 is ignored. `palette` is (K,3) uint8, RGB. `encodings` maps an
    encoding's name to {class: raw values}, with the key "ignored" for known values without a class; a value listed
    nowhere is an error in a file. An encoding named like another label space lists that space's train ids, so it
    also maps that space's predictions into this one. The space's own name is always an encoding: the identity.
    Raises ConfigError for anything contradictory.
    """

    name: str
    classes: tuple[str, ...]
    palette: np.ndarray
    encodings: dict[str, dict[str, tuple[int, ...]]]

    def __post_init__(self):
        where = f"labels/{self.name}"
        palette = np.array(self.palette, np.uint8)
        palette.setflags(write=False)
        object.__setattr__(self, "palette", palette)
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise ConfigError(f"{where}: {len(self.classes)} classes; a label space has 1 to {MAX_CLASSES}")
        for i, name in enumerate(self.classes):
            if name == IGNORED_KEY:
                raise ConfigError(f"{where}: {name!r} cannot be a class's name; choose another")
            if name in self.classes[:i]:
                raise ConfigError(f"{where}: the class {name!r} is there twice")
        if self.name in self.encodings:
            raise ConfigError(f"{where}: the encoding {self.name!r} is built in; remove it from `encodings`")
        for encoding, values in self.encodings.items():
            _check_encoding(f"{where}, encoding {encoding!r}", self.classes, values)

    def __eq__(self, other: object) -> bool:
        # The order of classes is their meaning, and dicts compare without order.
        if not isinstance(other, LabelSpace):
            return NotImplemented
        return self.classes == other.classes and self.to_dict() == other.to_dict()

    @classmethod
    def from_dict(cls, mapping: Mapping) -> "LabelSpace":
        """The space described by {"name", "classes": {class: [r,g,b]}, "encodings"}, as in configs/labels/*.yaml."""
        if not isinstance(mapping, Mapping):
            raise ConfigError(f"a label space has the keys name, classes and encodings, and this is {mapping!r}")
        return parse(label_space, mapping, f"labels/{mapping.get('name')}")

    @classmethod
    def from_yaml(cls, path: str | Path) -> "LabelSpace":
        """The space in one YAML file; a key that occurs twice is a ConfigError too."""
        try:
            with Path(path).open("rb") as file:
                mapping = yaml.load(file, _UniqueKeyLoader)
        except OSError as error:
            raise ConfigError(f"cannot read the label space {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not valid YAML: {error}") from error
        return cls.from_dict(mapping)

    def to_dict(self) -> dict:
        """Plain Python types, for a checkpoint; `from_dict` gives an equal space back. Key order is class order."""
        return {
            "name": self.name,
            "classes": {name: colour.tolist() for name, colour in zip(self.classes, self.palette)},
            "encodings": {k: {c: list(raw) for c, raw in v.items()} for k, v in self.encodings.items()},
        }

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def check_encoding(self, encoding: str, wanted_by: str) -> None:
        """Raise ConfigError unless this space knows `encoding`; `wanted_by` says in the error who asked."""
        if encoding not in self._tables:
            raise ConfigError(
                f"{wanted_by} needs the encoding {encoding!r}, and labels/{self.name} has only {sorted(self._tables)}; "
                f"add it under `encodings` in configs/labels/{self.name}.yaml or choose other labels"
            )

    def decode(self, raw: np.ndarray, encoding: str, source: str) -> np.ndarray:
        """Raw label values of any shape (uint8 or uint16) as uint8 train ids.

        `source` names the file in the DataError raised for a value that `encoding` does not list.
        """
        self.check_encoding(encoding, source)
        ids = self._tables[encoding][raw]
        if ids.min(initial=0) == UNLISTED:
            values = np.unique(raw[ids == UNLISTED])
            shown = ", ".join(map(str, values[:5])) + (" ..." if len(values) > 5 else "")
            fitting = [name for name, table in self._tables.items() if table[raw].min() != UNLISTED]
            hint = f". All its values are in the encoding {' and in '.join(fitting)}: is it that?" if fitting else ""
            raise DataError(
                f"label value {shown} in {source} is not in labels/{self.name} (encoding {encoding!r}); if it is "
                f"right, list it under a class or under `{IGNORED_KEY}` in configs/labels/{self.name}.yaml, "
                f"else choose the labels that this file was written for{hint}"
            )
        return ids.astype(np.uint8)

    def mapping_from(self, other: "LabelSpace") -> np.ndarray:
        """(256,) uint8 table from `other`'s train ids to this space's, 255 where it has no such class.

        Raises ConfigError if `other` has no defined way into this space.
        """
        if other.name == self.name and other.classes != self.classes:
            raise ConfigError(
                f"two label spaces are named {self.name!r}: {other.classes} and {self.classes}; rename one"
            )
        if other.name not in self._tables:
            raise ConfigError(
                f"labels/{other.name} cannot be mapped into labels/{self.name}, which can be reached only from label "
                f"spaces named like one of its encodings: {sorted(self._tables)}; evaluate with one of these, or add "
                f"the encoding {other.name!r} to configs/labels/{self.name}.yaml"
            )
        table = self._tables[other.name]
        listed = set(np.flatnonzero(table != UNLISTED).tolist()) - {IGNORE}
        if wrong := listed ^ set(range(other.num_classes)):
            raise ConfigError(
                f"labels/{self.name}: the encoding {other.name!r} must list the train ids 0..{other.num_classes - 1} "
                f"of labels/{other.name}, each once, and no others but {IGNORE}; look at {sorted(wrong)}"
            )
        return np.where(table[: IGNORE + 1] == UNLISTED, IGNORE, table[: IGNORE + 1]).astype(np.uint8)

    def colorize(self, label: np.ndarray) -> np.ndarray:
        """Train ids (H,W) as an RGB picture (H,W,3) uint8; ignored is black."""
        colours = np.zeros((IGNORE + 1, 3), np.uint8)
        colours[: self.num_classes] = self.palette
        return colours[label]

    @cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        """Encoding -> (65536,) int16 lookup table, UNLISTED where a raw value has no entry."""
        index = {name: i for i, name in enumerate(self.classes)} | {IGNORED_KEY: IGNORE}
        by_index = {name: (i,) for name, i in index.items()}
        tables = {}
        for encoding, values in {**self.encodings, self.name: by_index}.items():
            tables[encoding] = np.full(MAX_RAW + 1, UNLISTED, np.int16)
            for name, raw in values.items():
                tables[encoding][list(raw)] = index[name]
        return tables


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a repeated key, of which PyYAML would silently keep the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise ConfigError(f"{twice[0]!r} occurs twice{node.start_mark}; keep one")
        return super().construct_mapping(node, deep)


def label_space(
    name: Name,
    classes: dict[Name, Annotated[list[Byte], Len(3, 3)]],
    encodings: dict[str, dict[str, tuple[RawValue, ...]]] | None,
) -> LabelSpace:
    """The space that a file describes, see `LabelSpace.from_dict`."""
    return LabelSpace(name, tuple(classes), np.array(list(classes.values())), encodings or {})


def _check_encoding(where: str, classes: tuple[str, ...], values: Mapping[str, tuple[int, ...]]) -> None:
    owner: dict[int, str] = {}
    for name, raw in values.items():
        if name != IGNORED_KEY and name not in classes:
            raise ConfigError(f"{where}: {name!r} is not one of the classes {list(classes)}")
        for value in raw:
            if value in owner:
                raise ConfigError(f"{where}: the raw value {value} is listed twice, for {owner[value]!r} and {name!r}")
            owner[value] = name
