"""Use case: an HTML page about a pretraining run, or about several runs laid over each other.

```text
run folder -> header, metrics.jsonl -> verdict, curves -.
newest checkpoint + clips of the cache -> clip samples -+-> report.html
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from stjepa_cli.core.errors import CacheError, CheckpointError, ConfigError, StjepaError, VideoError
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.locations import Location
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.data.training_clips import CachedClips
from stjepa_cli.models.checkpoint import CheckpointHeader, list_checkpoints, newest_checkpoint, read_header
from stjepa_cli.models.student import Student, load_student
from stjepa_cli.models.tensor_file import load_group
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.training.objectives.base import Objective, build
from stjepa_cli.training.report_clips import Candidates, ClipSamples, Predict, TrainedModel, sample_clips
from stjepa_cli.training.report_page import RunSummary, comparison_page, run_page
from stjepa_cli.training.run_folder import is_training
from stjepa_cli.training.validation import hold_out
from stjepa_cli.viz import curves

POLL_SECONDS = 0.5

CPU = torch.device("cpu")  # a few clips only, and the GPU may be training


@dataclass(frozen=True)
class ReportResult:
    """A page that was written.

    Attributes:
        out: The page.
        run: Folder of the run, or of the first one.
        runs: Folders of all runs.
        checkpoint: Checkpoint whose student is shown.
        step: Its step.
        metric_lines: Number of lines of `metrics.jsonl`.
        loss: Mean training loss of the last steps; None if there were none.
        verdict: Whether the student predicts held-out clips better than answers that need no look at the clip, in words.
        does_better: The same as a value; None if no clips were held out.
        clips: Names of the clips that are shown.
        left_out: Why other clips are not shown, in sentences.
        cosine: Mean cosine between predictions and latents of hidden tokens; None without clips or predictor.
        constant_cosine: Mean cosine of the constant answer.
        bytes: Size of the page.
    """

    out: str
    run: str
    runs: tuple[str, ...]
    checkpoint: str
    step: int
    metric_lines: int
    loss: float | None
    verdict: str
    does_better: bool | None
    clips: tuple[str, ...]
    left_out: tuple[str, ...]
    cosine: float | None
    constant_cosine: float | None
    bytes: int


def report(
    runs: Path | Sequence[Path],
    *,
    out: Path | None = None,
    cache: Location | None = None,
    data_root: Location | None = None,
    clips: int = 4,
    reload_seconds: int | None = None,
    progress: Progress = SILENT,
) -> ReportResult:
    """Write the page of a run, or of several. The same runs give the same bytes.

    Args:
        runs: Folders of the runs, with checkpoints and `metrics.jsonl`.
        out: HTML file to write; by default `report.html` in the folder of the run, or `comparison.html` in the current folder.
        cache: Folder of the cache, if it has moved.
        data_root: Folder of the videos, if it has moved; not needed if the cache keeps frames.
        clips: Number of clips to show.
        reload_seconds: A browser loads the page again every so many seconds; never if None.
        progress: Receives progress.

    Raises:
        CheckpointError: A folder holds no checkpoint that can be read.
        ConfigError: The same run is named twice.
        StjepaError: The page cannot be written.
    """
    folders = [runs] if isinstance(runs, Path) else list(runs)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("the same run is named twice", got=", ".join(map(str, folders)))
    with progress.task("report", total=len(folders) + 2, unit="parts") as task:
        found = []
        for folder in folders:
            found.append(_summary(folder))
            task.advance()
        first = found[0]
        samples = _samples(found, cache or first.header.run.cache, data_root or first.header.run.data_root, clips, progress)
        task.advance()
        if len(found) == 1:
            text, target = run_page(first, samples, reload_seconds=reload_seconds), first.folder / "report.html"
        else:
            text, target = comparison_page(_told_apart(found), samples, reload_seconds=reload_seconds), Path("comparison.html")
        target, data = out or target, text.encode("utf-8", "replace")
        write_atomic(target, data)
        task.advance()
    verdict = curves.verdict(first.curves)
    return ReportResult(
        out=str(target),
        run=str(first.folder),
        runs=tuple(str(run.folder) for run in found),
        checkpoint=str(first.checkpoint),
        step=first.header.step,
        metric_lines=first.metric_lines,
        loss=curves.recent(first.curves.get("loss", ())),
        verdict=verdict.text,
        does_better=verdict.good,
        clips=tuple(sample.name for sample in samples.shown),
        left_out=samples.left_out,
        cosine=samples.cosine() if samples.shown else None,
        constant_cosine=samples.constant_cosine(),
        bytes=len(data),
    )


def watch(
    runs: Sequence[Path], *, every_seconds: int = 20, write: Callable[..., ReportResult] = report, progress: Progress = SILENT
) -> ReportResult:
    """Write the page of runs again and again while one of them trains, and once more when the last one has ended.

    The page reloads itself in the browser as long as it is watched; the last one does not.

    Args:
        runs: Folders of the runs.
        every_seconds: Seconds between two pages.
        write: Writes the page, given `runs`, `reload_seconds` and `progress`, as `report` does.
        progress: Receives a message for each page.

    Raises:
        StjepaError: As `report`, for the first and the last page; others are tried again.
    """
    reload_seconds: int | None = every_seconds
    try:
        while any(is_training(run) for run in runs):
            started = time.monotonic()
            _write_one(runs, reload_seconds, write, progress)
            while time.monotonic() - started < every_seconds and any(is_training(run) for run in runs):
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        write(runs, progress=SILENT)  # so that the browser stops too
        raise
    return write(runs, progress=progress)


def _write_one(runs: Sequence[Path], reload_seconds: int | None, write: Callable[..., ReportResult], progress: Progress) -> None:
    """Write a page of runs that train; a checkpoint that is replaced meanwhile is no reason to stop watching."""
    try:
        page = write(runs, reload_seconds=reload_seconds, progress=SILENT)
    except CheckpointError as error:
        progress.note(f"no page yet: {error.sentence()}")
        return
    loss = "" if page.loss is None else f", loss {page.loss:.4f}"
    progress.note(f"step {page.step:,}{loss}: {page.out}, which a browser loads again every {reload_seconds} s")


def _summary(folder: Path) -> RunSummary:
    checkpoint, header = _newest(folder)
    found, num_lines = curves.read_metrics(folder / "metrics.jsonl")
    return RunSummary(_name(folder), folder, checkpoint, header, found, num_lines)


def _name(run: Path) -> str:
    """Return the name of a run: its folder, with the folder around it if it has the default name."""
    folder = run.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name == "checkpoints" else folder.name


def _told_apart(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """Return the runs under names that differ: by their whole folders if two have the same name."""
    if len({run.name for run in runs}) == len(runs):
        return list(runs)
    return [replace(run, name=str(run.folder)) for run in runs]


def _samples(runs: Sequence[RunSummary], cache: Location | None, data_root: Location, count: int, progress: Progress) -> ClipSamples:
    """Sample clips for the page. If that fails, the reason is a sentence on it: the curves are worth having without."""
    if not count:
        return ClipSamples()
    if cache is None:
        return ClipSamples(left_out=("No clips are shown: the run had no cache.",))
    try:
        store, first = LatentStore.open(cache), runs[0].header
        for run in runs:
            if store.header.digest != run.header.cache_digest:
                what = f"the cache {cache} is not the one of {'this run' if len(runs) == 1 else run.name}"
                raise CacheError(what, got=store.header.digest[:12], expected=run.header.cache_digest[:12])
        rows, held_out = _candidates(store, data_root, min(run.header.run.val_fraction for run in runs))
        models = [_model(run) for run in runs]
        return sample_clips(Candidates(store, rows, held_out, data_root, first.run.seed), models, count, progress)
    except (StjepaError, VideoError) as error:
        return ClipSamples(left_out=(f"No clips are shown: {error}",))


def _model(run: RunSummary) -> TrainedModel:
    student, _ = load_student(run.checkpoint, CPU)
    return TrainedModel(run.name, student, _predict(load_objective(run.checkpoint, run.header)), run.header.run.mask_ratio)


def load_objective(checkpoint: Path, header: CheckpointHeader) -> Objective:
    """Load the student of a checkpoint and the modules that were trained with it, frozen, on the CPU.

    Raises:
        CheckpointError: The checkpoint is damaged, or its tensors are not those that its header describes.
    """
    generator = torch.Generator()
    student = Student(header.run.student, header.clip, generator)
    widths = [width for width in (header.latent_dim, header.second_latent_dim) if width]
    objective = build(student, header.run, widths, generator)
    for group, module in objective.named_children():
        load_group(module, checkpoint, group)
    return objective.eval().requires_grad_(False)


def _predict(objective: Objective) -> Predict | None:
    """Return the function that predicts the latents of hidden tokens; None if the objective has no predictor."""
    predictor = getattr(objective, "predictor", None)
    if not isinstance(predictor, nn.Module):
        return None
    return lambda clips, mask: predictor(objective.student(clips, mask), mask)


def _newest(run: Path) -> tuple[Path, CheckpointHeader]:
    """Find the newest checkpoint that can be read."""
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


def _candidates(store: LatentStore, data_root: Location, val_fraction: float) -> tuple[list[int], bool]:
    """Return the first view of each clip that was held out from training, and True; of every clip, and False, if none was."""
    source = CachedClips(store, data_root)
    _, held = hold_out(source, val_fraction)
    return [views[0] for views in held or source.clips], bool(held)
