"""Something-Something v2 (arXiv 1706.04261): `<id>.webm` and JSON lists, in the folders that are found in practice."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from stjepa_cli.core.locations import Location
from stjepa_cli.data.datasets.base import Dataset, VideoItem, as_text, folder_names

LIST_FOLDERS = ("", "labels")  # "" is the root: in a URL, unlike in a path, "." would be a name
LIST_PREFIXES = ("", "something-something-v2-")
VIDEO_FOLDERS = ("20bn-something-something-v2", "videos", "")

_CLASSES = "an object of templates and class ids"
_LABELLED = 'a list of objects like {"id": "78687", "template": "Holding [something]"}'
_UNLABELLED = 'a list of objects like {"id": "78687"}'


class SomethingSomething(Dataset):
    """Something-Something v2: 174 classes, 168,913 train, 24,777 validation and 27,157 unlabelled test videos.

    ```text
    root/ | root/labels/                  labels.json train.json validation.json test.json
                                          (or something-something-v2-train.json and so on)
    root/ | root/videos/ | root/20bn-something-something-v2/      <id>.webm
    ```
    """

    name: ClassVar[str] = "ssv2"
    title: ClassVar[str] = "Something-Something v2"
    homepage: ClassVar[str] = "https://www.qualcomm.com/developer/software/something-something-v2-dataset"
    how_to_get: ClassVar[str] = (
        f"Get it from its official page, {homepage}, unpack videos and JSON lists into one folder and set STJEPA_SSV2 to it."
    )
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    optional_splits: ClassVar[tuple[str, ...]] = ("test",)
    pairs: ClassVar[Mapping[str, tuple[str, str]]] = {"validation": ("train", "validation")}
    example = "--clips 2x3"

    def list_file(self, split: str) -> Location:
        """Return the place of `<split>.json`; the first of the usual places if it is in none of them."""
        places = [self.root / folder / f"{prefix}{split}.json" for folder in LIST_FOLDERS for prefix in LIST_PREFIXES]
        return next((place for place in places if place.is_file()), places[0])

    @cached_property
    def video_folder(self) -> Location:
        """Return the folder with the most webm files; the official one if there are none anywhere."""
        folders = [self.root / folder for folder in VIDEO_FOLDERS]
        return max(folders, key=lambda folder: sum(name.endswith(".webm") for name in folder_names(folder)))

    def _read_classes(self) -> tuple[str, ...]:
        path = self.list_file("labels")
        ids: dict[int, str] = {}
        for template, number in self._read_json(path, dict, _CLASSES).items():
            text = as_text(number)
            if text is None or not text.isdecimal() or int(text) in ids:
                raise self._wrong_shape(path, f"{template!r}: {number!r}", "a class id of its own for each template")
            ids[int(text)] = template
        return tuple(ids[number] for number in sorted(ids))

    def _read_split(self, split: str) -> tuple[VideoItem, ...]:
        path = self.list_file(split)
        labels = None if split == "test" else {name: i for i, name in enumerate(self.classes)}
        entries = self._read_json(path, list, _UNLABELLED if labels is None else _LABELLED)
        return tuple(self._item(entry, labels, path) for entry in entries)

    def _item(self, entry: Any, labels: dict[str, int] | None, path: Location) -> VideoItem:
        video = as_text(entry.get("id")) if isinstance(entry, dict) else None
        if video is None:
            raise self._wrong_shape(path, entry, _UNLABELLED if labels is None else _LABELLED)
        label = None
        if labels is not None:
            template = entry.get("template")
            if not isinstance(template, str):
                raise self._wrong_shape(path, entry, _LABELLED)
            label = labels.get(template.replace("[", "").replace("]", ""))
            if label is None:
                raise self._wrong_shape(path, f"the template {template!r}", f"one of those in {self.list_file('labels').name}")
        return VideoItem(video, self.video_folder / f"{video}.webm", label, None)


plugin = SomethingSomething
