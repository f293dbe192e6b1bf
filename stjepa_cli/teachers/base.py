"""What a teacher is, and how a name becomes one: a built-in, a local folder, or a Hugging Face id.

A folder and an id are run by the plug-in whose `model_types` holds the `model_type` of their `config.json`, so another
family of models is one more file here.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from stjepa_cli import plugins
from stjepa_cli.errors import StjepaError, TeacherError, storage_errors
from stjepa_cli.nouns import ClipSpec, TeacherCard
from stjepa_cli.progress import SILENT, Progress

OTHERS = "Name a local folder of a model, or `hog`, which needs no weights."

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SMALL_FILES = ("*.json", "README.md")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_GEOMETRY = ("num_frames", "size_px", "tubelet", "patch_px")


@dataclass(frozen=True)
class Outline:
    """What a model's configuration says, without its weights.

    Attributes:
        clip: the clips that it takes.
        dim: E, width of a token.
        licence: where the plug-in knows it, else empty.
    """

    clip: ClipSpec
    dim: int
    licence: str = ""


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
            raise TeacherError(f"{self.folder} holds no model", got="no config.json", expected="a folder that save_pretrained wrote", fix=OTHERS)
        return read_json(path)

    def weights(self) -> tuple[Path, ...]:
        """The files that hold the weights, sorted by name; several if an index says so.

        Raises:
            TeacherError: there are none, one that the index names is missing, or one is a Git LFS pointer.
        """
        first = next((path for name in _WEIGHTS if (path := self.folder / name).is_file()), None)
        if first is None:
            raise TeacherError(f"{self.folder} holds no weights", expected=" or ".join(_WEIGHTS[::2]), fix=OTHERS)
        names = [first.name] if first.suffix != ".json" else sorted(set(read_json(first).get("weight_map", {}).values()))
        files = tuple(self.folder / name for name in names)
        for file in files:
            _check_weight_file(file)
        return files

    def licence(self) -> str:
        """The licence in the front matter of the model card, or `unknown`."""
        card = self.folder / "README.md"
        front = re.match(r"---\s*\n(.*?)\n---", card.read_text(errors="replace"), re.DOTALL) if card.is_file() else None
        found = re.search(r"^license:[ \t]*['\"]?([^'\"\s#]+)", front[1], re.MULTILINE) if front else None
        return found[1] if found else "unknown"


class Teacher(ABC):
    """A frozen model that turns clips into tokens.

    A module of this folder exposes its class as `plugin`.

    Attributes:
        card: which model it is.
        device: where it computes.
    """

    built_in: ClassVar[bool] = False
    """It needs no files, is opened by its module's name and takes clips of any geometry."""

    model_types: ClassVar[tuple[str, ...]] = ()
    """The `model_type`s of Hugging Face configurations that it runs."""

    known: ClassVar[Mapping[str, Outline]] = {}
    """Hub ids of which something is known while no file of them is at hand, above all the licence."""

    def __init__(self, card: TeacherCard, device: torch.device) -> None:
        self.card, self.device = card, device

    @classmethod
    @abstractmethod
    def outline(cls, config: Mapping[str, Any], clip: ClipSpec | None) -> Outline:
        """Geometry and width from the content of a `config.json`; a built-in gets an empty one.

        Args:
            config: the model's configuration.
            clip: what was asked for, None for the teacher's own; only a built-in has to heed it.

        Raises:
            TeacherError: a configuration that this plug-in cannot run.
        """

    @classmethod
    @abstractmethod
    def load(cls, files: ModelFiles | None, outline: Outline, device: torch.device) -> Self:
        """Load the weights of `files` (None for a built-in) onto `device`.

        Raises:
            TeacherError: weights that are missing, damaged or incomplete.
        """

    @abstractmethod
    def _encode(self, clips: Tensor) -> Tensor:
        """The model itself, on checked clips that lie on its device, under inference mode."""

    def encode(self, clips: Tensor) -> Tensor:
        """Tokens of clips, the same for the same clips on the same device.

        Args:
            clips: uint8 (B, T, 3, S, S), RGB, on any device.

        Returns:
            float32 (B, N, E) on the teacher's device, tokens in (t, h, w) order, without prefix tokens.

        Raises:
            TeacherError: clips of another geometry or type.
        """
        spec = self.card.clip
        expected = (spec.num_frames, 3, spec.size_px, spec.size_px)
        if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[1:] != expected:
            raise TeacherError(
                f"{self.card.name} cannot take these clips",
                got=f"{clips.dtype} {tuple(clips.shape)}",
                expected=f"torch.uint8 {('B', *expected)}".replace("'", ""),
            )
        with torch.inference_mode():
            return self._encode(clips.to(self.device)).float()


