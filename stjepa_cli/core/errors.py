"""Errors that a user can cause: one sentence each, with the next command to type, and how to install what is missing."""

from __future__ import annotations

import errno
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_SHOWN = 1000
"""Characters of a value that a message shows."""


class StjepaError(Exception):
    """An error that the user can fix.

    Args:
        what: What went wrong, without a full stop.
        got: Value that was found, if there is one to show.
        expected: Value that would have been right.
        fix: Next step, preferably a command.
    """

    def __init__(self, what: str, *, got: object = None, expected: object = None, fix: str | None = None) -> None:
        self.what, self.got, self.expected, self.fix = what, got, expected, fix
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """Return the whole message on one line."""
        text = self.what
        found = [f"{word} {_short(value)}" if value is not None else "" for word, value in (("got", self.got), ("expected", self.expected))]
        if any(found):
            text += ": " + ", ".join(part for part in found if part)
        if self.fix:
            text += f". {self.fix}"
        return " ".join(text.split())


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text):,} characters)"


class ConfigError(StjepaError):
    """A setting does not exist or has a wrong value."""


class DatasetError(StjepaError):
    """A data set is not where it should be, or one of its lists cannot be read."""


class VideoError(StjepaError):
    """A video file cannot be used; a build records the file and continues.

    Args:
        path: Path or URL of the file; kept as it is.
        reason: Cause, as a clause.
    """

    def __init__(self, path: object, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}")

    def __reduce__(self) -> tuple[type[VideoError], tuple[object, str]]:
        """Make the error picklable, so that it can pass between processes."""
        return VideoError, (self.path, self.reason)


class CacheError(StjepaError):
    """A latent cache is missing, damaged, or belongs to something else."""


class CheckpointError(StjepaError):
    """A checkpoint is missing, damaged, or does not fit the model."""


class UnreadableError(StjepaError):
    """A file exists but cannot be read: no permission, an I/O error, a newer format. It must not be taken for a missing or damaged one."""


class TeacherError(StjepaError):
    """A teacher cannot be loaded, or does not fit the request."""


class MaskError(StjepaError):
    """A model cannot use a mask."""


class NotReadyError(StjepaError):
    """Something must be installed first: FFmpeg, an extra."""


_STORAGE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this disk or account allows",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a file is in the way",
    errno.EISDIR: "the path is a folder",
    errno.ENOENT: "there is no such place",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "the disk reports an I/O error",
}


_MAKE_ROOM = "Free some space or choose another folder, then run the same command again."


@contextmanager
def storage_errors(path: object, *, fix: str = _MAKE_ROOM) -> Iterator[None]:
    """Turn an error of the file system about `path` (full, read-only, forbidden) into a `StjepaError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        raise StjepaError(f"cannot write {path}: {_STORAGE[error.errno]}", fix=fix) from error


def install_command(*requirements: str, extra: str | None = None, prefix: Path | None = None) -> str:
    """Return the command that installs packages beside this program.

    Args:
        requirements: Packages, as pip names them.
        extra: Extra of stjepa to install.
        prefix: Environment of the program; this one if None.
    """
    if (Path(sys.prefix if prefix is None else prefix) / "pipx_metadata.json").is_file():
        packages = [*requirements, *(_requirements(extra) if extra else ())]
        return shlex.join(["pipx", "inject", "stjepa", *packages])
    return shlex.join(["pip", "install", *requirements, *([f"stjepa[{extra}]"] if extra else [])])


def how_to_install(*requirements: str, extra: str | None = None) -> str:
    """Return the sentence for an error message that says how to install packages or an extra of stjepa."""
    return f"Type `{install_command(*requirements, extra=extra)}`."


def _requirements(extra: str) -> Iterator[str]:
    """Yield the packages of an extra: pipx injects packages, not extras."""
    import importlib.metadata

    try:
        declared = importlib.metadata.requires("stjepa") or []
    except importlib.metadata.PackageNotFoundError:
        declared = []
    for line in declared:
        requirement, _, marker = line.partition(";")
        if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", marker):
            yield requirement.strip()
