"""Standard streams: how much is shown, a log file, and text that any terminal, pipe or JSON reader can take."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from stjepa_cli.core.errors import StjepaError, storage_errors

WIDE = 160
"""Columns of output that does not go to a terminal, so that little is folded."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNSAFE_IN_JSON = re.compile(r"[\x7f-\x9f\ud800-\udfff]")
_SENSIBLE_WIDTH = re.compile(r"[1-9][0-9]{0,3}")


@dataclass
class Output:
    """How much the program shows, as its options ask.

    Attributes:
        quiet: Show results and errors only.
        verbose: Also show tracebacks of errors, and what a command took.
        log: Open log file, or None.
        lost_stdout: Standard output was closed when the program started.
    """

    quiet: bool = False
    verbose: bool = False
    log: TextIO | None = None
    lost_stdout: bool = False

    def open_log(self, path: Path) -> None:
        """Append messages, progress and results to a file from now on.

        Raises:
            StjepaError: The file cannot be written.
        """
        with storage_errors(path):
            self.log = path.open("a", encoding="utf-8", errors="backslashreplace")

    def record(self, text: str) -> None:
        """Append a line with the time to the log file, if there is one."""
        if self.log is not None:
            with suppress(OSError):  # a full disk must not stop the work that is logged
                self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
                self.log.flush()


output = Output()


def prepare() -> None:
    """Make the streams and the environment safe to use, whatever the program was started with."""
    for descriptor in (0, 1, 2):  # a file that is opened later must not become one of the standard streams
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    output.lost_stdout = sys.stdout is None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        with suppress(AttributeError):
            getattr(sys, name).reconfigure(errors="backslashreplace")  # a name that is not UTF-8 must not stop the output
    sys.stderr = cast(TextIO, _Unbreakable(sys.stderr))
    for variable in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):  # libraries read them with `int` and fail
        if variable in os.environ and not _SENSIBLE_WIDTH.fullmatch(os.environ[variable]):
            del os.environ[variable]


class _Unbreakable:
    """A stream whose text is lost where it cannot be written: a full stderr must neither stop the work nor change its exit code."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            return self.stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()


def width(stream: TextIO) -> int | None:
    """Return the columns to use on a stream; None on a terminal, which knows its own."""
    if stream.isatty():
        return None
    return int(os.environ["COLUMNS"]) if _SENSIBLE_WIDTH.fullmatch(os.environ.get("COLUMNS", "")) else WIDE


def visible(text: str) -> str:
    """Spell out control characters, so that a name cannot move the cursor or change colours."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def json_text(data: dict[str, Any], *, encoding: str | None = None) -> str:
    """Format an object as JSON that the encoding of a stream can hold and that a terminal shows as text."""
    data = _without_infinities(data)
    ascii_only = not (encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(data, indent=2, allow_nan=False, ensure_ascii=ascii_only)
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _without_infinities(value: Any) -> Any:
    """Replace numbers that JSON does not have, NaN and the infinities, by null."""
    if isinstance(value, dict):
        return {name: _without_infinities(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_json(data: dict[str, Any]) -> None:
    """Print an object as JSON on stdout."""
    text = json_text(data, encoding=sys.stdout.encoding)
    output.record(text)
    with writing_results():
        sys.stdout.write(text + "\n")


@contextmanager
def writing_results() -> Iterator[None]:
    """Turn a failure to write to stdout into an error, and a reader that has gone into a silent end.

    Raises:
        StjepaError: The disk behind stdout is full, or stdout is closed.
        SystemExit: The reader of the pipe has closed it.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
        raise SystemExit(1) from None
    except SystemExit as end:
        if end.code or not output.lost_stdout:
            raise
    except OSError as error:
        _drop_stdout()
        raise StjepaError("cannot write the result to standard output", got=error.strerror) from error
    if output.lost_stdout:
        raise StjepaError("cannot write the result to standard output", got="it is closed")


def _drop_stdout() -> None:
    """Let what is still buffered go nowhere, so that the interpreter can flush it when it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
