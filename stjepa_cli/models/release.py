"""A released encoder: a folder of `config.json` and `model.safetensors`, on this disk or on the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stjepa_cli.core import hub
from stjepa_cli.core.config import StudentConfig
from stjepa_cli.core.errors import CheckpointError, ConfigError
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.serialization import from_dict, to_dict
from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.models.checkpoint import CheckpointHeader, newest_checkpoint, read_header, read_tensors, write_tensors

MODEL_TYPE = "stjepa"
SCHEMA = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"

_MAKE_ONE = "`stjepa export --format hf --out DIR` writes such a folder."


@dataclass(frozen=True)
class Tuning:
    """What an encoder was fine-tuned on after it had been trained.

    Attributes:
        dataset: name and split of the videos, `ucf101, split 1`.
        num_videos: of them.
        start: digest of the encoder that it started from.
        settings: the recipe, by name.
        software: versions of what fine-tuned it.
    """

    dataset: str
    num_videos: int
    start: str
    settings: dict[str, float]
    software: dict[str, str]


@dataclass(frozen=True)
class Provenance:
    """Where an encoder comes from; no path of the machine that trained it, but the teacher by the name that was asked for.

    Attributes:
        teacher: who made the latents, with its licence.
        dataset: name and split, `ssv2/train`.
        cache_digest: digest of the cache's header.
        objective: what was descended.
        step: optimizer steps taken.
        epoch: whole epochs done.
        software: versions of what trained it.
        tuning: what it was fine-tuned on afterwards, None if it was not.
    """

    teacher: TeacherCard
    dataset: str
    cache_digest: str
    objective: str
    step: int
    epoch: int
    software: dict[str, str]
    tuning: Tuning | None = None


@dataclass(frozen=True)
class ReleaseConfig:
    """`config.json`: how to build the encoder, what it takes, where it comes from.

    Attributes:
        student: its sizes.
        clip: the clips that it takes.
        pixel_mean: of each colour; the encoder computes (pixel / 255 - mean) / std itself.
        pixel_std: likewise.
        provenance: where it comes from.
    """

    student: StudentConfig
    clip: ClipSpec
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    provenance: Provenance
    model_type: str = MODEL_TYPE
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        for name in ("pixel_mean", "pixel_std"):
            if len(getattr(self, name)) != 3:
                raise ConfigError(f"{name} has a value for each colour", got=getattr(self, name), expected="3 numbers")


def release_config(header: CheckpointHeader, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]) -> ReleaseConfig:
    """What a release of a checkpoint says of itself."""
    provenance = Provenance(
        header.teacher, header.dataset, header.cache_digest, header.run.objective["name"], header.step, header.epoch, header.software
    )
    return ReleaseConfig(header.run.student, header.clip, pixel_mean, pixel_std, provenance)


def release_of(place: Path, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]) -> ReleaseConfig:
    """What a release of the encoder at a place says of itself: a release already, a checkpoint, or a folder of them, its newest.

    Raises:
        CheckpointError: it is none of these, or damaged.
    """
    if (place / CONFIG).is_file():
        return read_config(place)
    return release_config(read_header(newest_checkpoint(place) if place.is_dir() else place), pixel_mean, pixel_std)


def write_config(folder: Path, config: ReleaseConfig) -> None:
    """Write `config.json`.

    Raises:
        StjepaError: the disk is full or cannot be written.
    """
    data = {"model_type": config.model_type} | to_dict(config)
    write_atomic(folder / CONFIG, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `model.safetensors` under plain names.

    Raises:
        StjepaError: the disk is full or cannot be written.
    """
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    (folder / WEIGHTS).chmod(folder.stat().st_mode & 0o666)  # safetensors makes files for their owner only


def find_release(name: str, revision: str | None = None) -> Path:
    """The folder of a release: a local one, else a Hugging Face id's in the local cache, else fetched.

    Raises:
        CheckpointError: neither a folder nor an id, or it cannot be fetched.
        StjepaError: the disk is full.
    """
    folder = Path(name).expanduser()
    if name and folder.exists():
        if revision is not None:
            raise CheckpointError("only a Hugging Face id has revisions", got=f"{name} with revision {revision}")
        return folder
    if not hub.is_id(name):
        raise CheckpointError(
            "there is no such student", got=repr(name), expected="a folder that exists or a Hugging Face id", fix=_MAKE_ONE
        )
    found = [hub.cached(name, file, revision) for file in (CONFIG, WEIGHTS)]
    if found[0] is not None and found[1] is not None:
        return found[0].parent
    try:
        return hub.download(name, revision, (CONFIG, WEIGHTS, "README.md"))
    except hub.HubError as error:
        raise CheckpointError(
            f"the student {name} is neither a folder nor in the local Hugging Face cache, and cannot be fetched ({error.what})",
            fix=_MAKE_ONE,
        ) from error


def read_config(folder: Path) -> ReleaseConfig:
    """The `config.json` of a release.

    Raises:
        CheckpointError: it is missing, of another kind of model, or cannot be understood.
    """
    if folder.is_file():
        raise CheckpointError("a release is a folder, not a file", got=folder, fix="A checkpoint is loaded with `load_student`.")
    path = folder / CONFIG
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no student", got=f"no {CONFIG}", expected="a release", fix=_MAKE_ONE) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read", got=error, expected="a JSON object") from error
    found = data.get("model_type") if isinstance(data, dict) else None
    if found != MODEL_TYPE:
        raise CheckpointError(f"{folder} holds another kind of model", got=f"model_type {found!r}", expected=f"model_type {MODEL_TYPE!r}")
    try:
        return from_dict(ReleaseConfig, data, where=str(path))
    except ConfigError as error:
        raise CheckpointError(error.what, got=error.got, expected=error.expected, fix="Update stjepa, or export it again.") from error


def read_weights(folder: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a release, as many and of the same shapes as those of `wanted`.

    Raises:
        CheckpointError: missing or truncated; a tensor that is missing, too many, or of another shape, the first by name.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no weights", got=f"no {WEIGHTS}", expected="a release", fix=_MAKE_ONE)
    try:
        stored = read_tensors(path)
    except CheckpointError as error:
        raise CheckpointError(error.what, got=error.got, fix="Export it again, or fetch it again.") from error
    for name in sorted(stored.keys() | wanted.keys()):
        found, expected = stored.get(name), wanted.get(name)
        if found is None or expected is None or found.shape != expected.shape:
            raise CheckpointError(
                f"{path} holds another student than {CONFIG} describes: {name}",
                got="none" if found is None else tuple(found.shape),
                expected="none" if expected is None else tuple(expected.shape),
            )
    return stored
