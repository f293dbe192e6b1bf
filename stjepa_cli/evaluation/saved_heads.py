"""Heads that `infer --save-head` keeps in the folder of a report, for `stjepa infer video`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import CheckpointError, ConfigError, storage_errors
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.types import software_versions
from stjepa_cli.encoders.heads import save_head
from stjepa_cli.evaluation.probes.base import FOLDER, probe_class
from stjepa_cli.evaluation.results import EvaluationResult
from stjepa_cli.models.export import write_finetuned
from stjepa_cli.models.release import CONFIG, Tuning
from stjepa_cli.models.student import Student

PREFIX = "head_"


def check_heads(protocols: Sequence[str]) -> None:
    """Check before anything is fitted that there will be a head to save.

    Raises:
        ConfigError: None of the protocols fits a head.
    """
    if not any(probe_class(name).gives_head for name in protocols):
        able = [name for name in plugins.names(FOLDER) if probe_class(name).gives_head]
        raise ConfigError("no protocol has a head to save", got=", ".join(protocols), expected="one of " + ", ".join(able))


def save_heads(result: EvaluationResult, folder: Path, *, progress: Progress = SILENT) -> tuple[Path, ...]:
    """Write `head_<protocol>.safetensors` for each protocol that fitted a head, and return what was written.

    A protocol that trained the student writes it to `student_<protocol>`, an export that every command takes as a checkpoint. It is
    not kept if training started from `untrained`.

    Raises:
        StjepaError: The disk is full or cannot be written.
    """
    written = []
    for name, probe in result.probes.items():
        if probe.head is None or probe.head.card is None:
            continue
        encoder = Path(probe.head.card.encoder)
        if probe.student is not None and not encoder.exists():  # `untrained` has no file that an export could name as its origin
            progress.note(f"the student that {name} trained is not kept: {encoder} is neither a checkpoint nor an export")
            continue
        if probe.student is not None:
            encoder = _save_student(result, name, probe.student, folder / f"student_{name}")
            written.append(encoder)
        # an absolute path, so that it is found from every folder
        card = replace(probe.head.card, encoder=str(encoder.resolve()) if encoder.exists() else str(encoder))
        written.append(folder / f"{PREFIX}{name}.safetensors")
        save_head(written[-1], replace(probe.head, card=card))
    return tuple(written)


def newest_head(place: Path) -> Path:
    """Return a file as it is, or the head below a folder that was written last.

    Raises:
        CheckpointError: There is no head.
    """
    if place.exists() and not place.is_dir():
        return place
    found = sorted(place.rglob(f"{PREFIX}*.safetensors"), key=lambda path: (path.stat().st_mtime_ns, path))
    if not found:
        fix = "Type `stjepa infer ucf101 --save-head` to fit one and keep it."
        raise CheckpointError(f"there is no saved head in {place}", fix=fix)
    return found[-1]


def _save_student(result: EvaluationResult, protocol: str, student: Student, folder: Path) -> Path:
    """Export a student, and replace the one of an earlier report only when the export is complete: training may start from it."""
    origin = f"{result.dataset}, split {result.split}"
    tuning = Tuning(origin, result.num_train, result.digests["encoder"], result.probes[protocol].chosen, software_versions())
    fresh = folder.with_name(f"{folder.name}.new")
    with storage_errors(folder):
        shutil.rmtree(fresh, ignore_errors=True)
        write_finetuned(student, Path(result.encoder), tuning, fresh)
        if (folder / CONFIG).is_file():
            shutil.rmtree(folder)
        fresh.rename(folder)
    return folder
