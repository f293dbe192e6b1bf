"""HMDB-51 (Kuehne et al., ICCV 2011): class folders of avi files and three official splits, in one text file for each class."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import ClassVar

from stjepa_cli.core.errors import DatasetError
from stjepa_cli.core.locations import Location
from stjepa_cli.data.datasets.base import Dataset, VideoItem, folder_names

LIST_FOLDERS = ("testTrainMulti_7030_splits", "splits", "")  # "" is the root: in a URL, unlike in a path, "." would be a name
VIDEO_FOLDERS = ("hmdb51_org", "HMDB51", "videos", "")
LIST_END = "_test_split1.txt"

_USES = {"0": "", "1": "train", "2": "test"}


class HMDB51(Dataset):
    """HMDB-51: 51 classes, 6,766 videos; a split has 70 videos of each class for training and 30 for testing, the rest is unused.

    ```text
    root/ | root/testTrainMulti_7030_splits/     brush_hair_test_split1.txt, with lines `name.avi 1`: 1 train, 2 test, 0 neither
    root/ | root/hmdb51_org/                     brush_hair/name.avi
    ```
    """

    name: ClassVar[str] = "hmdb51"
    title: ClassVar[str] = "HMDB-51"
    homepage: ClassVar[str] = "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/"
    how_to_get: ClassVar[str] = (
        f"Get hmdb51_org.rar and test_train_splits.rar from its official page, {homepage}, "
        "unpack both (the former class by class) into one folder and set STJEPA_HMDB51 to it."
    )
    splits: ClassVar[tuple[str, ...]] = ("train1", "test1", "train2", "test2", "train3", "test3")
    pairs: ClassVar[Mapping[str, tuple[str, str]]] = {str(i): (f"train{i}", f"test{i}") for i in (1, 2, 3)}
    example = "--split all"
    groups_are_apart = False  # several scenes were cut from one film, and the lists separate scenes, not films

    def list_file(self, split: str) -> Location:
        """Return the list of the first class: a split has a list for each."""
        return self._list(self.classes[0], split[-1])

    def _list(self, label: str, split: str) -> Location:
        return self._list_folder / f"{label}_test_split{split}.txt"

    @cached_property
    def _list_folder(self) -> Location:
        """Return the folder with the most lists; the official one if there are none anywhere."""
        folders = [self.root / folder if folder else self.root for folder in LIST_FOLDERS]
        return max(folders, key=lambda folder: sum(name.endswith(LIST_END) for name in folder_names(folder)))

    @cached_property
    def video_folder(self) -> Location:
        """Return the folder with the most class folders; the official one if there are none anywhere."""
        folders = [self.root / folder if folder else self.root for folder in VIDEO_FOLDERS]
        return max(folders, key=lambda folder: sum(name in self.classes for name in folder_names(folder)))

    def _read_classes(self) -> tuple[str, ...]:
        found = sorted(name.removesuffix(LIST_END) for name in folder_names(self._list_folder) if name.endswith(LIST_END))
        if not found:
            raise DatasetError(f"{self.title} lacks a list: there is no {self._list('brush_hair', '1')}", fix=self.replace_list())
        return tuple(found)

    def _read_split(self, split: str) -> tuple[VideoItem, ...]:
        return tuple(item for label in range(len(self.classes)) for item in self._read_class(label, split))

    def _read_class(self, label: int, split: str) -> list[VideoItem]:
        name = self.classes[label]
        path = self._list(name, split[-1])
        items = []
        for line in filter(str.strip, self._read_text(path).splitlines()):
            file, _, use = line.strip().rpartition(" ")
            if use not in _USES or not file.strip() or "/" in file:
                raise self._wrong_shape(path, repr(line), f"a line like `name_{name}.avi 1`, with 0, 1 or 2")
            if _USES[use] == split[:-1]:
                video = file.strip()
                stem = PurePosixPath(video).stem
                items.append(VideoItem(f"{name}/{stem}", self.video_folder / name / video, label, _source(stem, name)))
        return items


def _source(stem: str, label: str) -> str | None:
    """Return the film or upload that a clip was cut from: the name before the class in `April_09_brush_hair_u_nm_np1_ba_goo_0`."""
    source, found, _ = stem.partition(f"_{label}_")
    return source if found and source else None


plugin = HMDB51
