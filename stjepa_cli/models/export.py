"""Use case: write the encoder of a checkpoint in a form that other programs load, and prove that it computes the same.

Every export is loaded again and compared with the original before it gets its name.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stjepa_cli.core import hub
from stjepa_cli.core.errors import ConfigError, StjepaError
from stjepa_cli.core.files import new_folder, remove_leftovers, write_atomic, write_sums
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.models.checkpoint import newest_checkpoint
from stjepa_cli.models.formats import Encode, find_format, random_clips
from stjepa_cli.models.model_card import model_card
from stjepa_cli.models.release import ReleaseConfig, Tuning, release_config, release_of, write_config
from stjepa_cli.models.student import PIXEL_MEAN, PIXEL_STD, Student, load_student


@dataclass(frozen=True)
class ExportResult:
    """A finished export.

    Attributes:
        out: Folder of the export.
        format: Name of the format.
        checkpoint: Checkpoint that was exported, or that a fine-tuned student started from.
        files: Names of the files in the folder, sorted.
        bytes: Size of all files.
        parameters: Number of parameters of the encoder.
        max_difference: Largest absolute difference between tokens of the export, loaded again, and of the original.
        tolerance: Largest difference that passes.
        pushed: Address of the model on the Hub; None if it was not pushed.
    """

    out: Path
    format: str
    checkpoint: Path
    files: tuple[str, ...]
    bytes: int
    parameters: int
    max_difference: float
    tolerance: float
    pushed: str | None = None


def export(checkpoint: Path, out: Path, format: str = "hf", *, push: str | None = None, progress: Progress = SILENT) -> ExportResult:
    """Export the encoder of a checkpoint.

    Args:
        checkpoint: Checkpoint, or a folder for its newest one.
        out: Folder to create; an existing folder must be empty.
        format: Name of a format in `FORMATS`.
        push: Model on the Hugging Face Hub to upload the export to, `owner/name`; it is created as a private one if there is none.
        progress: Receives messages.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
        ConfigError: The format is unknown, the folder is not empty, or `push` is no id.
        NotReadyError: The format needs a library that is not installed, or nobody is logged in to the Hub.
        StjepaError: The export differs from the original by more than the tolerance, or the disk is full; nothing is left behind. Or the
            Hub refuses the upload; the export is kept.
    """
    find_format(format)
    if push is not None:
        hub.check_upload(push)
    file = newest_checkpoint(checkpoint) if checkpoint.is_dir() else checkpoint
    student, header = load_student(file, torch.device("cpu"))
    result = _write(student, release_config(header, PIXEL_MEAN, PIXEL_STD), file, out, format, progress)
    return result if push is None else replace(result, pushed=_push(result, push, header.step, progress))


def _push(result: ExportResult, name: str, step: int, progress: Progress) -> str:
    try:
        with progress.task(f"pushing to {name}", total=None, unit="files"):
            return hub.upload(result.out, name, f"Encoder at step {step}, format {result.format}")
    except hub.HubError as error:
        fix = f"The export itself is whole: `hf upload {name} {result.out}` tries again."
        raise StjepaError(f"{result.out} is written, but cannot be pushed to {name}: {error.what}", fix=fix) from error


def write_finetuned(student: Student, start: Path, tuning: Tuning, out: Path, *, progress: Progress = SILENT) -> ExportResult:
    """Write a fine-tuned student in the format `hf`, which `Student.from_pretrained` and `stjepa infer` open.

    Args:
        student: Fine-tuned student on any device; it is left unchanged.
        start: Checkpoint, folder of checkpoints or release that it started from; gives the provenance of both.
        tuning: What it was fine-tuned on.
        out: Folder to create; an existing folder must be empty.
        progress: Receives messages.

    Raises:
        CheckpointError: `start` is none of these, or damaged.
        ConfigError: The folder is not empty, or the student has other sizes than the one it started from.
        StjepaError: A weight is not finite, or the disk is full; nothing is left behind.
    """
    config = release_of(start, PIXEL_MEAN, PIXEL_STD)
    if config.student != student.config:
        raise ConfigError(f"this student did not start from {start}", got=student.config, expected=config.student)
    config = replace(config, clip=student.spec, provenance=replace(config.provenance, tuning=tuning))
    frozen = copy.deepcopy(student).cpu().eval().requires_grad_(False)
    return _write(frozen, config, start, out, "hf", progress)


def _write(student: Student, config: ReleaseConfig, source: Path, out: Path, name: str, progress: Progress) -> ExportResult:
    """Write a frozen student on the CPU, load it again, and keep it if it computes the same."""
    format = find_format(name)
    num_parameters = sum(parameter.numel() for parameter in student.parameters())
    remove_leftovers(out.absolute().parent)
    progress.note(f"writing {source} as {format.about}, then loading it again to compare it with the original")
    with new_folder(out) as folder, progress.task(f"export {name}", total=2, unit="parts") as task:
        write_config(folder, config)
        format.write(student, folder)
        if name != "hf":  # whose tensors have digests of their own
            write_sums(folder)
        write_atomic(folder / "README.md", model_card(config, format, num_parameters).encode())
        task.advance()
        difference = _difference(student, format.load(folder))
        task.advance()
        if not difference <= format.tolerance:
            raise StjepaError(
                f"the export differs from {source} and was not kept",
                got=f"a largest difference of {difference:.3g}",
                expected=f"at most {format.tolerance:g}",
                fix="Type `stjepa inspect checkpoint PATH --stats` to see whether the weights are finite, or choose another format.",
            )
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return ExportResult(out, name, source, tuple(sizes), sum(sizes.values()), num_parameters, difference, format.tolerance)


@torch.inference_mode()
def _difference(student: Student, exported: Encode) -> float:
    """Return the largest absolute difference on a random clip; NaN if shapes differ or a value is not finite."""
    clips = random_clips(student, 1)
    expected, found = student(clips), exported(clips)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("nan")
    return float((found - expected).abs().max())
