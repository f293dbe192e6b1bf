"""Choose some of many rows, and group rows by clip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby


def evenly(items: Sequence[int], count: int) -> list[int]:
    """Return at most `count` items, evenly spread; all if they are fewer."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def views_of(rows: Iterable[int], num_views: int) -> list[tuple[int, ...]]:
    """Group rows by clip, in order: with K views a clip has up to K rows."""
    return [tuple(group) for _, group in groupby(rows, key=lambda row: row // num_views)]
