"""The teacher interface, and how a name becomes a teacher: a built-in, something on this disk, or a Hugging Face id.

Files are run by the plug-in whose `model_types` holds the `model_type` of their `config.json`, so another family of models
is one more file in this folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import TeacherError
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.teachers._choices import clips_taken, layer_numbers, sampled_clips
from stjepa_cli.teachers._files import LOCAL, OTHERS, ModelFiles, fetch, local, read_json

__all__ = ["ModelFiles", "Outline", "Teacher", "TeacherSurvey", "kind_of", "open_teacher", "read_json", "survey"]

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Outline:
    """The properties of a teacher that are known without its weights.

    Attributes:
        clip: Clips that it takes.
        dim: E, width of a token.
        licence: Licence as the plug-in knows it, empty to go by the model's card.
        num_layers: Number of blocks whose tokens can be asked for.
    """

    clip: ClipSpec
    dim: int
    licence: str = ""
    num_layers: int = 1


class Teacher(ABC):
    """A frozen model that turns clips into tokens; a module of this folder exposes its class as `plugin`.

    Attributes:
        card: Identity of the model and shape of its tokens.
        device: Where it computes.
    """

    built_in: ClassVar[bool] = False
    """It needs no files, is opened by its module's name, and takes clips of any geometry."""

    model_types: ClassVar[tuple[str, ...]] = ()
    """The `model_type`s in `config.json` that it runs."""

    flexible: ClassVar[tuple[str, ...]] = ()
    """The fields of `ClipSpec` in which clips may differ from the model's own geometry."""

    known: ClassVar[Mapping[str, Outline]] = {}
    """Outlines of Hub ids, for use while none of their files is on this disk."""

    def __init__(self, card: TeacherCard, device: torch.device) -> None:
        self.card, self.device = card, device

    @classmethod
    @abstractmethod
    def outline(cls, config: Mapping[str, Any], clip: ClipSpec | None) -> Outline:
        """Return geometry, width and depth, from `config.json` or, for a built-in, from the clips asked for.

        Args:
            config: Content of the model's `config.json`, empty for a built-in.
            clip: Clips that a built-in is asked to take; None for its own.

        Raises:
            TeacherError: This plug-in cannot run such a configuration.
        """

    @classmethod
    def saw_labels(cls, config: Mapping[str, Any]) -> str:
        """Return `yes`, `no` or `unknown`: whether labels were used to train the weights.

        Args:
            config: Content of the model's `config.json`, empty for a built-in.
        """
        return "unknown"

    @classmethod
    def find(cls, name: str) -> ModelFiles | None:
        """Find files of a form of this plug-in's own, such as a checkpoint; None for all other names.

        Raises:
            StjepaError: The files are of that form and damaged.
        """
        return None

    @classmethod
    @abstractmethod
    def load(cls, files: ModelFiles | None, outline: Outline, device: torch.device) -> Self:
        """Load the weights of `files` (None for a built-in) onto `device`.

        Raises:
            TeacherError: Weights are missing, damaged or incomplete.
        """

    @property
    def num_layers(self) -> int:
        """Return the number of blocks whose tokens can be asked for."""
        return 1

    def encode(self, clips: Tensor, layers: Sequence[int] | None = None) -> Tensor:
        """Compute the tokens of clips, the same for the same clips on the same device.

        Several layers stand side by side along the channels, each normalised on its own (LayerNorm without affine over E).

        Args:
            clips: uint8 (B, T, 3, S, S), RGB, on any device.
            layers: Numbers of L blocks, 1 the first, -1 the last; None for those of the card or, if it names none, for the
                tokens that the model ends with.

        Returns:
            float32 (B, N, E), or (B, N, L * E) for L layers, on the teacher's device. Tokens are in (t, h, w) order,
            without prefix tokens.

        Raises:
            TeacherError: Clips have another type or geometry, or the teacher does not have such a layer.
        """
        spec = self.card.clip
        chosen = self.card.layers if layers is None else layer_numbers(self.card.name, layers, self.num_layers)
        shape = (spec.num_frames, 3, spec.size_px, spec.size_px)
        if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[1:] != shape:
            raise TeacherError(
                f"{self.card.name} cannot take these clips",
                got=f"{clips.dtype} {tuple(clips.shape)}",
                expected=f"torch.uint8 (B, {', '.join(map(str, shape))})",
            )
        with torch.inference_mode():
            clips = clips.to(self.device)
            if chosen is None:
                return self._encode(clips).float()
            tokens = [layer.float() for layer in self._encode_layers(clips, chosen)]
            return torch.cat([F.layer_norm(layer, layer.shape[-1:]) for layer in tokens], dim=-1)

    @abstractmethod
    def _encode(self, clips: Tensor) -> Tensor:
        """Run the model on checked clips that lie on its device, under inference mode."""

    def _encode_layers(self, clips: Tensor, layers: Sequence[int]) -> Sequence[Tensor]:
        """Return the tokens (B, N, E) after each of the blocks `layers`; a model of several blocks overrides this."""
        return [self._encode(clips)] * len(layers)


