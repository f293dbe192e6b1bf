"""Choose some of many."""

from __future__ import annotations

from collections.abc import Sequence


def evenly(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of them, evenly spread; all if they are fewer."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]
