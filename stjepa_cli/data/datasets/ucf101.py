"""UCF-101 (arXiv 1212.0402): class folders of avi files and three official splits in text lists with CRLF line ends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import ClassVar

from stjepa_cli.core.locations import Location
from stjepa_cli.data.datasets.base import Dataset, VideoItem, folder_names

LIST_FOLDERS = ("ucfTrainTestlist", "")  # "" is the root: in a URL, unlike in a path, "." would be a name
VIDEO_FOLDERS = ("UCF-101", "UCF101", "videos", "")

_GROUP = re.compile(r"_(g\d+)_c\d+$", re.IGNORECASE)
_LINE = "a line like `ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1`"


class UCF101(Dataset):
    """UCF-101: 101 classes, 13,320 videos; split 1 has 9,537 for training and 3,783 for testing.

    ```text
    root/ | root/ucfTrainTestlist/     classInd.txt trainlist01.txt testlist01.txt ... 03
    root/ | root/UCF-101/              ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi
    ```

    Some names differ in case between the lists and the disk (HandStandPushups, HandstandPushups), so case is ignored. The
    class of a video is that of its folder: the test lists hold no labels.
    """

    name: ClassVar[str] = "ucf101"
    title: ClassVar[str] = "UCF-101"
    homepage: ClassVar[str] = "https://www.crcv.ucf.edu/data/UCF101.php"
    how_to_get: ClassVar[str] = (
        f"Get UCF101.rar and the splits for action recognition from its official page, {homepage}, "
        "unpack both into one folder and set STJEPA_UCF101 to it."
    )
    splits: ClassVar[tuple[str, ...]] = ("train1", "test1", "train2", "test2", "train3", "test3")
    pairs: ClassVar[Mapping[str, tuple[str, str]]] = {str(i): (f"train{i}", f"test{i}") for i in (1, 2, 3)}
    example = "--split 1 --protocol knn"

    def list_file(self, split: str) -> Location:
        """Return the place of `trainlist01.txt` for `train1`."""
        return self._list(f"{split[:-1]}list0{split[-1]}.txt")

    def _list(self, name: str) -> Location:
        places = [self.root / folder / name for folder in LIST_FOLDERS]
        return next((place for place in places if place.is_file()), places[0])

    @cached_property
    def video_folder(self) -> Location:
        """Return the folder with the most class folders; the official one if there are none anywhere."""
        known = {name.lower() for name in self.classes}
        folders = [self.root / folder for folder in VIDEO_FOLDERS]
        return max(folders, key=lambda folder: sum(name.lower() in known for name in folder_names(folder)))

    @cached_property
    def _files(self) -> dict[str, Location]:
        """Return every file of the class folders, by `class/name` in lower case."""
        known = {name.lower() for name in self.classes}
        folders = [self.video_folder / name for name in folder_names(self.video_folder) if name.lower() in known]
        return {f"{folder.name}/{name}".lower(): folder / name for folder in folders for name in folder_names(folder)}

    def _read_classes(self) -> tuple[str, ...]:
        path = self._list("classInd.txt")
        ids: dict[int, str] = {}
        for line in _lines(self._read_text(path)):
            number, _, name = line.partition(" ")
            if not number.isdecimal() or not name.strip() or int(number) in ids:
                raise self._wrong_shape(path, repr(line), "lines like `1 ApplyEyeMakeup`, each number once")
            ids[int(number)] = name.strip()
        return tuple(ids[number] for number in sorted(ids))

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {name.lower(): i for i, name in enumerate(self.classes)}

    def _read_split(self, split: str) -> tuple[VideoItem, ...]:
        path = self.list_file(split)
        return tuple(self._item(line, path) for line in _lines(self._read_text(path)))

    def _item(self, line: str, path: Location) -> VideoItem:
        place = line.split(maxsplit=1)[0]
        folder, _, name = place.partition("/")
        label = self._labels.get(folder.lower())
        if not name or "/" in name:
            raise self._wrong_shape(path, repr(line), _LINE)
        if label is None:
            raise self._wrong_shape(path, repr(line), "a class that is in classInd.txt")
        file = self._files.get(place.lower(), self.video_folder / place)
        video = PurePosixPath(name).stem
        group = _GROUP.search(video)
        return VideoItem(video, file, label, group[1].lower() if group else None)


def _lines(text: str) -> list[str]:
    """Return the lines that are not blank, whatever their ends."""
    return [line.strip() for line in text.splitlines() if line.strip()]


plugin = UCF101
