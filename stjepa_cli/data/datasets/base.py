"""What a data set is: a folder in its official layout, read as lists of videos with dense labels."""

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
        id: its name in the lists, without folder and suffix; unique in a split.
        path: where it is or, if it is absent, where it should be.
        label: index into the data set's `classes`, None where the list gives none.
        group: within its class, the source that it was cut from (`g08`), None where videos are independent; never split a
            group between fitting and choosing.
    """

    id: str
    path: Location
    label: int | None
    group: str | None


class Dataset(ABC):
    """A data set below a root, a local folder or a URL.

    Attributes:
        name: the plug-in's name.
        title: the name that people use.
        homepage: its official page.
        how_to_get: sentences that say what to do when it is not there.
        splits: names that `videos` takes.
        optional_splits: those whose lists may be absent.
        pairs: what a student is scored on, by the names that people use: a split to fit probes on, and one to test on.
        example: the rest of a command `stjepa infer NAME`, for its help.
        root_is_named: the root has no usual place, so that a command takes it as its first word.
        groups_are_apart: whether its lists keep each group on one side, so that one on both is a leak; else groups matter only for
            what is chosen on train.
        official: whether its lists are what everybody reports on, so that they are taken as they are.
        classes: names of the classes; a label is an index into it, 0..C-1.

    Raises:
        DatasetError: the root or the list of classes is missing or cannot be read.
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
        """Every listed video of a split in the list's order, whether its file is there or not.

        Raises:
            ConfigError: there is no such split.
            DatasetError: the split's list is missing, empty, malformed, of another shape, or names a video twice.
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
        """What a reader of its figures must know of its splits, if they are no official ones."""
        return ""

    def pair(self, name: int | str | None = None) -> tuple[str, tuple[str, str]]:
        """A name of `pairs`, the first if none is given, and the splits that it stands for.

        Raises:
            ConfigError: there is no such pair.
        """
        known = next(iter(self.pairs)) if name is None else str(name)
        if known not in self.pairs:
            raise ConfigError(f"unknown split of {self.title}", got=repr(known), expected="one of " + ", ".join(self.pairs))
        return known, self.pairs[known]

    @abstractmethod
    def list_file(self, split: str) -> Location:
        """The file that lists a split, or where it should be."""

    @property
    @abstractmethod
    def video_folder(self) -> Location:
        """The folder below which the videos lie, or where they should be."""

    @abstractmethod
    def _read_classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their labels."""

    @abstractmethod
    def _read_split(self, split: str) -> tuple[VideoItem, ...]:
        """The videos of a known split."""

    def replace_list(self) -> str:
        """The next step when a list is missing or damaged."""
        return f"Put back the official lists of {self.title} from {self.homepage}."

    def _read_text(self, path: Location) -> str:
        """The text of a list; a DatasetError if it is missing, empty or no text."""
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
        """The value in a JSON file, a filled `shape` (list or dict); `meaning` says what it should hold."""
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
    """The data set plug-in `name`, opened at `root`.

    Raises:
        ConfigError: there is no such plug-in.
        DatasetError: the root or its list of classes is missing or cannot be read.
    """
    dataset: Dataset = plugins.load("data.datasets", name)(root)
    return dataset


def spread(items: Sequence[VideoItem], limit: int | None) -> tuple[VideoItem, ...]:
    """At most `limit` items, taken in turn from each class and there from each group, in the order of the list.

    The first items of UCF-101's lists are one class and one source video, so a plain cut would be no sample. A larger
    limit contains the choice of a smaller one. None takes all.

    Raises:
        ConfigError: a limit below 1.
    """
    if limit is None:
        return tuple(items)
    if limit < 1:
        raise ConfigError("limit must be at least 1", got=limit)
    by_class = _queues(range(len(items)), [item.label for item in items])
    turns = _in_turn([_in_turn(_queues(queue, [item.group for item in items])) for queue in by_class])
    return tuple(items[i] for i in sorted(turns[:limit]))


def _queues(places: Iterable[int], keys: Sequence[Hashable]) -> list[list[int]]:
    """`places` split by their key, in order of first appearance."""
    queues: dict[Hashable, list[int]] = {}
    for i in places:
        queues.setdefault(keys[i], []).append(i)
    return list(queues.values())


def _in_turn(queues: Sequence[Sequence[int]]) -> list[int]:
    """The first of each queue, then the second of each, and so on."""
    return [i for turn in zip_longest(*queues) for i in turn if i is not None]


def folder_names(folder: Location) -> Iterator[str]:
    """Names of what lies in a folder, read once; nothing if there is no such folder.

    Raises:
        DatasetError: the folder cannot be read.
    """
    return _read(folder, names(folder))


def folder_sizes(folder: Location, wanted: Container[str]) -> Iterator[tuple[str, int]]:
    """Name and bytes of the files in a folder that are `wanted`, read once; nothing if there is no such folder.

    Raises:
        DatasetError: the folder cannot be read.
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
    """An id from JSON as text; None if it is neither text nor an integer, or cannot be part of a file's name."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    text = str(value).strip()
    return text if text and not set(text) & set("/\\\0") and text not in (".", "..") else None
