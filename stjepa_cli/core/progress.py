"""How long work tells how far it is: one small protocol, silent unless someone listens."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, count: int = 1, **figures: float) -> None:
        """`count` more units are done; `figures` are shown beside the bar (loss, failures)."""


class Progress(Protocol):
    """A listener to long work."""

    def task(self, name: str, *, total: int | None, unit: str = "clips") -> AbstractContextManager[Task]:
        """Open a task of `total` units (None where the number is not known)."""

    def note(self, text: str) -> None:
        """A message for a person, one line."""


class _Silent:
    """Listens and says nothing."""

    def task(self, name: str, *, total: int | None, unit: str = "clips") -> AbstractContextManager[Task]:
        return nullcontext(self)

    def advance(self, count: int = 1, **figures: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass


SILENT: Progress = _Silent()
