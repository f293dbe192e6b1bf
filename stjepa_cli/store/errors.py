"""The errors about a cache, and the next step for each."""

from __future__ import annotations

from stjepa_cli.core.errors import CacheError


class ForeignManifestError(CacheError):
    """A manifest that is intact but belongs to another shard or another cache."""


class UnreadableError(CacheError):
    """A file that exists and cannot be read (permissions, a failing disk, a lost server), so nothing is known of its content."""


def unreadable(what: object, error: OSError) -> UnreadableError:
    """Return the error about a file or folder that the system does not let us read; it never advises to remove anything."""
    reason = error.strerror or str(error)
    return UnreadableError(f"{what} cannot be read", got=reason, fix="Check its permissions, its disk or its server; nothing was changed.")


def rebuild(path: object) -> str:
    """Return the advice for a cache that cannot be repaired."""
    return f"Build it again: `stjepa cache build --cache {path} --overwrite`."


def check_closely(path: object) -> str:
    """Return the advice for a cache that may be damaged."""
    return f"Type `stjepa cache verify --level full --cache {path}`."
