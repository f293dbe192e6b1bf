"""The data set interface: a folder in its official layout, read as lists of videos with dense labels."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ClassVar, TypeVar

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import ConfigError, DatasetError
from stjepa_cli.core.locations import Location, driver_errors, file_sizes, is_folder, is_local, names

T = TypeVar("T")


@dataclass(frozen=True)
class VideoItem:
    """One listed video.

    Attributes:
        id: Name in the lists, without folder and suffix; unique in a split.
        path: Place of the file or, if it is absent, where it should be.
        label: Index into the data set's `classes`, None where the list gives none.
        group: Source that it was cut from, within its class (`g08`); None where videos are independent. Never split a group
            between fitting and choosing.
    """

    id: str
    path: Location
    label: int | None
    group: str | None


class Dataset(ABC):
    """A data set below a root, a local folder or a URL.

    Attributes:
        name: Name of the plug-in.
        title: Name that people use.
        homepage: Official page.
        how_to_get: Sentences that say what to do when the data set is not there.
        splits: Names that `videos` takes.
        optional_splits: Splits whose lists may be absent.
        pairs: Pairs of splits that a student is scored on, by their usual names: one to fit probes on, and one to test on.
        example: Rest of the command `stjepa infer NAME`, for its help.
        root_is_named: The root has no usual place, so that commands take it as their first word.
        groups_are_apart: Its lists keep each group on one side, so that a group on both sides is a leak; otherwise groups
            matter only for what is chosen on train.
        official: Its lists are the ones that everybody reports on.
        classes: Names of the classes; a label is an index into it, 0..C-1.

    Raises:
        DatasetError: The root or the list of classes is missing or cannot be read.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    homepage: ClassVar[str]
    how_to_get: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    optional_splits: ClassVar[tuple[str, ...]] = ()
    pairs: ClassVar[Mapping[str, tuple[str, str]]]
    example: ClassVar[str] = ""
    root_is_named: ClassVar[bool] = False
    groups_are_apart: ClassVar[bool] = True
    official: ClassVar[bool] = True

    def __init__(self, root: Location) -> None:
        try:
            there = is_folder(root)
        except OSError as error:
            raise DatasetError(f"{self.title} cannot be reached at {root}", got=error, fix=_look(root)) from error
        if not there:
            raise DatasetError(f"{self.title} is not there: {root} is not a folder", fix=self.how_to_get)
        self.root = root
        self.classes: tuple[str, ...] = self._read_classes()

    def videos(self, split: str) -> tuple[VideoItem, ...]:
        """Return every listed video of a split in the order of the list, even if its file is missing.

        Raises:
            ConfigError: There is no such split.
            DatasetError: The list of the split is missing, empty, malformed, of another shape, or names a video twice.
        """
        if split not in self.splits:
            raise ConfigError(f"unknown split of {self.title}", got=repr(split), expected="one of " + ", ".join(self.splits))
        items = self._read_split(split)
        seen: set[str] = set()
        for item in items:
            if item.id in seen:  # two rows of one id could not be told apart in a cache or a table of predictions
                raise DatasetError(f"{self.list_file(split)} lists video {item.id} twice", fix=self.replace_list())
            seen.add(item.id)
        return items

    @property
    def remark(self) -> str:
        """Return what a reader of its figures must know about its splits where they are not official; usually nothing."""
        return ""

    def pair(self, name: int | str | None = None) -> tuple[str, tuple[str, str]]:
        """Return a name of `pairs`, the first if none is given, and the two splits.

        Raises:
            ConfigError: There is no such pair.
        """
        known = next(iter(self.pairs)) if name is None else str(name)
        if known not in self.pairs:
            raise ConfigError(f"unknown split of {self.title}", got=repr(known), expected="one of " + ", ".join(self.pairs))
        return known, self.pairs[known]

    @abstractmethod
    def list_file(self, split: str) -> Location:
        """Return the place of the file that lists a split, even if it is missing."""

    @property
    @abstractmethod
    def video_folder(self) -> Location:
        """Return the folder that holds the videos, even if it is missing."""

    @abstractmethod
    def _read_classes(self) -> tuple[str, ...]:
        """Read the names of the classes, in the order of their labels."""

    @abstractmethod
    def _read_split(self, split: str) -> tuple[VideoItem, ...]:
        """Read the videos of a known split."""

    def replace_list(self) -> str:
        """Return the next step for a user whose list is missing or damaged."""
        return f"Put back the official lists of {self.title} from {self.homepage}."

    def _read_text(self, path: Location) -> str:
        """Read a list as text; a DatasetError if it is missing, empty or not text."""
        try:
            with driver_errors():
                data = path.read_bytes()
            text = data.decode("utf-8-sig")
        except FileNotFoundError as error:
            raise DatasetError(f"{self.title} lacks a list: there is no {path}", fix=self.replace_list()) from error
        except (OSError, UnicodeDecodeError) as error:
            fix = self.replace_list() if is_local(path) or isinstance(error, UnicodeDecodeError) else _look(path)
            raise DatasetError(f"{path} cannot be read", got=error, fix=fix) from error
        if not text.strip():
            raise DatasetError(f"{path} is empty", fix=self.replace_list())
        return text

    def _read_json(self, path: Location, shape: type[T], meaning: str) -> T:
        """Read a JSON file that holds a `shape` (list or dict) and is not empty; `meaning` names its content in messages."""
        try:
            value = json.loads(self._read_text(path))
        except (json.JSONDecodeError, RecursionError) as error:
            raise DatasetError(f"{path} is not valid JSON", got=error, fix=self.replace_list()) from error
        if not isinstance(value, shape):
            raise self._wrong_shape(path, f"a JSON {type(value).__name__}", meaning)
        if not value:
            raise DatasetError(f"{path} is empty", got=json.dumps(value), expected=meaning, fix=self.replace_list())
        return value

    def _wrong_shape(self, path: Location, got: object, expected: str) -> DatasetError:
        return DatasetError(f"{path} has another shape", got=str(got)[:120], expected=expected, fix=self.replace_list())


