"""Running a command: one library call, its result on stdout, everything else on stderr, and one sentence for an error."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table
from rich.text import Text

from stjepa_cli.commands.progress import PlainProgress, Several, TerminalProgress, duration
from stjepa_cli.commands.streams import WIDE, output, print_json, visible, width, writing_results
from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.locations import is_location
from stjepa_cli.core.progress import SILENT, Progress

Result = TypeVar("Result")

LOG_LINE_SECONDS = 30.0
_ERROR = "bold red"
_TOO_SMALL = "not enough memory. Lower --batch-size or --workers, or run on a larger machine."
_NO_MEMORY = ("can't allocate memory", "annot allocate memory", "failed to map segment", "std::bad_alloc", "can't start new thread")

__all__ = [
    "annotate",
    "asked_to_stop",
    "decimal",
    "duration",
    "escape_markup",
    "megabytes",
    "run_command",
    "say",
    "show_lines",
    "show_pairs",
    "show_table",
    "to_plain",
]


def run_command(
    call: Callable[[Progress], Result],
    *,
    render: Callable[[Result], None],
    as_json: bool,
    succeeded: Callable[[Result], bool] = lambda _: True,
    payload: Callable[[Result], dict[str, Any]] | None = None,
    distributed: bool = False,
) -> None:
    """Make one library call, show its result, and exit with its code.

    Args:
        call: Receives the progress listener and returns a result value.
        render: Shows the result to a person.
        as_json: Print the result as a JSON object instead.
        succeeded: Decides from the result whether the exit code is 0 or 1.
        payload: Returns the result as JSON-able values; by default the fields of the dataclass.
        distributed: Several processes of torchrun may make this call together, of which one shows the result.
    """
    is_main = not (distributed and _is_follower())
    output.record("$ " + " ".join(sys.argv))
    started = time.monotonic()
    try:
        result = call(_listener() if is_main else SILENT)
        if is_main and as_json:
            print_json((payload or _as_dict)(result))
        elif is_main:
            with writing_results():
                render(result)
    except KeyboardInterrupt:
        _fail("stopped", "stopped. Finished work is kept; the same command resumes there.", as_json=as_json, style=None)
        raise SystemExit(130) from None
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:  # a bug: its traceback follows
            output.record(traceback.format_exc())
            _fail(f"internal error: {type(error).__name__}: {error}", None, as_json=as_json)
            raise
        if output.verbose:
            say(traceback.format_exc().rstrip(), style="dim")
        _fail(sentence, f"error: {sentence}", as_json=as_json)
        if sentence == _TOO_SMALL and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
            _end_at_once()
        raise SystemExit(1) from None
    if output.verbose:
        say(f"took {duration(time.monotonic() - started)}")
    if not succeeded(result):
        raise SystemExit(1)


def _end_at_once() -> None:
    """End with exit code 1 without tidying up, which itself needs memory: under `ulimit -v` the interpreter would fail at it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(1)


def _is_follower() -> bool:
    """Return True in a process that torchrun started beside the one that reports."""
    size, rank = (os.environ.get(name, "").strip() for name in ("WORLD_SIZE", "RANK"))
    return size.isdecimal() and rank.isdecimal() and int(size) > 1 and int(rank) > 0


def _listener() -> Progress:
    """Return the listener that the options and the terminal ask for."""
    listeners: list[Progress] = []
    if not output.quiet:
        console = _stderr()
        bars = sys.stderr.isatty() and not console.is_dumb_terminal
        listeners.append(TerminalProgress(console) if bars else PlainProgress(_print_plain))
    if output.log is not None:
        listeners.append(PlainProgress(output.record, LOG_LINE_SECONDS))
    return listeners[0] if len(listeners) == 1 else Several(listeners)


def _sentence(error: Exception) -> str | None:
    """Return the message for an error that is not a bug of the program, or None."""
    if isinstance(error, StjepaError):
        return error.sentence()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in _NO_MEMORY):
        return _TOO_SMALL
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return f"{where}{error.strerror or error}"
    return None


def _fail(short: str, shown: str | None, *, as_json: bool, style: str | None = _ERROR) -> None:
    """Report an error on stderr, and as the JSON object that was asked for."""
    if as_json:
        with suppress(StjepaError):  # stdout may be what failed
            print_json({"ok": False, "error": short})
    if shown is not None:
        say(shown, style=style, always=True)


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """Yield a list that collects SIGTERM and the first Ctrl-C instead of ending the program; a second Ctrl-C ends it."""
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


def say(text: str, *, style: str | None = None, always: bool = False) -> None:
    """Print a message on stderr.

    Args:
        text: Message, without markup.
        style: Style of rich.
        always: Print it although `--quiet` asks for results and errors only.
    """
    output.record(text)
    if not output.quiet or always or style == _ERROR:
        with suppress(OSError):  # stderr may be closed or full, and there is nowhere else to say so
            _stderr().print(visible(text), style=style, markup=False, highlight=False, soft_wrap=True)


def _print_plain(text: str) -> None:
    with suppress(OSError):
        _stderr().print(visible(text), markup=False, highlight=False, soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str | None = None) -> None:
    """Print a table on stdout, with numbers aligned to the right."""
    numeric = [all(isinstance(row[i], (int, float)) or row[i] in (None, "-") for row in rows) for i in range(len(columns))]
    table = Table()
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(Text(visible(name)), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    _show(title, table, caption)


def show_pairs(title: str, pairs: dict[str, object]) -> None:
    """Print names and values on stdout, one pair per line."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(Text(visible(name)), _cell(value))
    _show(title, table)


def show_lines(title: str, lines: Sequence[str]) -> None:
    """Print lines on stdout for copying: they are neither cut nor folded."""
    for console in _results():
        console.print(visible(title), style="bold", markup=False, soft_wrap=True)
        for line in lines:
            console.print(visible(line), markup=False, soft_wrap=True)


def _show(title: str, table: Table, caption: str | None = None) -> None:
    """Print a table with a title and a caption that may be wider than it."""
    for console in _results():
        console.print(visible(title), style="bold", markup=False, soft_wrap=True)
        console.print(table, markup=False)
        if caption:
            console.print(visible(caption), style="dim", markup=False, soft_wrap=True)


def megabytes(size: int) -> str:
    """Format a size for people: 12.3 MB, 203.4 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def decimal(value: float | None, digits: int) -> str:
    """Format a number with so many digits after the point; None as "unknown"."""
    return "unknown" if value is None else f"{value:.{digits}f}"


def annotate(lines: Sequence[str], *, title: str) -> None:
    """Print errors as annotations if a GitHub workflow runs the command."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in lines:
            text = line.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
            print(f"::error title={title}::{text}", flush=True)


def to_plain(value: Any) -> Any:
    """Convert a result to JSON-able values."""
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return str(value) if is_location(value) else value


def _as_dict(result: Any) -> dict[str, Any]:
    return dict(to_plain(asdict(result)))


def _cell(value: object) -> Text:
    """Format a cell of a table; it is never taken for markup."""
    if value is None:
        return Text("-")
    return Text(f"{value:.4g}" if isinstance(value, float) else visible(str(value)))


def _results() -> Iterator[Console]:
    """Yield the consoles that results go to: stdout, and the log file if there is one."""
    yield Console(width=width(sys.stdout), highlight=False, emoji=False)
    if output.log is not None:
        yield Console(file=output.log, width=WIDE, highlight=False, emoji=False, no_color=True)


def _stderr() -> Console:
    return Console(stderr=True, width=width(sys.stderr), highlight=False, emoji=False)
