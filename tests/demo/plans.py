"""Tiny plans of a demo, and a listener that stops it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from stjepa_cli.core.progress import Task
from stjepa_cli.demo.chain import BenchmarkPlan
from stjepa_cli.demo.run import demo_plan
from stjepa_cli.demo.sizes import SIZES, BenchmarkSize

TINY: BenchmarkSize = replace(SIZES["minutes"], num_clips=40, num_train=32, num_test=32, epochs=2, batch_size=16)


def tiny_demo(out: Path, *, all_rows: bool = False) -> BenchmarkPlan:
    """The demo with few clips and steps."""
    plan = demo_plan(out, all_rows=all_rows)
    return replace(plan, size=TINY, students=tuple(replace(row, settings={}) for row in plan.students))


class Interrupter:
    """Raises KeyboardInterrupt when a task has advanced so far; keeps the notes."""

    def __init__(self, task: str = "", after: int = 0) -> None:
        self.name, self.after, self.notes, self.tasks = task, after, list[str](), list[str]()

    @contextmanager
    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> Iterator[Task]:
        self.tasks.append(name)
        yield _Counted(self if self.name and name.startswith(self.name) else None)

    def note(self, text: str) -> None:
        self.notes.append(text)


class _Counted:
    def __init__(self, owner: Interrupter | None) -> None:
        self.owner = owner

    def advance(self, count: int = 1, **_: float) -> None:
        if self.owner is None:
            return
        self.owner.after -= count
        if self.owner.after <= 0:
            raise KeyboardInterrupt
