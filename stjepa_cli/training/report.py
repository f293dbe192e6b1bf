"""Use case: one page about a pretraining run, with its curves, its settings and what its student makes of some clips.

```text
run's folder -> header, metrics.jsonl -> charts -.
newest checkpoint + clips of the cache -> maps --+-> report.html
```
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stjepa_cli.core.errors import CacheError, CheckpointError, StjepaError, VideoError
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.locations import Location
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.serialization import to_dict
from stjepa_cli.data.training_clips import CachedClips
from stjepa_cli.models.checkpoint import CheckpointHeader, list_checkpoints, newest_checkpoint, read_header
from stjepa_cli.models.student import Student, load_group, load_student, num_parameters
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.training.objectives.base import Objective, build
from stjepa_cli.training.report_clips import ClipPanels, Predict, StudentViewer, gallery_html, portraits
from stjepa_cli.training.validation import hold_out
from stjepa_cli.viz import curves, html

CPU = torch.device("cpu")  # a few clips only, and the GPU may be training


@dataclass(frozen=True)
class ReportResult:
    """What was written.

    Attributes:
        out: the page.
        run: the folder that it is about.
        step: of the checkpoint whose student is shown.
        metric_lines: lines of `metrics.jsonl`.
        loss: mean of the last steps; None if there were none.
        clips: names of those that are shown.
        left_out: why others are not, in sentences.
        cosine: mean over their tokens between prediction and truth, when hidden; None without clips or predictor.
        constant_cosine: likewise of the one constant answer.
        bytes: of the page.
    """

    out: str
    run: str
    checkpoint: str
    step: int
    metric_lines: int
    loss: float | None
    clips: tuple[str, ...]
    left_out: tuple[str, ...]
    cosine: float | None
    constant_cosine: float | None
    bytes: int


def report(
    run: Path,
    *,
    out: Path | None = None,
    cache: Location | None = None,
    data_root: Location | None = None,
    clips: int = 4,
    progress: Progress = SILENT,
) -> ReportResult:
    """Write the page of a run. The same run gives the same bytes.

    Args:
        run: the folder with its checkpoints and `metrics.jsonl`.
        out: the file; `report.html` in the run's folder if None.
        cache: where the cache lies now; where the run had it if None.
        data_root: where the videos lie now, likewise; not needed if the cache keeps frames.
        clips: how many to show.
        progress: listener.

    Raises:
        CheckpointError: there is no checkpoint that can be read.
        StjepaError: the page cannot be written.
    """
    checkpoint, header = _newest(run)
    figures, num_lines = curves.read_metrics(run / "metrics.jsonl")
    gallery = _gallery(checkpoint, header, cache or header.run.cache, data_root or header.run.data_root, clips, progress)
    name = _name(run)
    body = [
        *_head(name, run, checkpoint, header),
        *_curves(figures),
        *_configuration(run, header),
        *gallery_html(gallery, header.clip, header.run),
        *_places(run, checkpoint, header),
    ]
    data = html.page(f"{name}: step {header.step:,}", body).encode("utf-8", "replace")
    target = run / "report.html" if out is None else out
    write_atomic(target, data)
    return ReportResult(
        out=str(target),
        run=str(run),
        checkpoint=str(checkpoint),
        step=header.step,
        metric_lines=num_lines,
        loss=curves.recent(figures.get("loss", ())),
        clips=tuple(portrait.name for portrait in gallery.shown),
        left_out=tuple(gallery.left_out),
        cosine=gallery.mean("cosine"),
        constant_cosine=gallery.mean("constant"),
        bytes=len(data),
    )


def load_objective(checkpoint: Path, header: CheckpointHeader) -> Objective:
    """The student of a checkpoint and what was trained beside it, frozen, on the CPU.

    Raises:
        CheckpointError: its tensors are not those that its header describes.
    """
    generator = torch.Generator()
    student = Student(header.run.student, header.clip, generator)
    widths = [width for width in (header.latent_dim, header.second_latent_dim) if width]
    objective = build(student, header.run, widths, generator)
    for group, module in objective.named_children():
        load_group(module, checkpoint, group)
    return objective.eval().requires_grad_(False)


def _predict(objective: Objective) -> Predict | None:
    """What an objective answers for hidden tokens; None if it has no predictor."""
    predictor = getattr(objective, "predictor", None)
    if not isinstance(predictor, nn.Module):
        return None
    return lambda clips, mask: predictor(objective.student(clips, mask), mask)


def _newest(run: Path) -> tuple[Path, CheckpointHeader]:
    """The newest checkpoint that can be read."""
    if run.is_file():
        raise CheckpointError(
            "a report is about the folder of a run", got=run, expected="a folder", fix=f"Type `stjepa report {run.parent}`."
        )
    newest_checkpoint(run)
    for path in reversed(list_checkpoints(run)):
        try:
            return path, read_header(path)
        except CheckpointError as error:
            broken = error
    raise broken


# ---------------------------------------------------------------------------------------------------------- sections


def _name(run: Path) -> str:
    """What a run is called: its folder, with the one around it where that is named as by default."""
    folder = run.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name == "checkpoints" else folder.name


def _head(name: str, run: Path, checkpoint: Path, header: CheckpointHeader) -> Iterator[str]:
    teacher, config = header.teacher, header.run
    student = Student(config.student, header.clip, torch.Generator())
    yield html.heading(name, 1)
    yield html.paragraph(
        "A student learns to predict the latents of a frozen teacher in parts of a video that it does not see.", quiet=True
    )
    yield html.pairs(
        {
            "student": f"{config.preset}, {num_parameters(student) / 1e6:.2f} M parameters, {header.clip}",
            "teacher": f"{teacher.name} ({teacher.kind}, revision {teacher.revision})",
            "licence of the teacher": teacher.licence,
            "teacher saw labels": teacher.saw_labels or "unknown",
            "data set": header.dataset,
            "cache": header.cache_digest,
            "steps": f"{header.step:,}, epoch {header.epoch} of {config.epochs}, {config.batch_size} clips a step",
            "checkpoints": " to ".join(dict.fromkeys(_when(path) for path in (list_checkpoints(run)[0], checkpoint))),
            "written by": ", ".join(f"{part} {version}" for part, version in header.software.items()),
        }
    )


def _curves(figures: curves.Curves) -> Iterator[str]:
    yield html.heading("Curves")
    yield html.paragraph(curves.summary(figures))
    if figures:
        yield html.paragraph("Thin: each value. Bold: running mean over a fortieth of the run.", quiet=True)
    yield from curves.charts(figures)
    if figures:
        yield html.heading("Last values", 3)
        yield curves.last_values(figures)


def _configuration(run: Path, header: CheckpointHeader) -> Iterator[str]:
    file = run.absolute() / "run.toml"
    yield html.heading("Configuration")
    yield html.pairs(_flat(to_dict(header.run)))
    yield html.paragraph("The same run again, in a new folder:")
    yield html.command(f"stjepa pretrain --config {shlex.quote(str(file))} --checkpoints again")


def _places(run: Path, checkpoint: Path, header: CheckpointHeader) -> Iterator[str]:
    folder = run.absolute()
    yield html.heading("Where things are")
    yield html.pairs(
        {
            "run": folder,
            "newest checkpoint": checkpoint.name,
            "all checkpoints": f"{len(list_checkpoints(run))} files checkpoint_step*.safetensors",
            "metrics": folder / "metrics.jsonl",
            "configuration": folder / "run.toml",
            "cache": header.run.cache,
            "videos": header.run.data_root,
        }
    )
    yield html.command(f"stjepa inspect checkpoint {shlex.quote(str(folder))}\nstjepa infer ucf101 --checkpoint {shlex.quote(str(folder))}")


# ------------------------------------------------------------------------------------------------------------- clips


def _gallery(
    checkpoint: Path, header: CheckpointHeader, cache: Location | None, data_root: Location, count: int, progress: Progress
) -> ClipPanels:
    """Pictures of some clips; whatever is in the way of them is a sentence, since the curves are worth having without."""
    if not count:
        return ClipPanels()
    try:
        if cache is None:
            return ClipPanels(left_out=("No clips are shown: the run had no cache.",))
        store = LatentStore.open(cache)
        if store.header.digest != header.cache_digest:
            what = f"the cache {cache} is not the one of this run"
            raise CacheError(what, got=store.header.digest[:12], expected=header.cache_digest[:12])
        student, _ = load_student(checkpoint, CPU)
        eyes = StudentViewer(student, _predict(load_objective(checkpoint, header)), header.run.mask_ratio, header.run.seed)
        among, held_out = _candidates(store, data_root, header.run.val_fraction)
        return replace(portraits(store, among, data_root, eyes, count, progress), held_out=held_out)
    except (StjepaError, VideoError) as error:
        return ClipPanels(left_out=(f"No clips are shown: {error}",))


def _candidates(store: LatentStore, data_root: Location, val_fraction: float) -> tuple[list[int], bool]:
    """Return the first view of each clip that was held out from training, and True; of every clip, and False, if none was."""
    source = CachedClips(store, data_root)
    _, held = hold_out(source, val_fraction)
    return [views[0] for views in held or source.clips], bool(held)


def _when(path: Path) -> str:
    """When a file of the run was written."""
    return datetime.fromtimestamp(int(path.stat().st_mtime), UTC).strftime("%Y-%m-%d %H:%M UTC")


def _flat(data: dict[str, Any]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in data.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat
