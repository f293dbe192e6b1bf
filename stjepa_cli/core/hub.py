"""What of a Hugging Face repository is on this disk, and fetching it. The one user of huggingface_hub, imported when asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stjepa_cli.core.errors import StjepaError, storage_errors

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class HubError(StjepaError):
    """Why something cannot be fetched, as a clause; whoever asked says what it was for."""


def is_id(name: str) -> bool:
    """Whether a name has the form of a Hugging Face id, `owner/name`."""
    return _ID.fullmatch(name) is not None


def cached(name: str, file: str, revision: str | None) -> Path | None:
    """A file of an id in the local cache; its folder is the snapshot, named after its commit. None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def cache_folder() -> str:
    """Where fetched files go."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Bring the files of an id that match `patterns` into the local cache; the folder of the snapshot.

    Raises:
        HubError: that failed.
        StjepaError: the disk is full.
    """
    from huggingface_hub import snapshot_download

    try:
        with _quiet(), storage_errors(cache_folder()):
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except StjepaError:
        raise
    except Exception as error:  # the client lets its HTTP library's errors through, another one in each version
        raise HubError(_why(error)) from error


def _why(error: Exception) -> str:
    """A client's error as a short clause."""
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, errors.GatedRepoError):
        return "accept its licence on its page, then type `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such model, or not for you"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    return f"the hub cannot be reached, {type(error.__cause__ or error).__name__}"


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of the client while the block runs: the caller's `Progress` is told instead."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    level, silent = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not silent:
            enable_progress_bars()
