"""Released encoders: a folder with `config.json` and `model.safetensors`, on this disk or on the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stjepa_cli.core import hub
from stjepa_cli.core.config import StudentConfig
from stjepa_cli.core.errors import CheckpointError, ConfigError, UnreadableError
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.serialization import from_dict, refuse_newer, to_dict
from stjepa_cli.core.types import ClipSpec, TeacherCard, digest
from stjepa_cli.models.checkpoint import CheckpointHeader, newest_checkpoint, read_header
from stjepa_cli.models.tensor_file import load_group, read_metadata, write_tensors

MODEL_TYPE = "stjepa"
SCHEMA = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_CONFIG_DIGEST = "config_digest"

_HOW_TO_MAKE = "`stjepa export --format hf --out DIR` writes such a folder."


@dataclass(frozen=True)
class Tuning:
    """How an encoder was fine-tuned after pretraining.

    Attributes:
        dataset: Name and split of the data set, `ucf101, split 1`.
        num_videos: Number of videos.
        start: Digest of the encoder that it started from.
        settings: Hyperparameters by name.
        software: Versions of the software that fine-tuned it.
    """

    dataset: str
    num_videos: int
    start: str
    settings: dict[str, float]
    software: dict[str, str]


@dataclass(frozen=True)
class Provenance:
    """Where an encoder comes from. It names no path of the machine that trained it, only the teacher as it was asked for.

    Attributes:
        teacher: Teacher that computed the latents, with its licence.
        dataset: Name and split of the data set, `ssv2/train`.
        cache_digest: Digest of the cache's header.
        objective: Name of the training objective.
        step: Number of optimizer steps taken.
        epoch: Number of whole epochs done.
        software: Versions of the software that trained it.
        tuning: How it was fine-tuned afterwards; None if it was not.
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
    """The content of `config.json`: how to build the encoder, which clips it takes, where it comes from.

    Attributes:
        student: Sizes of the student.
        clip: Clips that it takes.
        pixel_mean: Mean of each colour channel; the encoder itself computes (pixel / 255 - mean) / std.
        pixel_std: Standard deviation of each colour channel.
        provenance: Where it comes from.
        model_type: Kind of model, always `stjepa`.
        schema: Version of this format.
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
                raise ConfigError(f"{name} needs one value per colour channel", got=getattr(self, name), expected="3 numbers")


def release_config(header: CheckpointHeader, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]) -> ReleaseConfig:
    """Return the configuration of a release of a checkpoint."""
    provenance = Provenance(
        header.teacher, header.dataset, header.cache_digest, header.run.objective["name"], header.step, header.epoch, header.software
    )
    return ReleaseConfig(header.run.student, header.clip, pixel_mean, pixel_std, provenance)


def release_of(place: Path, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]) -> ReleaseConfig:
    """Return the configuration of a release of the encoder at `place`: a release, a checkpoint, or a folder of checkpoints.

    Raises:
        CheckpointError: It is none of these, or damaged.
    """
    if (place / CONFIG).is_file():
        return read_config(place)
    return release_config(read_header(newest_checkpoint(place) if place.is_dir() else place), pixel_mean, pixel_std)


def write_config(folder: Path, config: ReleaseConfig) -> None:
    """Write `config.json`.

    Raises:
        StjepaError: The disk is full or cannot be written.
    """
    data = {"model_type": config.model_type} | to_dict(config)
    write_atomic(folder / CONFIG, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `model.safetensors` beside its `config.json`, with the tensors' plain names and the digest of that configuration.

    Raises:
        CheckpointError: There is no `config.json` yet.
        StjepaError: The disk is full or cannot be written.
    """
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt", _CONFIG_DIGEST: digest(_read_json(folder))})


def find_release(name: str, revision: str | None = None) -> Path:
    """Return the folder of a release: a local folder, or that of a Hugging Face id, which is fetched if it is not in the local cache.

    Raises:
        CheckpointError: `name` is neither a folder nor an id, or the id cannot be fetched.
        StjepaError: The disk is full.
    """
    folder = Path(name).expanduser()
    if name and folder.exists():
        if revision is not None:
            raise CheckpointError("only a Hugging Face id has revisions", got=f"{name} with revision {revision}")
        return folder
    if not hub.is_id(name):
        raise CheckpointError(
            "there is no such student", got=repr(name), expected="a folder that exists or a Hugging Face id", fix=_HOW_TO_MAKE
        )
    found = [hub.cached(name, file, revision) for file in (CONFIG, WEIGHTS)]
    if found[0] is not None and found[1] is not None:
        return found[0].parent
    try:
        return hub.download(name, revision, (CONFIG, WEIGHTS, "README.md"))
    except hub.HubError as error:
        raise CheckpointError(
            f"the student {name} is neither a folder nor in the local Hugging Face cache, and cannot be fetched ({error.what})",
            fix=_HOW_TO_MAKE,
        ) from error


def read_config(folder: Path) -> ReleaseConfig:
    """Read the `config.json` of a release.

    Raises:
        CheckpointError: It is missing, belongs to another kind of model, or cannot be understood.
        UnreadableError: It cannot be read, or a newer version wrote it.
    """
    data = _read_json(folder)
    if data.get("model_type") != MODEL_TYPE:
        found = data.get("model_type")
        raise CheckpointError(f"{folder} holds another kind of model", got=f"model_type {found!r}", expected=f"model_type {MODEL_TYPE!r}")
    try:
        refuse_newer(data, SCHEMA, f"the release {folder}")
        return from_dict(ReleaseConfig, data, where=str(folder / CONFIG))
    except ConfigError as error:
        raise CheckpointError(error.what, got=error.got, expected=error.expected, fix="Update stjepa, or export it again.") from error


def _read_json(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        raise CheckpointError("a release is a folder, not a file", got=folder, fix="A checkpoint is loaded with `load_student`.")
    path = folder / CONFIG
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no student", got=f"no {CONFIG}", expected="a release", fix=_HOW_TO_MAKE) from error
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read", got=error, fix="Check its permissions and its disk.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read", got=error, expected="a JSON object") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} cannot be read", got=type(data).__name__, expected="a JSON object")
    return data


def load_weights(module: nn.Module, folder: Path) -> None:
    """Load the weights of a release into a module.

    Raises:
        CheckpointError: The weights are missing or damaged, belong to another configuration, or a name or a shape differs; the
            message names the first that does.
        UnreadableError: The file cannot be read.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no weights", got=f"no {WEIGHTS}", expected="a release", fix=_HOW_TO_MAKE)
    try:
        known = read_metadata(path).get(_CONFIG_DIGEST)
        if known is not None and known != digest(_read_json(folder)):
            raise CheckpointError(f"{folder / CONFIG} is not the one that {WEIGHTS} was exported with")
        load_group(module, path, described_by=CONFIG)
    except CheckpointError as error:
        raise CheckpointError(error.what, got=error.got, expected=error.expected, fix="Export it again, or fetch it again.") from error
