"""The report of an evaluation: files for programs, and one page with pictures for people.

```text
result -> metrics.json  predictions.csv  per_class.csv  confusion.png --+
inputs + video files -> hardest.jpg  neighbours.jpg --------------------+-> report.html, which needs none of them
```
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stjepa_cli.core.errors import ConfigError, StjepaError, storage_errors
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.evaluation import report_clips, report_page
from stjepa_cli.evaluation.confusion import ClassStats, class_stats, confident_mistakes, confusion_matrix
from stjepa_cli.evaluation.intervals import Differences
from stjepa_cli.evaluation.report_clips import FRAME_PX, NEIGHBOUR_PX
from stjepa_cli.evaluation.report_page import Intervals, PictureSection, ShownProbe
from stjepa_cli.evaluation.results import EvaluationResult
from stjepa_cli.viz.images import write_confusion, write_sheets

FILES = ("metrics.json", "predictions.csv", "per_class.csv", "confusion.png", "hardest.jpg", "neighbours.jpg", "report.html")
"""All files that a report may have."""

NUM_GUESSES = 5
ROWS_AT_ONCE = 1024


def write_report(
    result: EvaluationResult,
    out: Path,
    *,
    command: str = "",
    intervals: Intervals | None = None,
    differences: Differences | None = None,
    progress: Progress = SILENT,
    pictures: bool = True,
) -> tuple[Path, ...]:
    """Write the report of an evaluation into a folder, and return the files. The same result and videos give the same bytes.

    Files of an earlier report are replaced, or removed if this report does not have them. If something cannot be shown, because there
    are no scores or a video file is missing, the page says so.

    Args:
        result: The result of the evaluation.
        out: The folder.
        command: The command that repeats the evaluation, or an empty string.
        intervals: 95 % bootstrap interval of the first metric of each protocol, on this split alone.
        differences: Paired differences from another encoder on this split, or None.
        progress: Receives progress while videos are decoded.
        pictures: Decode videos and show them.

    Raises:
        StjepaError: The folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise StjepaError(f"cannot write a report to {out}", got="a file", expected="a folder")
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    extra = {"intervals": {name: list(ends) for name, ends in (intervals or {}).items()}, "command": command}
    metrics = result.to_json() | {name: value for name, value in extra.items() if value}
    metrics |= {} if differences is None else differences.to_json()
    write_atomic(out / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
    write_atomic(out / "predictions.csv", _bytes(_predictions(result)))
    for name in FILES[2:]:  # now, so that an interrupted report never shows pictures of an earlier one
        with storage_errors(out / name):
            (out / name).unlink(missing_ok=True)
    shown = _shown_probe(result, out)
    mistakes, neighbours = _mistakes(result, shown, pictures, progress), _neighbours(result, pictures, progress)
    title = f"{result.dataset} split {result.split}"
    if shown is not None and mistakes.sheets:
        name = f"{title}: most confident mistakes of {shown.protocol}"
        write_sheets(out / "hardest.jpg", name, mistakes.sheets, tile_px=FRAME_PX)
    if neighbours.sheets:
        write_sheets(out / "neighbours.jpg", f"{title}: nearest train videos", neighbours.sheets, tile_px=NEIGHBOUR_PX)
    document = report_page.page(result, shown, mistakes, neighbours, command=command, intervals=intervals or {}, differences=differences)
    write_atomic(out / "report.html", document.encode("utf-8", "replace"))
    return tuple(out / name for name in FILES if (out / name).exists())


def shown_protocol(result: EvaluationResult) -> str | None:
    """Return the protocol for tables of classes: linear, else knn, else the first that scores classes, else None."""
    return next((name for name in ("linear", "knn", *result.probes) if _scores(result, name) is not None), None)


def confusion(result: EvaluationResult, protocol: str) -> Tensor:
    """Return int64 (C, C), the number of test videos of class `row` that `protocol` predicts as class `column`.

    Raises:
        ConfigError: The protocol does not score classes.
    """
    scores = _scores(result, protocol)
    if scores is None:
        raise ConfigError("no scores of classes", got=protocol)
    return confusion_matrix(scores, result.labels)


def _scores(result: EvaluationResult, protocol: str) -> Tensor | None:
    return result.probes[protocol].scores if protocol in result.probes else None


def _shown_probe(result: EvaluationResult, out: Path) -> ShownProbe | None:
    """Write the tables of classes, and return the confusion matrix of the shown protocol, or None if none scores classes."""
    protocol = shown_protocol(result)
    if protocol is None:
        return None
    counts, picture = confusion(result, protocol), out / "confusion.png"
    title = f"{result.dataset} split {result.split}, {protocol}: {int(counts.trace()) / len(result.ids):.1%} of {len(result.ids):,}"
    write_confusion(picture, counts, result.classes, title=f"{title} test videos right")
    write_atomic(out / "per_class.csv", _bytes(_per_class(result)))
    return ShownProbe(protocol, counts, picture.read_bytes())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # file names need not be valid text


# ------------------------------------------------------------------------------------------------------------ tables


def _predictions(result: EvaluationResult) -> str:
    """Return CSV: video, truth, and the five best classes with their scores of each protocol that scores classes."""
    scored = {name: probe.scores for name, probe in result.probes.items() if probe.scores is not None}
    columns = [f"{name}_{what}{i}" for name in scored for i in range(1, NUM_GUESSES + 1) for what in ("class", "score")]
    named = ([video, result.classes[label]] for video, label in zip(result.ids, result.labels, strict=True))
    guesses = (_guesses(scores, result.classes) for scores in scored.values())
    return _csv([["video", "truth", *columns], *([cell for part in row for cell in part] for row in zip(named, *guesses, strict=True))])


def _guesses(scores: Tensor, classes: Sequence[str]) -> Iterator[list[str]]:
    """Yield name and score of the best five classes of each row of (R, C), without classes whose score is 0."""
    for part in torch.split(scores, ROWS_AT_ONCE):
        best = part.sort(dim=1, descending=True, stable=True)
        for labels, values in zip(best.indices[:, :NUM_GUESSES].tolist(), best.values[:, :NUM_GUESSES].tolist(), strict=True):
            found = [(classes[label], f"{score:.6f}") for label, score in zip(labels, values, strict=True) if score > 0]
            yield [cell for pair in found for cell in pair] + [""] * 2 * (NUM_GUESSES - len(found))


def _per_class(result: EvaluationResult) -> str:
    """Return CSV: class, videos, and for each protocol that scores classes the hits, the accuracy and the most frequent wrong class."""
    scored = [name for name, probe in result.probes.items() if probe.scores is not None]
    stats = [class_stats(confusion(result, name)) for name in scored]
    columns = [f"{name}_{what}" for name in scored for what in ("right", "accuracy", "taken_for")]
    rows = []
    for label, name in enumerate(result.classes):
        cells = [cell for by_class in stats for cell in _cells(by_class[label], result.classes)]
        rows.append([name, str(stats[0][label].videos), *cells])
    return _csv([["class", "videos", *columns], *rows])


def _cells(stats: ClassStats, classes: Sequence[str]) -> tuple[str, str, str]:
    accuracy = "" if stats.accuracy is None else f"{stats.accuracy:.6f}"
    return str(stats.right), accuracy, "" if stats.taken_for is None else classes[stats.taken_for]


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# ---------------------------------------------------------------------------------------------------------- pictures


def _mistakes(result: EvaluationResult, shown: ShownProbe | None, wanted: bool, progress: Progress) -> PictureSection:
    scores = None if shown is None else _scores(result, shown.protocol)
    if shown is None or scores is None:
        return PictureSection(absent="No protocol scored classes, so there are no mistakes to show.")
    if (absent := _no_pictures(result, wanted)) or result.inputs is None:
        return PictureSection(absent=absent)
    limit, per_class = report_clips.MAX_MISTAKES, report_clips.MAX_PER_CLASS
    mistakes = confident_mistakes(scores, result.labels, result.ids, limit=limit, per_class=per_class)
    if not mistakes:
        return PictureSection(absent=f"None: {shown.protocol} is right about every test video.")
    videos = report_clips.ShownVideos(result.inputs.items, result.inputs.clip)
    return PictureSection(tuple(report_clips.mistake_sheets(mistakes, result.ids, result.classes, videos, progress)))


def _neighbours(result: EvaluationResult, wanted: bool, progress: Progress) -> PictureSection:
    if (absent := _no_pictures(result, wanted)) or result.inputs is None:
        return PictureSection(absent=absent)
    found = report_clips.query_neighbours(result.inputs.train, result.inputs.test)
    videos = report_clips.ShownVideos(result.inputs.items, result.inputs.clip)
    return PictureSection(tuple(report_clips.neighbour_sheets(found, result.classes, videos, progress)))


def _no_pictures(result: EvaluationResult, wanted: bool) -> str:
    if not wanted:
        return "No pictures were asked for."
    return "" if result.inputs is not None else "The result does not hold the videos and features that it was computed from."