@dataclass(frozen=True)
class TeacherSurvey:
    """What can be said of a teacher without loading its weights and without the network.

    Attributes:
        name: what was asked for.
        kind: the plug-in that runs it; `unknown` where no configuration is at hand.
        at_hand: whether its weights, if it needs any, are on this disk.
        detail: what was found, as a clause.
        licence: of the weights, or `unknown`.
        dim: E, or None where it is not known.
        clip: the clips that it takes, or None where that is not known.
    """

    name: str
    kind: str
    at_hand: bool
    detail: str
    licence: str
    dim: int | None = None
    clip: ClipSpec | None = None


def open_teacher(
    name: str,
    *,
    clip: ClipSpec | None = None,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - immutable
    revision: str | None = None,
    progress: Progress = SILENT,
) -> Teacher:
    """Load a teacher; a hub id that is not in the local Hugging Face cache is fetched.

    Args:
        name: a built-in (`hog`), a local folder (`./hog` for one of a built-in's name), or a Hugging Face id.
        clip: how clips are cut: free for a built-in; for a model its sampling and stride only.
        device: where it computes.
        revision: branch, tag or commit of a hub id.
        progress: is told before something is fetched.

    Raises:
        TeacherError: no such teacher, files that are missing, damaged or cannot be fetched, a kind of model that no plug-in
            runs, or a geometry that is not the model's.
    """
    built_in = _built_in(name)
    if built_in is not None:
        _refuse_revision(name, revision)
        return built_in.load(None, built_in.outline({}, clip), device)
    files = _folder_files(name, revision) or _cached(name, revision) or _fetch(name, revision, progress)
    cls, outline = _outline(files, clip)
    if not _has_weights(files) and files.revision != "local":
        files = _fetch(name, revision, progress)
    return cls.load(files, outline, device)


def survey(name: str, *, clip: ClipSpec | None = None, revision: str | None = None) -> TeacherSurvey:
    """What is known of a teacher, from this disk alone: nothing is loaded or fetched.

    Raises:
        TeacherError: no such teacher, a folder without weights, a configuration that no plug-in runs, or a geometry that is
            not the model's.
    """
    built_in = _built_in(name)
    if built_in is not None:
        _refuse_revision(name, revision)
        outline = built_in.outline({}, clip)
        return TeacherSurvey(name, name, True, "built in, needs no weights", outline.licence, outline.dim, outline.clip)
    files = _folder_files(name, revision) or _cached(name, revision)
    if files is None:
        return _survey_absent(name)
    cls, outline = _outline(files, clip)
    if files.revision == "local":
        files.weights()
    at_hand = _has_weights(files)
    where = "a local folder" if files.revision == "local" else f"revision {files.revision[:12]} in the local Hugging Face cache"
    detail = where if at_hand else f"its weights are not in the local Hugging Face cache, only its configuration, {where}"
    return TeacherSurvey(name, kind_of(cls), at_hand, detail, outline.licence or files.licence(), outline.dim, outline.clip)


def kind_of(cls: type[Teacher]) -> str:
    """The name of the plug-in that a teacher's class is."""
    return cls.__module__.rpartition(".")[2]


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


