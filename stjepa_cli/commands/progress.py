"""Listeners to long work: a bar on a terminal, or a line every few seconds elsewhere and in the log file."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import ProgressColumn
from rich.progress import Task as Bar
from rich.text import Text

from stjepa_cli.commands.streams import visible
from stjepa_cli.core.progress import Progress, Task

PLAIN_LINE_SECONDS = 5.0
RATE_WINDOW_SECONDS = 30.0
MIN_BAR, MAX_BAR = 10, 40

_SHORT = {"clips_per_second": "clips/s", "data_wait": "wait", "memory_gb": "GB", "epoch": "epoch"}


class Meter:
    """Counts a task's units and estimates its speed.

    Args:
        name: Name of the task.
        total: Number of units, or None if it is unknown.
        unit: Name of a unit, in the plural.
        completed: Number of units that an earlier session did; they do not count for the speed.
    """

    def __init__(self, name: str, total: int | None, unit: str, completed: int = 0) -> None:
        self.name, self.total, self.unit = visible(name), total, unit
        self.first = self.done = completed
        self.metrics: dict[str, float] = {}
        self.started = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque([(self.started, completed)])

    def advance(self, count: int, metrics: dict[str, float]) -> None:
        """Count units, and take note of metrics."""
        self.done += count
        self.metrics |= metrics
        now = time.monotonic()
        if now - self._samples[-1][0] > 0.1 or len(self._samples) == 1:
            self._samples.append((now, self.done))
        while len(self._samples) > 2 and now - self._samples[1][0] > RATE_WINDOW_SECONDS:
            self._samples.popleft()

    @property
    def rate(self) -> float | None:
        """Units per second over the last `RATE_WINDOW_SECONDS`; None before the first unit."""
        seconds = time.monotonic() - self._samples[0][0]
        units = self.done - self._samples[0][1]
        return units / seconds if units and seconds > 0.05 else None

    @property
    def mean_rate(self) -> float | None:
        """Units per second of the whole session."""
        seconds = time.monotonic() - self.started
        return (self.done - self.first) / seconds if self.done > self.first and seconds > 0.05 else None

    def count(self) -> str:
        """Return the number of units done, of the total: `1,234/9,999 steps`."""
        if self.total is None:
            return f"{self.done:,} {self.unit}" if self.done else ""
        return f"{self.done:,}/{self.total:,} {self.unit}"

    def left(self) -> str:
        """Return the time left at the current rate, or the time so far if that is unknown or nothing is left."""
        rate = self.rate
        if self.total is None or self.done >= self.total or rate is None:
            return duration(time.monotonic() - self.started)
        return f"{duration(max(0, self.total - self.done) / rate)} left"

    def shown(self) -> list[str]:
        """Return the metrics as text, the loss first."""
        names = sorted(self.metrics, key=lambda name: name != "loss")
        return [f"{_SHORT.get(name, name)} {self.metrics[name]:.4g}" for name in names]

    def line(self) -> str:
        """Return the progress as a line of text."""
        return f"{self.name}: {_joined(self.count(), _speed(self.rate), self.left(), *self.shown())}"

    def summary(self) -> str:
        """Return the finished task as a line of text."""
        took = f"{self.count()} in {duration(time.monotonic() - self.started)}".removeprefix(" in ")
        return f"{self.name}: {_joined(took, _speed(self.mean_rate), *self.shown())}"


def duration(seconds: float) -> str:
    """Format a duration for people: 42 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _speed(rate: float | None) -> str:
    if rate is None:
        return ""
    if rate < 1:
        return f"{1 / rate:.3g} s each"
    return f"{rate:.3g}/s" if rate < 1000 else f"{rate:,.0f}/s"


