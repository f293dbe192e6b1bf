"""Look up and download files of Hugging Face repositories; the one module that uses huggingface_hub, imported when needed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stjepa_cli.core.errors import StjepaError, storage_errors

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class HubError(StjepaError):
    """The reason why a download failed, as a clause; the caller says what it was for."""


def is_id(name: str) -> bool:
    """Tell if a name has the form of a Hugging Face id, `owner/name`."""
    return _ID.fullmatch(name) is not None


def cached(name: str, file: str, revision: str | None) -> Path | None:
    """Return a file of an id in the local cache, in a folder that is named after the commit; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def cache_folder() -> str:
    """Return the folder for downloads."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download the files of an id that match `patterns` into the local cache, and return the folder of the snapshot.

    Raises:
        HubError: The download failed.
        StjepaError: The disk is full.
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
    """Turn an error of the client into a short clause."""
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, errors.GatedRepoError):
        return "accept its licence on its page, then type `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the Hub has no such model, or you have no access to it"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    return f"the Hub cannot be reached, {type(error.__cause__ or error).__name__}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the client's progress bars while the block runs: the caller reports progress itself."""
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
