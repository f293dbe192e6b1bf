"""What a teacher is, and how a name becomes one: a built-in, a local folder, or a Hugging Face id.

A folder and an id are run by the plug-in whose `model_types` holds the `model_type` of their `config.json`, so another
family of models is one more file here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import TeacherError
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.teachers._files import LOCAL, OTHERS, ModelFiles, fetch, local, read_json

__all__ = ["ModelFiles", "Outline", "Teacher", "TeacherSurvey", "kind_of", "open_teacher", "read_json", "survey"]

CPU = torch.device("cpu")

_GEOMETRY = ("num_frames", "size_px", "tubelet", "patch_px")


@dataclass(frozen=True)
class Outline:
    """What is known of a teacher without its weights.

    Attributes:
        clip: the clips that it takes.
        dim: E, width of a token.
        licence: as the plug-in knows it, empty to go by the model's card.
    """

    clip: ClipSpec
    dim: int
    licence: str = ""


class Teacher(ABC):
    """A frozen model that turns clips into tokens; a module of this folder exposes its class as `plugin`.

    Attributes:
        card: which model it is.
        device: where it computes.
    """

    built_in: ClassVar[bool] = False
    """It needs no files, is opened by its module's name, and takes clips of any geometry."""

    model_types: ClassVar[tuple[str, ...]] = ()
    """The `model_type`s of Hugging Face configurations that it runs."""

    flexible: ClassVar[tuple[str, ...]] = ()
    """The fields of `ClipSpec` in which clips may differ from the model's own geometry."""

    known: ClassVar[Mapping[str, Outline]] = {}
    """Hub ids of which something is known even while no file of theirs is at hand."""

    def __init__(self, card: TeacherCard, device: torch.device) -> None:
        self.card, self.device = card, device

    @classmethod
    @abstractmethod
    def outline(cls, config: Mapping[str, Any], clip: ClipSpec | None) -> Outline:
        """Geometry and width, from the content of a `config.json` or, for a built-in, from what is asked for.

        Args:
            config: the model's configuration, empty for a built-in.
            clip: what a built-in is asked for; None for its own.

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

    def encode(self, clips: Tensor) -> Tensor:
        """Tokens of clips, the same for the same clips on the same device.

        Args:
            clips: uint8 (B, T, 3, S, S), RGB, on any device.

        Returns:
            float32 (B, N, E) on the teacher's device, tokens in (t, h, w) order, without prefix tokens.

        Raises:
            TeacherError: clips of another type or geometry.
        """
        spec = self.card.clip
        shape = (spec.num_frames, 3, spec.size_px, spec.size_px)
        if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[1:] != shape:
            raise TeacherError(
                f"{self.card.name} cannot take these clips",
                got=f"{clips.dtype} {tuple(clips.shape)}",
                expected=f"torch.uint8 (B, {', '.join(map(str, shape))})",
            )
        with torch.inference_mode():
            return self._encode(clips.to(self.device)).float()

    @abstractmethod
    def _encode(self, clips: Tensor) -> Tensor:
        """The model itself, on checked clips that lie on its device, under inference mode."""


@dataclass(frozen=True)
class TeacherSurvey:
    """What can be said of a teacher without loading its weights and without the network.

    Attributes:
        name: what was asked for.
        kind: the plug-in that runs it; `unknown` while no configuration is at hand.
        at_hand: whether its weights, if it needs any, are on this disk.
        detail: what was found, as a clause.
        licence: of the weights, or `unknown`.
        dim: E, or None while it is not known.
        clip: the clips that it takes, or None while that is not known.
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
    device: torch.device = CPU,
    revision: str | None = None,
    progress: Progress = SILENT,
) -> Teacher:
    """Load a teacher; a hub id that is not in the local Hugging Face cache is fetched.

    Args:
        name: a built-in (`hog`), a local folder (`./hog` for one of a built-in's name), or a Hugging Face id.
        clip: how clips are cut: free for a built-in, for a model its sampling, its stride and what is `flexible` in it.
        device: where it computes.
        revision: branch, tag or commit of a hub id.
        progress: is told before something is fetched.

    Raises:
        TeacherError: no such teacher; files that are missing, damaged or cannot be fetched; a kind of model that no plug-in
            runs; a geometry that is not the model's.
    """
    built_in = _built_in(name, revision)
    if built_in is not None:
        return built_in.load(None, built_in.outline({}, clip), device)
    files = local(name, revision) or fetch(name, revision, progress)
    cls, outline = _outline(files, clip)
    if files.revision != LOCAL and not files.has_weights():
        files = fetch(name, files.revision, progress)
    return cls.load(files, outline, device)