def bar_line(meter: Meter, columns: int, *, plain: bool = False, bare: bool = False) -> Text:
    """Lay out a progress line that fits a width: name, bar, count, speed, time left, and as many metrics as fit.

    Args:
        meter: Progress to show.
        columns: Width of the line.
        plain: Use ASCII characters only.
        bare: Use characters that tell the two parts of the bar apart without colours.
    """
    fixed = [part for part in (meter.count(), _speed(meter.rate), meter.left()) if part]
    room = columns - len(meter.name) - sum(len(part) + 2 for part in fixed) - 1
    metrics: list[str] = []
    for text in meter.shown():
        if room - len(text) - 2 < (MIN_BAR + 1 if metrics else 0):
            break
        metrics.append(text)
        room -= len(text) + 2
    length = min(MAX_BAR, room - 1)
    line = Text(f"{meter.name} ", no_wrap=True, overflow="crop", end="")
    if length >= MIN_BAR // 2:
        line.append_text(_bar(meter, length, plain=plain, bare=bare)).append("  ")
    line.append("  ".join([*fixed, *metrics]))
    line.truncate(columns)
    return line


def _bar(meter: Meter, length: int, *, plain: bool, bare: bool) -> Text:
    full, empty = ("#", ".") if plain else ("━", "╌" if bare else "━")
    if not meter.total:
        head = int((time.monotonic() - meter.started) * 8) % length  # unknown total: something that moves
        return Text(empty * head, "bright_black").append(full, "cyan").append(empty * (length - head - 1), "bright_black")
    filled = min(length, length * meter.done // meter.total)
    return Text(full * filled, "cyan").append(empty * (length - filled), "bright_black")


class PlainProgress:
    """A listener that writes a line every few seconds and one at the end of each task.

    Args:
        write: Writes a line.
        every_seconds: Time between two lines of a task.
    """

    def __init__(self, write: Callable[[str], None], every_seconds: float = PLAIN_LINE_SECONDS) -> None:
        self.write, self.every_seconds = write, every_seconds

    @contextmanager
    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> Iterator[Task]:
        task = _PlainTask(Meter(name, total, unit, completed), self)
        yield task
        self.write(task.meter.summary())

    def note(self, text: str) -> None:
        self.write(text)


class _PlainTask:
    def __init__(self, meter: Meter, owner: PlainProgress) -> None:
        self.meter, self.owner = meter, owner
        self.written = meter.started

    def advance(self, count: int = 1, **metrics: float) -> None:
        self.meter.advance(count, metrics)
        if time.monotonic() - self.written >= self.owner.every_seconds:
            self.written = time.monotonic()
            self.owner.write(self.meter.line())


class TerminalProgress:
    """A listener that shows a bar for each task, and messages above the bars.

    Args:
        console: Console of the terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: Bars | None = None
        self._active = 0

    @contextmanager
    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> Iterator[Task]:
        meter = Meter(name, total, unit, completed)
        if self._bars is None:
            self._bars = Bars(_Line(self.console), console=self.console, refresh_per_second=5, expand=True)
            self._bars.start()
        self._active += 1
        self._bars.add_task(name, total=None, meter=meter)
        try:
            yield _BarTask(meter)
        finally:
            self._active -= 1
            if not self._active:
                self._bars.stop()
                self._bars = None

    def note(self, text: str) -> None:
        self.console.print(visible(text), markup=False, highlight=False, soft_wrap=True, style="dim")


class _Line(ProgressColumn):
    """The whole line of a task as one column, laid out for the width of the terminal at hand."""

    max_refresh = None

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def render(self, task: Bar) -> Text:
        bare = self.console.no_color or self.console.color_system is None
        return bar_line(task.fields["meter"], self.console.width - 1, plain=self.console.options.ascii_only, bare=bare)


class _BarTask:
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def advance(self, count: int = 1, **metrics: float) -> None:
        self.meter.advance(count, metrics)


class Several:
    """A listener that passes everything on to several others."""

    def __init__(self, listeners: Sequence[Progress]) -> None:
        self.listeners = listeners

    @contextmanager
    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> Iterator[Task]:
        with ExitStack() as stack:
            opened: list[AbstractContextManager[Task]] = [
                listener.task(name, total=total, unit=unit, completed=completed) for listener in self.listeners
            ]
            yield _SeveralTasks([stack.enter_context(task) for task in opened])

    def note(self, text: str) -> None:
        for listener in self.listeners:
            listener.note(text)


class _SeveralTasks:
    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks

    def advance(self, count: int = 1, **metrics: float) -> None:
        for task in self.tasks:
            task.advance(count, **metrics)
