"""A folder of class folders: the data set that needs no list."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import ClassVar

from stjepa_cli.core.errors import DatasetError
from stjepa_cli.core.locations import Location
from stjepa_cli.data.datasets.base import Dataset, VideoItem, folder_names

SUFFIXES = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg")
TEST_FOLDERS = ("test", "val", "validation")
TEST_PERCENT = 20
SEED = 0


class Folder(Dataset):
    """Class folders of videos, split by folders or, where there are none, at random but the same way everywhere.

    ```text
    root/train/<class>/*.mp4, root/test/<class>/*.mp4     (or val, validation)
    root/<class>/*.mp4                                    a random fifth of each class is for testing, at least one of two
    ```

    Groups are unknown: where several clips were cut from one source, split them yourself, by source.
    """

    name: ClassVar[str] = "folder"
    title: ClassVar[str] = "a folder of videos"
    homepage: ClassVar[str] = ""
    how_to_get: ClassVar[str] = "Name a folder that holds train/<class>/<video> and test/<class>/<video>, or <class>/<video>."
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    pairs: ClassVar[Mapping[str, tuple[str, str]]] = {"test": ("train", "test")}
    example = "my_videos --compare untrained --compare pixels"
    root_is_named = True
    official = False

    def list_file(self, split: str) -> Location:
        """Return the folder of the split, or the root, in place of a list."""
        return self._sides.get(split, self.root)

    @property
    def video_folder(self) -> Location:
        return self.root

    def replace_list(self) -> str:
        return self.how_to_get

    @property
    def remark(self) -> str:
        if self._sides:
            return ""
        part = f"{TEST_PERCENT} % of each class, rounded up,"
        return f"split at random: {part} for testing (seed {SEED}); clips of one source may be on both sides"

    @cached_property
    def _sides(self) -> dict[str, Location]:
        """Return the folders of the splits; none where the root holds the classes."""
        there = set(folder_names(self.root))
        test = next((name for name in TEST_FOLDERS if name in there), None)
        return {"train": self.root / "train", "test": self.root / test} if "train" in there and test else {}

    @cached_property
    def _videos(self) -> dict[str, dict[str, list[Location]]]:
        """Return the files by split and class; all of them under "" where there are no splits."""
        return {split: _by_class(folder) for split, folder in (self._sides or {"": self.root}).items()}

    def _read_classes(self) -> tuple[str, ...]:
        classes = sorted({name for files in self._videos.values() for name in files})
        if not classes:
            raise DatasetError(f"there is no video in the class folders of {self.root}", fix=self.how_to_get)
        return tuple(classes)

    def _read_split(self, split: str) -> tuple[VideoItem, ...]:
        videos = self._videos
        chosen = videos[split] if self._sides else {name: _one_side(name, files, split) for name, files in videos[""].items()}
        numbers = {name: number for number, name in enumerate(self.classes)}
        prefix = f"{self._sides[split].name}/" if self._sides else ""
        return tuple(
            VideoItem(f"{prefix}{name}/{called}", file, numbers[name], None)
            for name in sorted(chosen)
            for file, called in zip(chosen[name], _names(chosen[name]), strict=True)
        )


def _names(files: list[Location]) -> list[str]:
    """Return names without suffixes, or with them where two files would have the same name."""
    stems = Counter(PurePosixPath(file.name).stem for file in files)
    return [stem if stems[stem := PurePosixPath(file.name).stem] == 1 else file.name for file in files]


def _by_class(folder: Location) -> dict[str, list[Location]]:
    """Return the videos of each class folder, by name; a folder without videos is no class."""
    found = {}
    for name in sorted(folder_names(folder)):
        files = [folder / name / file for file in sorted(folder_names(folder / name)) if file.lower().endswith(SUFFIXES)]
        if files and not name.startswith("."):
            found[name] = files
    return found


def _one_side(name: str, files: list[Location], split: str) -> list[Location]:
    """Return one side of a class; the side of a file follows from the order of hashed names."""
    order = sorted(files, key=lambda file: hashlib.sha256(f"{SEED} {name}/{file.name}".encode("utf-8", "surrogateescape")).digest())
    num_test = -(-len(files) * TEST_PERCENT // 100) if len(files) > 1 else 0
    return sorted(order[:num_test] if split == "test" else order[num_test:])


plugin = Folder
