"""Use case: score frozen encoders on a data set, write a report of each, and keep what was fitted.

```text
names -> encoders -> features (kept) -> probes -> scoreboard -> a folder of reports for each encoder and split
```
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from stjepa_cli.core.config import checkpoints_dir
from stjepa_cli.core.errors import ConfigError, StjepaError, storage_errors
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.locations import Location
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.data.datasets.base import open_dataset
from stjepa_cli.encoders.base import Encoder
from stjepa_cli.encoders.feature_store import Extraction, FeatureStore
from stjepa_cli.encoders.resolve import is_release, open_encoder
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.evaluation.compare import Comparison, ComparisonSettings, Open, compare_encoders, intervals_of
from stjepa_cli.evaluation.evaluate import PROTOCOLS, EvaluationResult
from stjepa_cli.evaluation.predict import check_heads, save_heads
from stjepa_cli.evaluation.report import write_report
from stjepa_cli.models.checkpoint import newest_checkpoint
from stjepa_cli.viz import html


@dataclass(frozen=True)
class ScoreRequest:
    """What is scored on what.

    Attributes:
        dataset: name of the data set.
        root: where it lies.
        checkpoint: a checkpoint, a folder for its newest, or an exported student; None for the newest of the default folder.
        teacher: scored instead of a checkpoint: Hugging Face id, local folder, or `hog`.
        compare: names of what is scored beside it, as `contenders.open_encoder` takes them.
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


def score_all(request: ScoreRequest, *, device: torch.device, progress: Progress = SILENT) -> Comparison:
    """Score what was asked for; the report of each encoder is written before the next one is opened.

    What cannot be (an encoder, a protocol, a folder) is told before anything is extracted, and the progress listener of each file.

    Raises:
        StjepaError: as `evaluation.evaluate`; and an encoder that cannot be opened, a disk that is full.
    """
    if request.save_head:
        check_heads(request.protocols)
    request, openers = _openers(request, device)
    dataset, extraction = open_dataset(request.dataset, request.root), request.extraction
    asked = request.teacher is not None

    def store(encoder: Encoder) -> FeatureStore:
        own = extraction if asked or isinstance(encoder, StudentEncoder) else replace(extraction, layer=None)
        return FeatureStore(encoder, dataset.name, own, device=device, progress=progress)

    rules = ComparisonSettings(dataset, request.split, request.protocols, request.limit, request.seed, request.settings)
    filing = ReportFolders(request.out, alone=len(openers) * len(rules.splits) == 1)
    entries = []
    for entry in compare_encoders(openers, rules, store):
        entries.append(entry)
        for result in entry.results:
            _write(request, result, filing.folder(result), progress)
    board = Comparison(tuple(entries), request.command)
    if request.out is not None and not filing.alone:
        _write_overview(board, filing, request.out)
        progress.note(f"wrote {request.out / 'report.html'}")
    return board


def _openers(request: ScoreRequest, device: torch.device) -> tuple[ScoreRequest, list[Open]]:
    """Functions that open the encoder that is asked about, and then those that it is compared with.

    The newest checkpoint is that of now, not of after hours, since a run may go on meanwhile; the request's command then names it.
    """
    if request.teacher is not None and request.checkpoint is not None:
        raise ConfigError("one encoder at a time", got="--checkpoint and --teacher", expected="one of them, and --compare for others")
    run = checkpoints_dir(request.checkpoint)

    def opener(name: str) -> Open:
        return lambda clip: open_encoder(name, device=device, run=run, clip=clip)

    others = [opener(name) for name in request.compare]
    if request.teacher is not None or is_release(run):
        return request, [opener(request.teacher or str(run)), *others]
    path = newest_checkpoint(run) if request.checkpoint is None or run.is_dir() else run
    if request.command and path != request.checkpoint:
        request = replace(request, command=f"{request.command} --checkpoint {shlex.quote(str(path))}")
    return request, [lambda _: StudentEncoder.open(path, device), *others]


class ReportFolders:
    """A folder for each report: `out` itself for a single one, else named so that no two encoders share one.

    Args:
        out: where they go; None for beside the checkpoint that was scored, or where checkpoints are by default.
        alone: there will be one report.

    Raises:
        StjepaError: `out` is a file, or cannot be written.
    """

    def __init__(self, out: Path | None, *, alone: bool) -> None:
        self.out, self.alone = out, alone
        self.filed: dict[str, Path] = {}
        self._owners: dict[Path, str] = {}
        if out is not None and out.exists() and not out.is_dir():
            raise StjepaError(f"cannot write a report to {out}", got="a file", expected="a folder")
        if out is not None:
            with storage_errors(out):
                out.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=out):
                    pass

    def folder(self, result: EvaluationResult) -> Path:
        """That of one result."""
        encoder, digest = Path(result.checkpoint), result.digests["encoder"]
        is_checkpoint = encoder.suffix == ".safetensors"
        name = f"{result.dataset}_split{result.split}_{encoder.stem if is_checkpoint else encoder.name}"
        parent = self.out or (encoder.parent if is_checkpoint else checkpoints_dir()) / "reports"
        folder = parent if self.out is not None and self.alone else parent / name
        if self._owners.setdefault(folder, digest) != digest:
            folder = folder.with_name(f"{name}_{digest[:8]}")
        self.filed[f"{result.checkpoint}, split {result.split}"] = folder
        return folder


def _write(request: ScoreRequest, result: EvaluationResult, folder: Path, progress: Progress) -> None:
    """What was fitted first: it took the longest."""
    intervals = intervals_of((result,), request.seed)  # those of an entry are of the mean over its splits
    heads = save_heads(result, folder, progress=progress) if request.save_head else ()
    for path in (*heads, *write_report(result, folder, command=request.command, intervals=intervals, progress=progress)):
        progress.note(f"wrote {path}")


def _write_overview(board: Comparison, filing: ReportFolders, out: Path) -> None:
    """A page with the table of all, which leads to the report of each, and the same as JSON."""
    results = [result for entry in board.entries for result in entry.results]
    first, (columns, rows) = results[0], board.table()
    splits = ", ".join(dict.fromkeys(str(result.split) for result in results))
    title = f"{first.dataset}, split {splits}: {len(board.entries)} encoder{'s' if len(board.entries) > 1 else ''}"
    told = f"Shares of test videos, ± deviation over splits, in brackets 95 % of videos drawn again. Blind guessing: {first.chance:.4f}."
    widths = (40, *[60 // (len(columns) - 1)] * (len(columns) - 1))
    body = [
        html.heading(title, 1),
        html.wrapped(columns, rows, widths=widths, numbers=(), caption=told),
        html.heading("Reports"),
        html.links({name: f"{folder.name}/report.html" for name, folder in filing.filed.items()}),
        *([html.paragraph("The same again:"), html.command(board.command)] if board.command else []),
    ]
    write_atomic(out / "metrics.json", (json.dumps(board.to_json(), indent=2) + "\n").encode())
    write_atomic(out / "report.html", html.page(title, body).encode("utf-8", "replace"))