def _plugins() -> list[type[Teacher]]:
    return [plugins.load("teachers", name) for name in plugins.names("teachers")]


def _built_in(name: str) -> type[Teacher] | None:
    return next((cls for cls in _plugins() if cls.built_in and kind_of(cls) == name), None)


def _outline(files: ModelFiles, clip: ClipSpec | None) -> tuple[type[Teacher], Outline]:
    """The plug-in that runs a model, and its geometry with the sampling that was asked for."""
    config = files.config()
    found = config.get("model_type")
    runs = {model_type: cls for cls in _plugins() for model_type in cls.model_types}
    if found not in runs:
        raise TeacherError(
            f"no plug-in runs the model {files.name}", got=f"model_type {found!r}", expected="one of " + ", ".join(sorted(runs)), fix=OTHERS
        )
    cls = runs[found]
    outline = cls.outline(config, clip)
    if clip is not None:
        for field in _GEOMETRY:
            if getattr(clip, field) != getattr(outline.clip, field):
                raise TeacherError(
                    f"{files.name} takes clips of one geometry only: {field} differs",
                    got=getattr(clip, field),
                    expected=getattr(outline.clip, field),
                    fix="Leave the geometry to the model, or use `hog`, which takes any.",
                )
    licence = outline.licence or (cls.known[files.name].licence if files.name in cls.known else "")
    return cls, Outline(clip or outline.clip, outline.dim, licence)


def _folder_files(name: str, revision: str | None) -> ModelFiles | None:
    """The folder that `name` is, None if it can only be a hub id.

    Raises:
        TeacherError: neither a folder nor an id.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        _refuse_revision(name, revision)
        return ModelFiles(name, folder, "local")
    if folder.exists():
        raise TeacherError("a teacher is a folder, not a file", got=name, fix=f"Name the folder: {folder.parent}")
    if _HUB_ID.fullmatch(name):
        return None
    built_ins = ", ".join(kind_of(cls) for cls in _plugins() if cls.built_in)
    raise TeacherError("there is no such teacher", got=repr(name), expected=f"a folder that exists, a Hugging Face id, or {built_ins}")


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise TeacherError("only a Hugging Face id has revisions", got=f"{name} with revision {revision}")


def _cached(name: str, revision: str | None) -> ModelFiles | None:
    """What the local Hugging Face cache holds of a hub id."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    return ModelFiles(name, Path(config).parent, Path(config).parent.name)


def _fetch(name: str, revision: str | None, progress: Progress) -> ModelFiles:
    """Bring a model's configuration, card and weights into the local Hugging Face cache.

    Raises:
        TeacherError: that failed.
        StjepaError: the disk is full.
    """
    from huggingface_hub import constants, snapshot_download

    progress.note(f"fetching {name} from the Hugging Face Hub into {constants.HF_HUB_CACHE}")
    try:
        for patterns in (("*.safetensors",), ("pytorch_model*.bin",)):
            with _quiet_hub(), storage_errors(constants.HF_HUB_CACHE):
                folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*_SMALL_FILES, *patterns]))
            files = ModelFiles(name, folder, folder.name)
            if _has_weights(files):
                return files
    except StjepaError:
        raise
    except Exception as error:  # the client lets its HTTP library's errors through, another one in each version
        raise _not_fetched(name, _why(error)) from error
    raise _not_fetched(name, "it has no PyTorch weights")


def _not_fetched(name: str, why: str) -> TeacherError:
    return TeacherError(f"the weights of {name} are neither a local folder nor in the local Hugging Face cache, and cannot be fetched ({why})", fix=OTHERS)


def _why(error: Exception) -> str:
    """A client's error as a short clause."""
    from huggingface_hub import errors

    if errors.OfflineModeIsEnabled in (type(error), type(error.__cause__)):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, errors.GatedRepoError):
        return "its licence must be accepted on its page, and `hf auth login` typed"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such model, or not for you"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    return f"the hub cannot be reached: {type(error.__cause__ or error).__name__}"