def open_dataset(name: str, root: Location) -> Dataset:
    """Open the data set plug-in `name` at `root`.

    Raises:
        ConfigError: There is no such plug-in.
        DatasetError: The root or its list of classes is missing or cannot be read.
    """
    dataset: Dataset = plugins.load("data.datasets", name)(root)
    return dataset


def spread(items: Sequence[VideoItem], limit: int | None) -> tuple[VideoItem, ...]:
    """Return at most `limit` items, taken in turn from each class and there from each group, in the order of the list.

    UCF-101's lists begin with one class and one source video, so the first items would be no sample. A larger limit
    contains the choice of a smaller one. None takes all.

    Raises:
        ConfigError: The limit is below 1.
    """
    if limit is None:
        return tuple(items)
    if limit < 1:
        raise ConfigError("limit must be at least 1", got=limit)
    by_class = _queues(range(len(items)), [item.label for item in items])
    turns = _in_turn([_in_turn(_queues(queue, [item.group for item in items])) for queue in by_class])
    return tuple(items[i] for i in sorted(turns[:limit]))


def _queues(places: Iterable[int], keys: Sequence[Hashable]) -> list[list[int]]:
    """Split `places` by their keys, in order of first appearance."""
    queues: dict[Hashable, list[int]] = {}
    for i in places:
        queues.setdefault(keys[i], []).append(i)
    return list(queues.values())


def _in_turn(queues: Sequence[Sequence[int]]) -> list[int]:
    """Take the first of each queue, then the second of each, and so on."""
    return [i for turn in zip_longest(*queues) for i in turn if i is not None]


def folder_names(folder: Location) -> Iterator[str]:
    """List the names in a folder, read once; none if there is no such folder.

    Raises:
        DatasetError: The folder cannot be read.
    """
    return _read(folder, names(folder))


def folder_sizes(folder: Location, wanted: Container[str]) -> Iterator[tuple[str, int]]:
    """List name and size in bytes of the `wanted` files in a folder, read once; none if there is no such folder.

    Raises:
        DatasetError: The folder cannot be read.
    """
    return _read(folder, file_sizes(folder, wanted))


def _read(folder: Location, entries: Iterator[T]) -> Iterator[T]:
    try:
        yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise DatasetError(f"the folder {folder} cannot be read", got=error.strerror or error, fix=_look(folder)) from error


def _look(folder: Location) -> str:
    return f"Type `ls -ld {folder}`." if is_local(folder) else "Check the address and the credentials of its server."


def as_text(value: Any) -> str | None:
    """Return an id from JSON as text; None if it is neither text nor an integer, or cannot be part of a file's name."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    text = str(value).strip()
    return text if text and not set(text) & set("/\\\0") and text not in (".", "..") else None
