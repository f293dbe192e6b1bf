"""An evaluation as files: figures for programs, and one page with pictures for people.

```text
result -> metrics.json  predictions.csv  per_class.csv  confusion.png --+
evidence + video files -> hardest.jpg  neighbours.jpg ------------------+-> report.html, which needs none of them
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
from stjepa_cli.evaluation.confusion import ClassStats, by_class, hardest
from stjepa_cli.evaluation.confusion import confusion as count_confusions
from stjepa_cli.evaluation.evaluate import EvaluationResult
from stjepa_cli.evaluation.report_clips import FRAME_PX, NEIGHBOUR_PX
from stjepa_cli.evaluation.report_page import Intervals, PictureSection, Verdict
from stjepa_cli.viz.images import write_confusion, write_sheets

FILES = ("metrics.json", "predictions.csv", "per_class.csv", "confusion.png", "hardest.jpg", "neighbours.jpg", "report.html")
"""All that a report may consist of."""

NUM_GUESSES = 5
ROWS_AT_ONCE = 1024


def write_report(
    result: EvaluationResult,
    out: Path,
    *,
    command: str = "",
    intervals: Intervals | None = None,
    progress: Progress = SILENT,
    pictures: bool = True,
) -> tuple[Path, ...]:
    """Write an evaluation into a folder, as `FILES`. The same result and videos give the same bytes.

    Files of an earlier report there are replaced; those that this one has no use for are removed. What cannot be shown, for want
    of scores, of evidence or of a video file, is a sentence on the page.

    Args:
        result: what was found.
        out: the folder.
        command: what makes it again, for the page.
        intervals: 95 % intervals over test videos of each protocol's first figure, on this split alone.
        progress: listener, while videos are decoded.
        pictures: whether to decode videos.

    Returns:
        the files that were written.

    Raises:
        StjepaError: the folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise StjepaError(f"cannot write a report to {out}", got="a file", expected="a folder")
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    told = {"intervals": {name: list(ends) for name, ends in (intervals or {}).items()}, "command": command}
    metrics = result.to_json() | {name: value for name, value in told.items() if value}
    write_atomic(out / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
    write_atomic(out / "predictions.csv", _bytes(_predictions(result)))
    for name in FILES[2:]:  # before hours of decoding may end early: no picture stands beside figures that are not its own
        with storage_errors(out / name):
            (out / name).unlink(missing_ok=True)
    verdict = _verdict(result, out)
    hard, near = _hardest(result, verdict, pictures, progress), _neighbours(result, pictures, progress)
    title = f"{result.dataset} split {result.split}"
    if verdict is not None and hard.sheets:
        write_sheets(out / "hardest.jpg", f"{title}: the hardest test videos by {verdict.protocol}", hard.sheets, tile_px=FRAME_PX)
    if near.sheets:
        write_sheets(out / "neighbours.jpg", f"{title}: nearest train videos", near.sheets, tile_px=NEIGHBOUR_PX)
    document = report_page.page(result, verdict, hard, near, command=command, intervals=intervals or {})
    write_atomic(out / "report.html", document.encode("utf-8", "replace"))
    return tuple(out / name for name in FILES if (out / name).exists())


def shown_protocol(result: EvaluationResult) -> str | None:
    """The protocol that classes are judged by: linear, else knn, else the first that scores classes; None if none does."""
    return next((name for name in ("linear", "knn", *result.probes) if _scores(result, name) is not None), None)


def confusion(result: EvaluationResult, protocol: str) -> Tensor:
    """int64 (C, C): test videos of class `row` whose best class by `protocol` is `column`."""
    scores = _scores(result, protocol)
    if scores is None:
        raise ConfigError("no scores of classes", got=protocol)
    return count_confusions(scores, result.truths)


def _scores(result: EvaluationResult, protocol: str) -> Tensor | None:
    return result.probes[protocol].scores if protocol in result.probes else None


def _verdict(result: EvaluationResult, out: Path) -> Verdict | None:
    """What the shown protocol says, with its tables written; None, and no tables, if none scores classes."""
    shown = shown_protocol(result)
    if shown is None:
        return None
    counts, picture = confusion(result, shown), out / "confusion.png"
    title = f"{result.dataset} split {result.split}, {shown}: {int(counts.trace()) / len(result.ids):.1%} of {len(result.ids):,}"
    write_confusion(picture, counts, result.classes, title=f"{title} test videos right")
    write_atomic(out / "per_class.csv", _bytes(_per_class(result)))
    return Verdict(shown, counts, picture.read_bytes())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # names of files need not be text


# ------------------------------------------------------------------------------------------------------------ tables


def _predictions(result: EvaluationResult) -> str:
    """CSV: video, truth, then for each protocol that scores classes its best five with their scores; empty beyond them."""
    scored = {name: probe.scores for name, probe in result.probes.items() if probe.scores is not None}
    columns = [f"{name}_{what}{i}" for name in scored for i in range(1, NUM_GUESSES + 1) for what in ("class", "score")]
    named = ([video, result.classes[truth]] for video, truth in zip(result.ids, result.truths, strict=True))
    guesses = (_guesses(scores, result.classes) for scores in scored.values())
    return _csv([["video", "truth", *columns], *([cell for part in row for cell in part] for row in zip(named, *guesses, strict=True))])


def _guesses(scores: Tensor, classes: Sequence[str]) -> Iterator[list[str]]:
    """Of each row of (R, C) name and score of the best five classes, in turn; classes with the score 0 were no guess."""
    for part in torch.split(scores, ROWS_AT_ONCE):
        best = part.sort(dim=1, descending=True, stable=True)
        for places, values in zip(best.indices[:, :NUM_GUESSES].tolist(), best.values[:, :NUM_GUESSES].tolist(), strict=True):
            found = [(classes[place], f"{score:.6f}") for place, score in zip(places, values, strict=True) if score > 0]
            yield [cell for pair in found for cell in pair] + [""] * 2 * (NUM_GUESSES - len(found))


def _per_class(result: EvaluationResult) -> str:
    """CSV: class, videos, then for each protocol that scores classes how many were right, their share, and the commonest wrong answer."""
    scored = [name for name, probe in result.probes.items() if probe.scores is not None]
    tallies = [by_class(confusion(result, name)) for name in scored]
    columns = [f"{name}_{what}" for name in scored for what in ("right", "accuracy", "taken_for")]
    rows = []
    for label, name in enumerate(result.classes):
        cells = [cell for of_protocol in tallies for cell in _cells(of_protocol[label], result.classes)]
        rows.append([name, str(tallies[0][label].videos), *cells])
    return _csv([["class", "videos", *columns], *rows])


def _cells(tally: ClassStats, classes: Sequence[str]) -> tuple[str, str, str]:
    accuracy = "" if tally.accuracy is None else f"{tally.accuracy:.6f}"
    return str(tally.right), accuracy, "" if tally.taken_for is None else classes[tally.taken_for]


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


# ---------------------------------------------------------------------------------------------------------- pictures


def _hardest(result: EvaluationResult, verdict: Verdict | None, wanted: bool, progress: Progress) -> PictureSection:
    scores = None if verdict is None else _scores(result, verdict.protocol)
    if verdict is None or scores is None:
        return PictureSection(absent="No protocol scored classes, so no video was taken for another class.")
    if (absent := _no_pictures(result, wanted)) or result.evidence is None:
        return PictureSection(absent=absent)
    mistakes = hardest(scores, result.truths, result.ids, limit=report_clips.MAX_HARDEST, per_class=report_clips.MAX_OF_A_CLASS)
    if not mistakes:
        return PictureSection(absent=f"None: {verdict.protocol} is right about every test video.")
    footage = report_clips.ShownVideos(result.evidence.items, result.evidence.clip)
    return PictureSection(tuple(report_clips.contact_sheets(mistakes, result.ids, result.classes, footage, progress)))


def _neighbours(result: EvaluationResult, wanted: bool, progress: Progress) -> PictureSection:
    if (absent := _no_pictures(result, wanted)) or result.evidence is None:
        return PictureSection(absent=absent)
    if len(result.evidence.test) < 2:
        return PictureSection(absent="A single test video has no neighbours here: the mean of the test set is subtracted first.")
    found = report_clips.neighbourhoods(result.evidence.train, result.evidence.test)
    footage = report_clips.ShownVideos(result.evidence.items, result.evidence.clip)
    return PictureSection(tuple(report_clips.neighbour_sheets(found, result.classes, footage, progress)))


def _no_pictures(result: EvaluationResult, wanted: bool) -> str:
    if not wanted:
        return "No pictures were asked for."
    return "" if result.evidence is not None else "The result does not say which videos and features it was made of."
