"""The files of a model: in a local folder, in the local Hugging Face cache, or still on the Hub."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stjepa_cli.core import hub
from stjepa_cli.core.errors import TeacherError
from stjepa_cli.core.progress import SILENT, Progress

OTHERS = "Name a local folder of a model, or `hog`, which needs no weights."
LOCAL = "local"

_SMALL_FILES = ("*.json", "README.md")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model on this disk.

    Attributes:
        name: Name that was asked for.
        folder: Folder that holds them.
        revision: Commit of the Hub snapshot, or `local`.
    """

    name: str
    folder: Path
    revision: str

    def config(self) -> dict[str, Any]:
        """Return the content of `config.json`.

        Raises:
            TeacherError: It is missing or not a JSON object.
        """
        path = self.folder / "config.json"
        if not path.is_file():
            raise TeacherError(f"{self.folder} holds no model", got="no config.json", expected="a saved model", fix=OTHERS)
        return read_json(path)

    def weights(self) -> tuple[Path, ...]:
        """Return the files that hold the weights, sorted by name; several if there is an index.

        Raises:
            TeacherError: There are none, one that the index names is missing, or one is empty or a Git LFS pointer.
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
        """Tell if the weights are on this disk."""
        try:
            return bool(self.weights())
        except TeacherError:
            return False

    def weights_digest(self) -> str:
        """Return the sha256 of the weight files in name order, 64 hex digits; for a single file as `sha256sum` prints it."""
        state = hashlib.sha256()
        for path in self.weights():
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    state.update(block)
        return state.hexdigest()

    def licence(self) -> str:
        """Return the licence in the front matter of the model card, or `unknown`."""
        card = self.folder / "README.md"
        front = re.match(r"---\s*\n(.*?)\n---", card.read_text(errors="replace"), re.DOTALL) if card.is_file() else None
        found = re.search(r"^license:[ \t]*['\"]?([^'\"\s#]+)", front[1], re.MULTILINE) if front else None
        return found[1] if found else "unknown"

    def description(self) -> str:
        """Describe where the weights of a local model are, as a clause."""
        return f"a local folder with {len(self.weights())} weight file(s)"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        TeacherError: The file holds none.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TeacherError(f"{path} cannot be read", got=error, expected="a JSON object") from error
    if not isinstance(value, dict):
        raise TeacherError(f"{path} is of the wrong kind", got=type(value).__name__, expected="a JSON object")
    return value


def local(name: str, revision: str | None) -> ModelFiles | None:
    """Find the files of a folder or, in the local Hugging Face cache, of an id; None for an id that is not there.

    Raises:
        TeacherError: The name is neither a folder nor an id.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if revision is not None:
            raise TeacherError("only a Hugging Face id has revisions", got=f"the folder {name} with revision {revision}")
        return ModelFiles(name, folder, LOCAL)
    if name and folder.exists():
        raise TeacherError("a teacher is a folder, not a file", got=name, fix=f"Name the folder: {folder.parent}")
    if not hub.is_id(name):
        raise TeacherError(
            "there is no such teacher", got=repr(name), expected="a folder that exists, a Hugging Face id, a checkpoint, or hog"
        )
    config = hub.cached(name, "config.json", revision)
    return ModelFiles(name, config.parent, config.parent.name) if config is not None else None


def fetch(name: str, revision: str | None, progress: Progress = SILENT) -> ModelFiles:
    """Download a model's configuration, card and weights into the local Hugging Face cache.

    Raises:
        TeacherError: The download failed.
        StjepaError: The disk is full.
    """
    progress.note(f"fetching {name} from the Hugging Face Hub into {hub.cache_folder()}")
    try:
        for pattern in ("*.safetensors*", "pytorch_model*.bin*"):
            folder = hub.download(name, revision, (*_SMALL_FILES, pattern))
            files = ModelFiles(name, folder, folder.name)
            if files.has_weights():
                return files
    except hub.HubError as error:
        raise _not_fetched(name, error.what) from error
    raise _not_fetched(name, "the Hub has no PyTorch weights of it")


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