@dataclass(frozen=True)
class TeacherSurvey:
    """The properties of a teacher that are known without loading its weights and without the network.

    Attributes:
        name: Name that was asked for.
        kind: Plug-in that runs it, `unknown` while no configuration is on this disk.
        at_hand: Its weights, if it needs any, are on this disk.
        detail: Where it was found, as a clause.
        licence: Licence of the weights, or `unknown`.
        dim: Width of a token, all `layers` side by side, or None while it is not known.
        clip: Clips that it takes, or None while they are not known.
        layers: Numbers of the blocks that were asked for, 1 the first; None for the tokens that the model ends with.
    """

    name: str
    kind: str
    at_hand: bool
    detail: str
    licence: str
    dim: int | None = None
    clip: ClipSpec | None = None
    layers: tuple[int, ...] | None = None


def open_teacher(
    name: str,
    *,
    clip: ClipSpec | None = None,
    layers: Sequence[int] | None = None,
    sampling: str | None = None,
    stride: int | None = None,
    device: torch.device = CPU,
    revision: str | None = None,
    progress: Progress = SILENT,
) -> Teacher:
    """Load a teacher; a Hub id that is not in the local Hugging Face cache is fetched.

    Args:
        name: A built-in (`hog`), a local folder (`./hog` for one with a built-in's name), a Hugging Face id, or a
            checkpoint or a folder of checkpoints of a student.
        clip: How clips are cut: free for a built-in; for a model its sampling, its stride and the fields in `flexible`.
        layers: Numbers of the blocks whose tokens stand side by side, 1 the first, -1 the last; None for the tokens that
            the model ends with.
        sampling: `uniform` or `dense`, instead of that of the clips.
        stride: Distance of two frames of a dense clip, likewise.
        device: Where it computes.
        revision: Branch, tag or commit of a Hub id.
        progress: Receives a message before something is fetched.

    Raises:
        TeacherError: There is no such teacher; its files are missing, damaged or cannot be fetched; no plug-in runs this
            kind of model; or it takes no clips of this geometry or has no such layer.
        CheckpointError: The name is that of a student whose file is damaged.
    """
    built_in = _built_in(name, revision)
    if built_in is not None:
        outline = _sampled(built_in.outline({}, clip), sampling, stride)
        chosen = _chosen_layers(layers, outline, name)
        return _with_layers(_with_labels(built_in.load(None, outline, device), {}), chosen)
    files = _find(name, revision) or fetch(name, revision, progress)
    cls, outline = _outline(files, clip)
    outline = _sampled(outline, sampling, stride)
    chosen = _chosen_layers(layers, outline, name)
    if files.revision != LOCAL and not files.has_weights():
        files = fetch(name, files.revision, progress)
    return _with_layers(_with_labels(cls.load(files, outline, device), files.config()), chosen)


def survey(
    name: str,
    *,
    clip: ClipSpec | None = None,
    layers: Sequence[int] | None = None,
    sampling: str | None = None,
    stride: int | None = None,
    revision: str | None = None,
) -> TeacherSurvey:
    """Look a teacher up on this disk alone: nothing is loaded or fetched.

    Args:
        name: See `open_teacher`, likewise the others.
        clip: How clips are cut.
        layers: Numbers of blocks.
        sampling: `uniform` or `dense`.
        stride: Distance of two frames of a dense clip.
        revision: Branch, tag or commit of a Hub id.

    Raises:
        TeacherError: There is no such teacher; a folder holds no weights; no plug-in runs its configuration; or it takes no
            clips of this geometry or has no such layer.
    """
    built_in = _built_in(name, revision)
    if built_in is not None:
        outline = _sampled(built_in.outline({}, clip), sampling, stride)
        return _surveyed(name, built_in, outline, layers, "built in, needs no weights")
    files = _find(name, revision)
    if files is None:
        return _survey_absent(name, clip, layers, sampling, stride)
    cls, outline = _outline(files, clip)
    outline = _sampled(outline, sampling, stride)
    if files.revision == LOCAL:
        return _surveyed(name, cls, outline, layers, files.description())
    at_hand = files.has_weights()
    detail = f"revision {files.revision[:12]} is in the local Hugging Face cache" + ("" if at_hand else ", but not its weights")
    return _surveyed(name, cls, outline, layers, detail, at_hand)


