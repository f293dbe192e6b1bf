"""The errors that a user can cause, each one sentence with the next thing to type."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class StjepaError(Exception):
    """Something that the user can put right.

    Args:
        what: what went wrong, without a full stop.
        got: what was found, if there is something to show.
        expected: what would have been right.
        fix: the next step, best of all a command.
    """

    def __init__(self, what: str, *, got: object = None, expected: object = None, fix: str | None = None) -> None:
        self.what, self.got, self.expected, self.fix = what, got, expected, fix
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """All of it on one line."""
        text = self.what
        found = [f"got {self.got}" if self.got is not None else "", f"expected {self.expected}" if self.expected is not None else ""]
        if any(found):
            text += ": " + ", ".join(part for part in found if part)
        if self.fix:
            text += f". {self.fix}"
        return " ".join(text.split())


class ConfigError(StjepaError):
    """A setting that does not exist or has a wrong value."""


class DatasetError(StjepaError):
    """A data set is not where it was looked for, or one of its lists cannot be read."""


class VideoError(StjepaError):
    """One video file that cannot be used; a build records it and goes on.

    Args:
        path: the file, a path or a URL; kept as it is.
        reason: what is wrong with it, as a clause.
    """

    def __init__(self, path: object, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}")

    def __reduce__(self) -> tuple[type[VideoError], tuple[object, str]]:
        """Between processes too."""
        return VideoError, (self.path, self.reason)


class CacheError(StjepaError):
    """A latent cache is missing, damaged, or belongs to something else."""


class CheckpointError(StjepaError):
    """A checkpoint is missing, damaged, or of another shape."""


class TeacherError(StjepaError):
    """A teacher cannot be loaded or does not fit what is asked of it."""


class MaskError(StjepaError):
    """A mask that a model cannot take."""


class NotReadyError(StjepaError):
    """Something that must be installed first: FFmpeg, an extra."""


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
}


_MAKE_ROOM = "Free some space or choose another folder, then run the same command again."


@contextmanager
def storage_errors(path: object, *, fix: str = _MAKE_ROOM) -> Iterator[None]:
    """Turn what a file system says about `path` (full, read-only, forbidden) into one `StjepaError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        raise StjepaError(f"cannot write {path}: {_STORAGE[error.errno]}", fix=fix) from error
