"""The folder of a demo or a benchmark: work is resumed in it, and no file is removed that was not written here.

```text
.stjepa_benchmark.json   settings; when all is done, size and time stamp of every file that was written
.lock                    held while a process works here
```
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stjepa_cli.core.errors import StjepaError, storage_errors
from stjepa_cli.core.files import write_atomic
from stjepa_cli.store.locks import holding

STATE_FILE = ".stjepa_benchmark.json"
LOCK_FILE = ".lock"
SCHEMA = 1
_NEW_FOLDER = "Name a new folder with --out."

Files = dict[str, list[int]]
"""Size and modification time in nanoseconds of files by their path in the folder."""


class OutputFolder:
    """A folder that belongs to one demo or benchmark.

    Args:
        path: The folder; it need not exist.
        what: What it is for, as messages call it: `demo`.

    Raises:
        StjepaError: A state file that is there cannot be read.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what

    @contextmanager
    def claimed(self, settings: Mapping[str, Any], *, replace_finished: bool) -> Iterator[bool]:
        """Hold the folder while the block runs.

        Args:
            settings: JSON-able values that decide the files; an unfinished folder of the same settings is resumed.
            replace_finished: Start over where all is done, instead of resuming.

        Yields:
            Whether earlier work is resumed.

        Raises:
            StjepaError: The folder holds something else or other settings, another process works in it, or files that were not
                written here lie where new ones would go.
        """
        state = self._state()
        if state is None:
            self._check_empty()
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with holding(self.path / LOCK_FILE, range(1), f"the folder {self.path}"):
            state = self._state()
            if state is not None and state["finished"] and replace_finished:
                self._remove(state["files"])
                state = None
            if state is not None and state["settings"] != settings:
                raise StjepaError(
                    f"{self.path} holds a {self.what} with other settings", got=_changed(state["settings"], settings), fix=_NEW_FOLDER
                )
            if state is None:
                self._write(settings, {}, finished=False)
            yield state is not None

    def finish(self, settings: Mapping[str, Any]) -> None:
        """Record that all is done and which files are there."""
        self._write(settings, dict(self._files()), finished=True)

    def _state(self) -> dict[str, Any] | None:
        """Return what the state file says, None if there is none."""
        path = self.path / STATE_FILE
        try:
            state = json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise StjepaError(f"{path} cannot be read", got=error, fix=_NEW_FOLDER) from error
        known = isinstance(state, dict) and state.get("what") == self.what and state.get("schema") == SCHEMA
        if not known or {"settings", "finished", "files"} - set(state):
            raise StjepaError(f"{self.path} holds something else than a {self.what}", fix=_NEW_FOLDER)
        return dict(state)

    def _check_empty(self) -> None:
        with storage_errors(self.path):
            if self.path.exists() and (not self.path.is_dir() or any(path.name != LOCK_FILE for path in self.path.iterdir())):
                raise StjepaError(f"{self.path} holds something else", fix=_NEW_FOLDER)

    def _write(self, settings: Mapping[str, Any], files: Files, *, finished: bool) -> None:
        state = {"what": self.what, "schema": SCHEMA, "settings": settings, "finished": finished, "files": files}
        write_atomic(self.path / STATE_FILE, (json.dumps(state) + "\n").encode())

    def _files(self) -> Iterator[tuple[str, list[int]]]:
        for path in sorted(self.path.rglob("*")):
            if path.is_file() and path.name not in (STATE_FILE, LOCK_FILE):
                yield path.relative_to(self.path).as_posix(), _stamp(path)

    def _remove(self, files: Files) -> None:
        """Remove the recorded files, and folders that are empty then; refuse if one of these folders holds any other file."""
        folders = {name.split("/")[0] for name in files if "/" in name}
        foreign = [name for name, stamp in self._files() if files.get(name) != stamp and (name in files or name.split("/")[0] in folders)]
        if foreign:
            number = "1 file" if len(foreign) == 1 else f"{len(foreign)} files"
            raise StjepaError(
                f"{self.path} holds {number} that the {self.what} did not write, or that changed since then",
                got=foreign[0],
                fix="Move them elsewhere, or name a new folder with --out.",
            )
        with storage_errors(self.path):
            for name in files:
                (self.path / name).unlink(missing_ok=True)
        for folder in folders:
            for place, _, _ in os.walk(self.path / folder, topdown=False):
                with suppress(OSError):  # not empty
                    os.rmdir(place)


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name)}" for name in names)