def kind_of(cls: type[Teacher]) -> str:
    """Return the name of the plug-in that a teacher's class is."""
    return cls.__module__.rpartition(".")[2]


def _plugins() -> list[type[Teacher]]:
    return [plugins.load("teachers", name) for name in plugins.names("teachers")]


def _built_in(name: str, revision: str | None) -> type[Teacher] | None:
    found = next((cls for cls in _plugins() if cls.built_in and kind_of(cls) == name), None)
    if found is not None and revision is not None:
        raise TeacherError("only a Hugging Face id has revisions", got=f"{name} with revision {revision}")
    return found


def _find(name: str, revision: str | None) -> ModelFiles | None:
    """Find the files of a name on this disk; None for an id that is not in the local Hugging Face cache."""
    found = (cls.find(name) for cls in _plugins()) if revision is None else iter(())
    return next((files for files in found if files is not None), None) or local(name, revision)


def _outline(files: ModelFiles, clip: ClipSpec | None) -> tuple[type[Teacher], Outline]:
    """Return the plug-in that runs a model and its outline, with the licence filled in and the clips that were asked for."""
    config = files.config()
    runs = {model_type: cls for cls in _plugins() for model_type in cls.model_types}
    cls = runs.get(str(config.get("model_type")))
    if cls is None:
        got, expected = f"model_type {config.get('model_type')!r}", "one of " + ", ".join(sorted(runs))
        raise TeacherError(f"no teacher plug-in runs {files.name}", got=got, expected=expected, fix=OTHERS)
    outline = cls.outline(config, None)
    licence = outline.licence or (cls.known[files.name].licence if files.name in cls.known else files.licence())
    return cls, replace(outline, clip=clips_taken(files.name, outline.clip, clip, cls.flexible), licence=licence)


def _sampled(outline: Outline, sampling: str | None, stride: int | None) -> Outline:
    return replace(outline, clip=sampled_clips(outline.clip, sampling, stride))


def _chosen_layers(layers: Sequence[int] | None, outline: Outline, name: str) -> tuple[int, ...] | None:
    return None if layers is None else layer_numbers(name, layers, outline.num_layers)


def _with_labels(teacher: Teacher, config: Mapping[str, Any]) -> Teacher:
    """Fill in whether the teacher saw labels."""
    teacher.card = replace(teacher.card, saw_labels=teacher.saw_labels(config))
    return teacher


def _with_layers(teacher: Teacher, layers: tuple[int, ...] | None) -> Teacher:
    """Let a teacher give the tokens of some of its layers from now on."""
    if layers is not None:  # each layer is normalised on its own already, so the projection must not do it again
        teacher.card = replace(teacher.card, layers=layers, dim=len(layers) * teacher.card.dim, token_norm="none")
    return teacher


def _surveyed(
    name: str, cls: type[Teacher], outline: Outline, layers: Sequence[int] | None, detail: str, at_hand: bool = True
) -> TeacherSurvey:
    chosen = _chosen_layers(layers, outline, name)
    dim = outline.dim * (1 if chosen is None else len(chosen))
    return TeacherSurvey(name, kind_of(cls), at_hand, detail, outline.licence, dim, outline.clip, chosen)


def _survey_absent(
    name: str, clip: ClipSpec | None, layers: Sequence[int] | None, sampling: str | None, stride: int | None
) -> TeacherSurvey:
    """Describe an id none of whose files is on this disk."""
    detail = "not in the local Hugging Face cache"
    for cls in _plugins():
        if name in cls.known:
            outline = cls.known[name]
            outline = replace(outline, clip=clips_taken(name, outline.clip, clip, cls.flexible))
            return _surveyed(name, cls, _sampled(outline, sampling, stride), layers, detail, at_hand=False)
    return TeacherSurvey(name, "unknown", False, detail, "unknown")
