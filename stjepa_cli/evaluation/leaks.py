"""Checks that train and test have no video, file or source in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stjepa_cli.core.errors import DatasetError
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.encoders.fingerprints import ABSENT

MAX_NAMED = 5
"""Pairs of equal files that a message names."""


def refuse_leaks(train: Sequence[VideoItem], test: Sequence[VideoItem], *, groups: bool = True) -> None:
    """Refuse a split that tests on videos, or groups of videos, that it trains on.

    Args:
        train: The train list.
        test: The test list.
        groups: Compare groups too.

    Raises:
        DatasetError: A video, or the source that videos were cut from, is on both sides. The message names one.
    """
    for what, key in (("id", _id), ("path", _path), *((("group", source_of),) if groups else ())):
        seen = {key(item) for item in train} - {None}
        both = sorted({str(key(item)) for item in test if key(item) in seen})
        if both:
            raise DatasetError(f"train and test share {len(both)} of their {what}s", got=both[0], fix="Put back the official split files.")


def without_duplicates(
    train: Sequence[VideoItem], test: Sequence[VideoItem], fingerprints: Callable[[Sequence[VideoItem]], Sequence[str]], *, official: bool
) -> tuple[tuple[VideoItem, ...], str]:
    """Leave out train videos whose files are in test under other names. Unofficial lists with such files are refused.

    Args:
        train: The train list.
        test: The test list.
        fingerprints: Returns the fingerprints of the files of videos.
        official: True if the lists are those that everybody reports on.

    Returns:
        The remaining train videos and a remark, which is empty if nothing was left out.

    Raises:
        DatasetError: The same file is on both sides of unofficial lists. The message names pairs.
    """
    test_by_mark = dict(zip(fingerprints(test), test, strict=True))
    test_by_mark.pop(ABSENT, None)
    marks = fingerprints(train)
    pairs = [(item, test_by_mark[mark]) for mark, item in zip(marks, train, strict=True) if mark in test_by_mark]
    if not pairs:
        return tuple(train), ""
    named = ", ".join(f"{item.id} is {other.id}" for item, other in pairs[:MAX_NAMED]) + (", ..." if len(pairs) > MAX_NAMED else "")
    if not official:
        raise DatasetError(f"train and test share {len(pairs)} files under two names", got=named, fix="Leave one of each pair out.")
    rest = tuple(item for mark, item in zip(marks, train, strict=True) if mark not in test_by_mark)
    return rest, f"{len(pairs)} train videos were left out, since the same files are in test under other names: {named}"


def source_of(item: VideoItem) -> str | None:
    """Return the source that a video was cut from, or None. Group names are counted within a class."""
    return None if item.group is None else f"{item.group} of class {item.label}"


def _id(item: VideoItem) -> str | None:
    return item.id


def _path(item: VideoItem) -> str | None:
    return str(item.path)
