"""Progress of long work: a small protocol between library code, which reports, and a listener, which shows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """A piece of work in progress."""

    def advance(self, count: int = 1, **metrics: float) -> None:
        """Report that `count` more units are done; `metrics` are shown beside the bar (loss, failures)."""


class Progress(Protocol):
    """A listener to long work."""

    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> AbstractContextManager[Task]:
        """Open a task of `total` units (None if the number is unknown), of which an earlier session did `completed`."""

    def note(self, text: str) -> None:
        """Show a message, one line."""


class _Silent:
    """A listener that shows nothing."""

    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> AbstractContextManager[Task]:
        return nullcontext(self)

    def advance(self, count: int = 1, **metrics: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass


SILENT: Progress = _Silent()