def survey(name: str, *, clip: ClipSpec | None = None, revision: str | None = None) -> TeacherSurvey:
    """What is known of a teacher from this disk alone: nothing is loaded or fetched.

    Raises:
        TeacherError: no such teacher; a folder without weights; a configuration that no plug-in runs; a geometry that is not
            the model's.
    """
    built_in = _built_in(name, revision)
    if built_in is not None:
        outline = built_in.outline({}, clip)
        return TeacherSurvey(name, name, True, "built in, needs no weights", outline.licence, outline.dim, outline.clip)
    files = local(name, revision)
    if files is None:
        return _survey_absent(name, clip)
    cls, outline = _outline(files, clip)
    if files.revision == LOCAL:
        detail = f"a local folder with {len(files.weights())} weight file(s)"
        return TeacherSurvey(name, kind_of(cls), True, detail, outline.licence, outline.dim, outline.clip)
    at_hand = files.has_weights()
    detail = f"revision {files.revision[:12]} is in the local Hugging Face cache" + ("" if at_hand else ", but not its weights")
    return TeacherSurvey(name, kind_of(cls), at_hand, detail, outline.licence, outline.dim, outline.clip)


def kind_of(cls: type[Teacher]) -> str:
    """The name of the plug-in that a teacher's class is."""
    return cls.__module__.rpartition(".")[2]


def _plugins() -> list[type[Teacher]]:
    return [plugins.load("teachers", name) for name in plugins.names("teachers")]


def _built_in(name: str, revision: str | None) -> type[Teacher] | None:
    found = next((cls for cls in _plugins() if cls.built_in and kind_of(cls) == name), None)
    if found is not None and revision is not None:
        raise TeacherError("only a Hugging Face id has revisions", got=f"{name} with revision {revision}")
    return found


def _outline(files: ModelFiles, clip: ClipSpec | None) -> tuple[type[Teacher], Outline]:
    """The plug-in that runs a model, and its outline with the licence filled in and the sampling that was asked for."""
    config = files.config()
    runs = {model_type: cls for cls in _plugins() for model_type in cls.model_types}
    cls = runs.get(str(config.get("model_type")))
    if cls is None:
        got, expected = f"model_type {config.get('model_type')!r}", "one of " + ", ".join(sorted(runs))
        raise TeacherError(f"no teacher plug-in runs {files.name}", got=got, expected=expected, fix=OTHERS)
    outline = cls.outline(config, None)
    known = cls.known[files.name].licence if files.name in cls.known else files.licence()
    return cls, Outline(_cut(cls, files.name, outline.clip, clip), outline.dim, outline.licence or known)


def _cut(cls: type[Teacher], name: str, own: ClipSpec, asked: ClipSpec | None) -> ClipSpec:
    """The clips that are asked for, or the model's own.

    Raises:
        TeacherError: a geometry was asked for that the model does not take.
    """
    if asked is None:
        return own
    for field in _GEOMETRY:
        if field not in cls.flexible and getattr(asked, field) != getattr(own, field):
            raise TeacherError(
                f"{name} takes clips of one geometry and {field} is another",
                got=getattr(asked, field),
                expected=getattr(own, field),
                fix="Leave the geometry to the model, or use `hog`, which takes any.",
            )
    return asked


def _survey_absent(name: str, clip: ClipSpec | None) -> TeacherSurvey:
    """An id of which nothing is in the cache."""
    detail = "not in the local Hugging Face cache"
    for cls in _plugins():
        if name in cls.known:
            outline = cls.known[name]
            return TeacherSurvey(name, kind_of(cls), False, detail, outline.licence, outline.dim, _cut(cls, name, outline.clip, clip))
    return TeacherSurvey(name, "unknown", False, detail, "unknown")
