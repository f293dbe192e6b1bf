"""Use case: score frozen encoders on a data set, write a report of each, and keep what was fitted.

```text
names -> encoders -> features (kept) -> probes -> scoreboard -> a folder of reports for each encoder and split
```
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from stjepa_cli import pages
from stjepa_cli.checkpoint import newest_checkpoint
from stjepa_cli.config import checkpoints_dir
from stjepa_cli.contenders import is_release, open_contender
from stjepa_cli.datasets.base import open_dataset
from stjepa_cli.encoders import Encoder, StudentEncoder
from stjepa_cli.errors import ConfigError
from stjepa_cli.evaluation import PROTOCOLS, EvaluationResult
from stjepa_cli.features import Extraction, FeatureStore
from stjepa_cli.files import write_atomic
from stjepa_cli.locations import Location
from stjepa_cli.nouns import ClipSpec
from stjepa_cli.prediction import check_heads, save_heads
from stjepa_cli.progress import SILENT, Progress
from stjepa_cli.results import write_report
from stjepa_cli.scoreboard import Entry, Open, Scoreboard, contest


@dataclass(frozen=True)
class ScoreRequest:
    """What is scored on what.

    Attributes:
        dataset: name of the data set.
        root: where it lies.
        checkpoint: a checkpoint, a folder for its newest, or an exported student; None for the newest of the default folder.
        teacher: scored instead of a checkpoint: Hugging Face id, local folder, or `hog`.
        compare: names of what is scored beside it, as `contenders.open_contender` takes them.
        split: one of the data set's pairs, `all`, or None for the first.
        protocols: names of probes.
        limit: at most so many train and so many test videos, spread over the classes.
        extraction: how features are made, and where they are kept; its block is for students only.
        settings: of protocols that are not to have their own, by name.
        seed: of what the probes and the intervals draw.
        out: folder of the report, or of a report of each; None for folders beside the checkpoints.
        save_head: keep what was fitted in that folder.
        command: what makes it again, empty if no command does.
    """

    dataset: str
    root: Location
    checkpoint: Path | None = None
    teacher: str | None = None
    compare: tuple[str, ...] = ()
    split: str | None = None
    protocols: tuple[str, ...] = PROTOCOLS
    limit: int | None = None
    extraction: Extraction = field(default_factory=Extraction)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    out: Path | None = None
    save_head: bool = False
    command: str = ""


def score_all(request: ScoreRequest, *, device: torch.device, progress: Progress = SILENT) -> Scoreboard:
    """Score what was asked for, and write the reports; the progress listener is told of each file.

    Raises:
        StjepaError: as `evaluation.evaluate`; and an encoder that cannot be opened, a disk that is full.
    """
    if request.save_head:
        check_heads(request.protocols)
    openers = _openers(request, device)  # the newest checkpoint now, not after hours: a run may go on meanwhile
    dataset, extraction = open_dataset(request.dataset, request.root), request.extraction
    asked = request.teacher is not None

    def store(encoder: Encoder) -> FeatureStore:
        own = extraction if asked or isinstance(encoder, StudentEncoder) else replace(extraction, layer=None)
        return FeatureStore(encoder, dataset.name, own, device=device, progress=progress)

    board = contest(
        openers,
        dataset,
        store,
        split=request.split,
        protocols=request.protocols,
        limit=request.limit,
        seed=request.seed,
        settings=request.settings,
        command=request.command,
    )
    results = [(entry, result) for entry in board.entries for result in entry.results]
    folders = report_folders([result for _, result in results], request.out)
    for folder, (entry, result) in zip(folders, results, strict=True):
        _write(request, entry, result, folder, progress)
    if request.out is not None and len(results) > 1:
        _write_overview(board, [result for _, result in results], folders, request.out)
        progress.note(f"wrote {request.out / 'report.html'}")
    return board


def _openers(request: ScoreRequest, device: torch.device) -> list[Open]:
    """Functions that open the encoder that is asked about, and then those that it is compared with."""
    if request.teacher is not None and request.checkpoint is not None:
        raise ConfigError("one encoder at a time", got="--checkpoint and --teacher", expected="one of them, and --compare for others")
    run = checkpoints_dir(request.checkpoint)

    def opener(name: str) -> Open:
        return lambda clip: open_contender(name, device=device, run=run, clip=clip)

    if request.teacher is not None:
        asked = opener(request.teacher)
    elif is_release(run):
        asked = opener(str(run))
    else:
        path = newest_checkpoint(run) if request.checkpoint is None or run.is_dir() else run

        def asked(_: ClipSpec | None) -> Encoder:
            return StudentEncoder.open(path, device)

    return [asked, *map(opener, request.compare)]


def _write(request: ScoreRequest, entry: Entry, result: EvaluationResult, folder: Path, progress: Progress) -> None:
    intervals = entry.intervals if len(entry.results) == 1 else None  # else they are those of the mean over the splits
    written = write_report(result, folder, command=request.command, intervals=intervals, progress=progress)
    for path in (*written, *(save_heads(result, folder) if request.save_head else ())):
        progress.note(f"wrote {path}")


def _write_overview(board: Scoreboard, results: Sequence[EvaluationResult], folders: Sequence[Path], out: Path) -> None:
    """A page with the table of all, which leads to the report of each, and the same as JSON."""
    first, (columns, rows) = results[0], board.table()
    splits = ", ".join(dict.fromkeys(str(result.split) for result in results))
    title = f"{first.dataset}, split {splits}: {len(board.entries)} encoder{'s' if len(board.entries) > 1 else ''}"
    told = f"Shares of test videos, means over splits; in brackets 95 % of videos drawn again. Blind guessing: {first.chance:.4f}."
    widths = (40, *[60 // (len(columns) - 1)] * (len(columns) - 1))
    names = (f"{result.checkpoint}, split {result.split}" for result in results)
    body = [
        pages.heading(title, 1),
        pages.wrapped(columns, rows, widths=widths, numbers=(), caption=told),
        pages.heading("Reports"),
        pages.links({name: f"{folder.name}/report.html" for name, folder in zip(names, folders, strict=True)}),
        *([pages.paragraph("The same again:"), pages.command(board.command)] if board.command else []),
    ]
    write_atomic(out / "metrics.json", (json.dumps(board.to_json(), indent=2) + "\n").encode())
    write_atomic(out / "report.html", pages.page(title, body).encode("utf-8", "replace"))


def report_folders(results: Sequence[EvaluationResult], out: Path | None) -> list[Path]:
    """A folder for each report: `out` itself for a single one, else named so that no two encoders share one."""
    if out is not None and len(results) == 1:
        return [out]
    folders = [_folder(result) if out is None else out / _folder(result).name for result in results]
    return [
        folder.with_name(f"{folder.name}_{result.digests['encoder'][:8]}") if folders.count(folder) > 1 else folder
        for folder, result in zip(folders, results, strict=True)
    ]


def _folder(result: EvaluationResult) -> Path:
    """Beside the checkpoint that was scored, or where checkpoints are by default."""
    encoder = Path(result.checkpoint)
    is_checkpoint = encoder.suffix == ".safetensors"
    parent = encoder.parent if is_checkpoint else checkpoints_dir()
    return parent / "reports" / f"{result.dataset}_split{result.split}_{encoder.stem if is_checkpoint else encoder.name}"
