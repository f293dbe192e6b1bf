"""Any data set with lists as for Kinetics (arXiv 1705.06950): `train.csv` and `val.csv`, a path and a label on each line."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import ClassVar

from stjepa_cli.core.locations import Location, location
from stjepa_cli.data.datasets.base import Dataset, VideoItem

UNLABELLED = ("", "-1")

_LINE = "a line like `videos/abc.mp4 17` or `videos/abc.mp4,playing guitar`"


class Kinetics(Dataset):
    """Lists as VideoMAE, UMT and V-JEPA read them. Labels are numbers, or names, which are then numbered alphabetically.

    ```text
    root/     train.csv  val.csv  test.csv        `path label` or `path,label`; a line `path,label` on top is a header
    ```

    Paths are relative to the root, or absolute, or URLs. A label of -1 stands for no label.
    """

    name: ClassVar[str] = "kinetics"
    title: ClassVar[str] = "Kinetics"
    homepage: ClassVar[str] = "https://github.com/cvdfoundation/kinetics-dataset"
    how_to_get: ClassVar[str] = (
        f"Get it from {homepage}, write train.csv and val.csv with a line `path label` for each video into its folder "
        "and set STJEPA_KINETICS to it."
    )
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    optional_splits: ClassVar[tuple[str, ...]] = ("val", "test")
    pairs: ClassVar[Mapping[str, tuple[str, str]]] = {"val": ("train", "val"), "test": ("train", "test")}
    example = "--data-root /data/k400 --clips 5x3"
    official = False

    def list_file(self, split: str) -> Location:
        """Return the place of `<split>.csv`."""
        return self.root / f"{split}.csv"

    @property
    def video_folder(self) -> Location:
        """Return the root: the lists hold the folders."""
        return self.root

    def replace_list(self) -> str:
        return f"Write the list, with {_LINE} for each video; {self.homepage} has the videos."

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Return the number of each label."""
        return {name: number for number, name in enumerate(self.classes)}

    def _read_classes(self) -> tuple[str, ...]:
        there = [split for split in self.splits if split not in self.optional_splits or self.list_file(split).is_file()]
        labels = {label for split in there for _, label in self._rows(self.list_file(split))} - set(UNLABELLED)
        if not labels:
            raise self._wrong_shape(self.list_file("train"), "no label at all", _LINE)
        if all(label.isdecimal() for label in labels):
            return tuple(str(number) for number in range(max(map(int, labels)) + 1))
        return tuple(sorted(labels))

    def _read_split(self, split: str) -> tuple[VideoItem, ...]:
        return tuple(self._item(place, label) for place, label in self._rows(self.list_file(split)))

    def _item(self, place: str, label: str) -> VideoItem:
        path = location(place) if place.startswith("/") or "://" in place else self.root / place
        number = None if label in UNLABELLED else self._numbers[str(int(label)) if label.isdecimal() else label]
        return VideoItem(str(PurePosixPath(place).with_suffix("")), path, number, None)

    def _rows(self, path: Location) -> list[tuple[str, str]]:
        """Read path and label of each line, separated by a comma if every line has one, else by the last space."""
        lines = [line.strip() for line in self._read_text(path).splitlines() if line.strip()]
        if "youtube_id" in lines[0]:
            raise self._wrong_shape(path, "the official annotations, which name no files", _LINE)
        comma = all("," in line for line in lines)
        parts = [_at_comma(line) if comma else _at_last_space(line) for line in lines]
        rows = []
        for number, (line, (place, label)) in enumerate(zip(lines, parts, strict=True)):
            if number == 0 and _is_header(place, label):
                continue
            if not place or not label or place.endswith("/"):
                raise self._wrong_shape(path, repr(line), _LINE)
            if not comma and PurePosixPath(place).suffix.count(" "):
                raise self._wrong_shape(path, repr(line), "a comma before a label of several words")
            rows.append((place, label))
        return rows


def _at_comma(line: str) -> tuple[str, str]:
    """Split a line into path and label, quoted or not; a path without quotes may hold commas, a label with commas is quoted."""
    if line.endswith('"'):
        *_, label = next(csv.reader([line], skipinitialspace=True))
        place = line[: line.rindex('"' + label.replace('"', '""'))].rstrip().removesuffix(",")
    else:
        place, _, label = line.rpartition(",")
    return place.strip().strip('"'), label.strip()


def _at_last_space(line: str) -> tuple[str, str]:
    parts = line.rsplit(maxsplit=1)
    return (parts[0].strip('"'), parts[1].strip('"')) if len(parts) == 2 else ("", line)


def _is_header(place: str, label: str) -> bool:
    """Tell if a first line names columns: its path has no suffix, and one of its words is a usual name of a column."""
    words = set(re.split(r"[^a-z]+", f"{place} {label}".lower()))
    return (
        not PurePosixPath(place).suffix
        and not label.isdecimal()
        and bool(words & {"path", "file", "filename", "video", "label", "class", "name", "id"})
    )


plugin = Kinetics
