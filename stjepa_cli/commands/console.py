"""What a person sees: tables on stdout, progress and messages on stderr, one error boundary. The one user of rich."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.locations import is_location
from stjepa_cli.core.progress import SILENT, Progress, Task

Result = TypeVar("Result")

PLAIN_LINE_SECONDS = 5.0
_WIDE = 160  # columns where the output goes to a file, so that nothing is cut


def run_command(
    call: Callable[[Progress], Result],
    *,
    render: Callable[[Result], None],
    as_json: bool,
    succeeded: Callable[[Result], bool] = lambda _: True,
    payload: Callable[[Result], dict[str, Any]] | None = None,
) -> None:
    """Make one library call, show what it returns, and leave with its exit code.

    Args:
        call: gets the progress listener and returns a result value.
        render: shows the result to a person.
        as_json: print the result as one JSON object instead.
        succeeded: whether the result means exit code 0 rather than 1.
        payload: the JSON-able form of the result; by default that of the dataclass.
    """
    follows = os.environ.get("RANK", "0") != "0"  # one of the processes that torchrun started, and not the one that speaks
    try:
        result = call(SILENT if follows else terminal_progress() if sys.stderr.isatty() else PlainProgress())
    except StjepaError as error:
        if as_json:
            _print_json({"ok": False, "error": error.sentence()})
        say(f"error: {error.sentence()}", style="bold red")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        say("stopped. What was finished is kept; the same command goes on from there.")
        raise SystemExit(130) from None
    if as_json and not follows:
        _print_json((payload or _as_dict)(result))
    elif not follows:
        render(result)
    if not succeeded(result):
        raise SystemExit(1)


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """Collects SIGTERM and the first Ctrl-C instead of ending the program; a second Ctrl-C ends it."""
    asked: list[int] = []

    def handle(number: int, _: object) -> None:
        if number == signal.SIGINT and signal.SIGINT in asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def say(text: str, *, style: str | None = None) -> None:
    """One line on stderr."""
    _stderr().print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str | None = None) -> None:
    """A table on stdout; numbers are set to the right."""
    numeric = [all(isinstance(row[i], (int, float)) or row[i] in (None, "-") for row in rows) for i in range(len(columns))]
    table = Table()
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    _show(title, table, caption)


def show_pairs(title: str, pairs: dict[str, object]) -> None:
    """Names and values on stdout, one a line."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(name, _cell(value))
    _show(title, table)


def show_lines(title: str, lines: Sequence[str]) -> None:
    """Lines on stdout that can be copied: they are never cut or folded inside a word."""
    console = _stdout()
    console.print(title, style="bold", markup=False, soft_wrap=True)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _show(title: str, table: Table, caption: str | None = None) -> None:
    """A table between lines that it does not force to its own width."""
    console = _stdout()
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(table, markup=False)
    if caption:
        console.print(caption, style="dim", markup=False, soft_wrap=True)


def megabytes(size: int) -> str:
    """Bytes for people: 12.3 MB, 203.4 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def annotate(lines: Sequence[str], *, title: str) -> None:
    """Errors as annotations, where a GitHub workflow is what runs the command."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in lines:
            text = line.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
            print(f"::error title={title}::{text}", flush=True)


class PlainProgress:
    """Progress where there is no terminal: a line every few seconds, and one at the end."""

    @contextmanager
    def task(self, name: str, *, total: int | None, unit: str = "clips") -> Iterator[Task]:
        task = _PlainTask(name, total, unit)
        yield task
        task.line(last=True)

    def note(self, text: str) -> None:
        say(text)


class _PlainTask:
    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.figures: dict[str, float] = {}
        self.started = self.shown = time.monotonic()

    def advance(self, count: int = 1, **figures: float) -> None:
        self.done += count
        self.figures |= figures
        if time.monotonic() - self.shown >= PLAIN_LINE_SECONDS:
            self.line()

    def line(self, *, last: bool = False) -> None:
        self.shown = time.monotonic()
        seconds = self.shown - self.started
        of = f"/{self.total}" if self.total is not None else ""
        more = "".join(f", {name} {value:.4g}" for name, value in self.figures.items())
        rate = f", {self.done / seconds:.1f} {self.unit}/s" if seconds > 0.05 else ""
        say(f"{self.name}: {self.done}{of} {self.unit}{rate}{more}" + (f", {seconds:.1f} s" if last else ""))


class TerminalProgress:
    """Progress on a terminal: a bar for each task, messages above it."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def task(self, name: str, *, total: int | None, unit: str = "clips") -> Iterator[Task]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Bars(*columns, console=self.console) as bars:
            yield _BarTask(bars, name, total, unit)

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True, style="dim")


class _BarTask:
    def __init__(self, bars: Bars, name: str, total: int | None, unit: str) -> None:
        self.bars, self.unit = bars, unit
        self.id = bars.add_task(name, total=total, rate="", figures="")
        self.done, self.started = 0, time.monotonic()
        self.figures: dict[str, float] = {}

    def advance(self, count: int = 1, **figures: float) -> None:
        self.done += count
        self.figures |= figures
        rate = self.done / max(1e-3, time.monotonic() - self.started)
        shown = " ".join(f"{name} {value:.4g}" for name, value in self.figures.items())
        self.bars.update(self.id, advance=count, rate=f"{rate:.1f} {self.unit}/s", figures=shown)


def terminal_progress() -> Progress:
    """Bars on stderr."""
    return TerminalProgress(_stderr())


def to_plain(value: Any) -> Any:
    """A result as JSON-able values."""
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if is_location(value) else value


def _as_dict(result: Any) -> dict[str, Any]:
    return dict(to_plain(asdict(result)))


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False), flush=True)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _stdout() -> Console:
    return Console(width=None if sys.stdout.isatty() else _width(), highlight=False, emoji=False)


def _stderr() -> Console:
    return Console(stderr=True, width=None if sys.stderr.isatty() else _width(), highlight=False, emoji=False)


def _width() -> int:
    return int(os.environ["COLUMNS"]) if os.environ.get("COLUMNS", "").isdigit() else _WIDE
