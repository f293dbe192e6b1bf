"""Look up, download and upload files of Hugging Face repositories; the one module that uses huggingface_hub, imported when needed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stjepa_cli.core.errors import ConfigError, NotReadyError, StjepaError, how_to_install, storage_errors

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class HubError(StjepaError):
    """The reason why a download or an upload failed, as a clause; the caller says what it was for."""


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


def check_upload(name: str) -> None:
    """Make sure that an upload to an id can be tried: the id has the right form, the Hub may be reached, and there is a login.

    Raises:
        ConfigError: The name is no id.
        NotReadyError: huggingface_hub is not installed, is set to work offline, or knows no token.
    """
    if not is_id(name):
        raise ConfigError("a repository of the Hub is named by its owner and its name", got=repr(name), expected="OWNER/NAME")
    try:
        from huggingface_hub import constants, get_token
    except ImportError as error:
        raise NotReadyError("pushing needs huggingface_hub", fix=how_to_install("huggingface_hub")) from error
    if constants.HF_HUB_OFFLINE:
        raise NotReadyError(f"cannot push to {name}: HF_HUB_OFFLINE is set", fix="Unset it.")
    if get_token() is None:
        raise NotReadyError(f"cannot push to {name}: nobody is logged in to the Hub", fix="Type `hf auth login`, or set HF_TOKEN.")


def upload(folder: Path, name: str, message: str) -> str:
    """Upload the files of a folder as one commit to an id, which is created as a private model if there is none.

    Args:
        folder: Folder to upload.
        name: Id of the model.
        message: Message of the commit.

    Returns:
        The address of the model.

    Raises:
        HubError: The upload failed.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        with _quiet():
            address = api.create_repo(name, private=True, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except Exception as error:  # the client lets its HTTP library's errors through, another one in each version
        raise HubError(_why_not_written(error)) from error
    return str(address)


def _why_not_written(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the Hub does not accept the token: type `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return "the token may not write there: it needs the right to write, and you that of the owner"
    return f"the Hub refuses with status {status}" if status is not None else f"the Hub cannot be reached, {type(error).__name__}"


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
