"""Answers for tests: events with ids that count up."""

from __future__ import annotations

from typing import Any

from stjepa_cli.judgements.events import Event


def answer(number: int, **changes: Any) -> Event:
    """A choice of the first of three candidates, or what `changes` makes of it."""
    values: dict[str, Any] = {
        "event_id": f"e{number:03d}",
        "session_id": "s",
        "judge": "ann",
        "mode": "trick",
        "anchor": "a",
        "candidates": ("b", "c", "d"),
        "selected": ("b",),
        "positions": (2, 0, 1),
        "response_ms": 900,
        "shown_at": f"2026-01-01T00:00:{number % 60:02d}Z",
    }
    return Event(**{**values, **changes})


def undo(number: int, *, of: tuple[str, ...] = (), session: str = "s") -> Event:
    """An undo of named events, or of the latest of the session."""
    return Event(f"e{number:03d}", session, "ann", "trick", selected=of, verdict="undo")
