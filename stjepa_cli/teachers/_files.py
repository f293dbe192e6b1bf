"""Where a model's files lie: a local folder, the local Hugging Face cache, or not here yet. The one user of huggingface_hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stjepa_cli.errors import StjepaError, TeacherError, storage_errors
from stjepa_cli.progress import SILENT, Progress

OTHERS = "Name a local folder of a model, or `hog`, which needs no weights."
LOCAL = "local"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SMALL_FILES = ("*.json", "README.md")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class ModelFiles:
    """A model's files on this disk.

    Attributes:
        name: what was asked for.
        folder: where they lie.
        revision: commit of the hub snapshot, or `local`.
    """

    name: str
    folder: Path
    revision: str

    def config(self) -> dict[str, Any]:
        """The content of `config.json`.

        Raises:
            TeacherError: it is missing or no JSON object.
        """
        path = self.folder / "config.json"
        if not path.is_file():
            raise TeacherError(f"{self.folder} holds no model", got="no config.json", expected="a saved model", fix=OTHERS)
        return read_json(path)

    def weights(self) -> tuple[Path, ...]:
        """The files that hold the weights, sorted by name; several if an index says so.

        Raises:
            TeacherError: there are none, one that an index names is missing, or one is empty or a Git LFS pointer.
        """
        first = next((path for name in _WEIGHTS if (path := self.folder / name).is_file()), None)
        if first is None:
            raise TeacherError(f"{self.folder} holds no weights", expected="model.safetensors or pytorch_model.bin", fix=OTHERS)
        names = sorted(set(read_json(first).get("weight_map", {}).values())) if first.suffix == ".json" else [first.name]
        files = tuple(self.folder / name for name in names)
        for file in files:
            _check_weights(file)
        return files

    def has_weights(self) -> bool:
        """Whether `weights` finds them."""
        try:
            return bool(self.weights())
        except TeacherError:
            return False

    def weights_digest(self) -> str:
        """sha256 over the weight files in name order, 64 hex digits; of a single file what `sha256sum` says."""
        state = hashlib.sha256()
        for path in self.weights():
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    state.update(block)
        return state.hexdigest()

    def licence(self) -> str:
        """The licence in the front matter of the model card, or `unknown`."""
        card = self.folder / "README.md"
        front = re.match(r"---\s*\n(.*?)\n---", card.read_text(errors="replace"), re.DOTALL) if card.is_file() else None
        found = re.search(r"^license:[ \t]*['\"]?([^'\"\s#]+)", front[1], re.MULTILINE) if front else None
        return found[1] if found else "unknown"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        TeacherError: it is none.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TeacherError(f"{path} cannot be read", got=error, expected="a JSON object") from error
    if not isinstance(value, dict):
        raise TeacherError(f"{path} is of the wrong kind", got=type(value).__name__, expected="a JSON object")
    return value


def local(name: str, revision: str | None) -> ModelFiles | None:
    """What lies on this disk under a folder's name or, in the local Hugging Face cache, under an id; None for an id not there.

    Raises:
        TeacherError: neither a folder nor an id.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if revision is not None:
            raise TeacherError("only a Hugging Face id has revisions", got=f"the folder {name} with revision {revision}")
        return ModelFiles(name, folder, LOCAL)
    if name and folder.exists():
        raise TeacherError("a teacher is a folder, not a file", got=name, fix=f"Name the folder: {folder.parent}")
    if not _HUB_ID.fullmatch(name):
        raise TeacherError("there is no such teacher", got=repr(name), expected="a folder that exists, a Hugging Face id, or hog")
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return ModelFiles(name, Path(config).parent, Path(config).parent.name) if isinstance(config, str) else None


def fetch(name: str, revision: str | None, progress: Progress = SILENT) -> ModelFiles:
    """Bring a model's configuration, card and weights into the local Hugging Face cache.

    Raises:
        TeacherError: that failed.
        StjepaError: the disk is full.
    """
    from huggingface_hub import constants, snapshot_download

    progress.note(f"fetching {name} from the Hugging Face Hub into {constants.HF_HUB_CACHE}")
    try:
        for pattern in ("*.safetensors*", "pytorch_model*.bin*"):
            with _quiet(), storage_errors(constants.HF_HUB_CACHE):
                folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*_SMALL_FILES, pattern]))
            files = ModelFiles(name, folder, folder.name)
            if files.has_weights():
                return files
    except StjepaError:
        raise
    except Exception as error:  # the client lets its HTTP library's errors through, another one in each version
        raise _not_fetched(name, _why(error)) from error
    raise _not_fetched(name, "the hub gives no PyTorch weights for it")


def _check_weights(path: Path) -> None:
    if not path.is_file():
        raise TeacherError(f"weights are missing: {path}", fix=OTHERS)
    with path.open("rb") as file:
        head = file.read(40)
    if not head:
        raise TeacherError(f"weights are empty: {path}", fix=OTHERS)
    if head.startswith(b"version https://git-lfs"):
        raise TeacherError(f"{path} is a Git LFS pointer, not the weights", fix=f"Type `git -C {path.parent} lfs pull`.")


def _not_fetched(name: str, why: str) -> TeacherError:
    return TeacherError(
        f"the weights of {name} are neither in a folder of that name nor in the local Hugging Face cache, "
        f"and cannot be fetched ({why}): name a local folder of a model, or `hog`, which needs no weights"
    )


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
