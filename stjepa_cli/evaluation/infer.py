"""Use case: score frozen encoders on a data set, write a report of each, and keep fitted heads.

```text
names -> encoders -> features (kept) -> probes -> a row per encoder -> a report folder per encoder and split
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.locations import Location
from stjepa_cli.core.places import checkpoints_dir
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.threads import MIN_WIDTH, use_threads
from stjepa_cli.core.types import digest
from stjepa_cli.data.datasets.base import open_dataset
from stjepa_cli.data.eval_clips import ONE_CLIP
from stjepa_cli.encoders.extraction import Extraction
from stjepa_cli.encoders.resolve import NamedEncoder, is_release
from stjepa_cli.evaluation.compare import Comparison, ComparisonSettings, compare_encoders
from stjepa_cli.evaluation.evaluate import PROTOCOLS
from stjepa_cli.evaluation.intervals import differences_of, intervals_of
from stjepa_cli.evaluation.probes.base import pool_for, probe_class
from stjepa_cli.evaluation.report import write_report
from stjepa_cli.evaluation.report_folders import ReportFolders, write_overview
from stjepa_cli.evaluation.results import EvaluationResult
from stjepa_cli.evaluation.saved_heads import check_heads, save_heads
from stjepa_cli.models.checkpoint import newest_checkpoint

MAX_KEY = 100
"""Characters of the options in the name of a folder."""


@dataclass(frozen=True)
class InferRequest:
    """A request to score encoders on a data set.

    Attributes:
        dataset: Name of the data set.
        root: Folder or URL of the data set.
        checkpoint: A checkpoint, a folder for its newest, or an exported student. None for the newest of the default folder.
        teacher: Score this teacher instead of a checkpoint: a Hugging Face id, a local folder, or `hog`.
        compare: Names of other encoders to score, as `NamedEncoder` takes them.
        split: One of the data set's pairs, `all`, or None for the first.
        protocols: Names of probes.
        limit: Use at most this many train and this many test videos, spread over the classes.
        extraction: How features are extracted, and where they are kept.
        settings: Settings of protocols by name, where they differ from the defaults.
        seed: Random seed of probes and bootstrap.
        out: Folder of the report, or of all reports. None for folders beside the checkpoints.
        save_head: Keep fitted heads in the folder of the report.
        command: The command that repeats this request, or an empty string.
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

    @property
    def key(self) -> str:
        """The options that metrics depend on, where they differ from the defaults, as a part of a folder name."""
        extraction, clips = self.extraction, self.extraction.clips
        parts = {
            "-".join(self.protocols): self.protocols != PROTOCOLS,
            f"limit{self.limit}": self.limit is not None,
            str(clips): str(clips) != str(ONE_CLIP),
            str(clips.sampling): clips.sampling is not None,
            f"stride{clips.stride}": clips.stride is not None,
            f"layer{extraction.layer}": extraction.layer is not None,
            extraction.pool: extraction.pool != pool_for(self.protocols),
            **{_changed(name, value): True for name, value in self.settings.items()},
            f"seed{self.seed}": self.seed != 0,
        }
        key = "_".join(part for part, is_changed in parts.items() if part and is_changed)
        return key if len(key) <= MAX_KEY else f"{key[:MAX_KEY]}_{digest(key)[:8]}"


def _changed(name: str, settings: Any) -> str:
    """Return the settings of a protocol that differ from its defaults."""
    usual, given = asdict(probe_class(name).settings), asdict(settings) if settings is not None else {}
    return "_".join(
        f"{field}{value:g}" if isinstance(value, float) else f"{field}{value}" for field, value in given.items() if usual[field] != value
    )


def pin_checkpoint(checkpoint: Path | None, teacher: str | None) -> Path | None:
    """Return the checkpoint that a request means now, because a running pretraining may write newer ones meanwhile.

    Args:
        checkpoint: A checkpoint, a folder of checkpoints, an exported student, or None for the default folder.
        teacher: The teacher that is scored instead, or None.

    Returns:
        A checkpoint or an exported student, or None if a teacher is scored.

    Raises:
        CheckpointError: There is no checkpoint.
        ConfigError: Both a checkpoint and a teacher are given.
    """
    if teacher is not None:
        if checkpoint is not None:
            raise ConfigError("one encoder at a time", got="--checkpoint and --teacher", expected="one of them, and --compare for others")
        return None
    place = checkpoints_dir(checkpoint)
    return newest_checkpoint(place) if (checkpoint is None or place.is_dir()) and not is_release(place) else place


def infer(request: InferRequest, runtime: Runtime = Runtime()) -> Comparison:
    """Score the encoders of a request. The report of each encoder is written before the next encoder is loaded.

    Encoders, protocols and folders that cannot be used are reported before anything is extracted.

    Raises:
        StjepaError: As `evaluate`, or an encoder cannot be opened, or the disk is full.
    """
    if request.save_head:
        check_heads(request.protocols)
    checkpoint = pin_checkpoint(request.checkpoint, request.teacher)
    run = checkpoint or checkpoints_dir()
    runtime.progress.note(str(use_threads(MIN_WIDTH, runtime.workers)))
    sources = [NamedEncoder(name, run) for name in (request.teacher or str(checkpoint), *request.compare)]
    dataset = open_dataset(request.dataset, request.root)
    settings = ComparisonSettings(
        dataset, request.extraction, request.split, request.protocols, request.limit, request.seed, request.settings
    )
    folders = ReportFolders(request.out, single=len(sources) * len(settings.splits) == 1, key=request.key)
    rows, files = [], list[Path]()
    for row in compare_encoders(sources, settings, runtime):
        rows.append(row)
        for result, reference in zip(row.results, rows[0].results, strict=True):
            files += _write(request, result, None if row is rows[0] else reference, folders.folder(result), runtime)
    comparison = Comparison(tuple(rows), request.command, tuple(files))
    if request.out is not None and not folders.single:
        write_overview(comparison, folders, request.out)
        runtime.progress.note(f"wrote {request.out / 'report.html'}")
    return comparison


def _write(
    request: InferRequest, result: EvaluationResult, reference: EvaluationResult | None, folder: Path, runtime: Runtime
) -> Sequence[Path]:
    """Write heads first, because fitting them took the longest, and then the report; returns the files."""
    intervals = intervals_of((result,), request.seed)  # those of a row are of the mean over its splits
    differences = None if reference is None else differences_of((result,), (reference,), request.seed)
    heads = save_heads(result, folder, progress=runtime.progress) if request.save_head else ()
    report = write_report(result, folder, command=request.command, intervals=intervals, differences=differences, progress=runtime.progress)
    files = (*heads, *report)
    runtime.progress.note(f"wrote {len(files)} files to {folder}: look at {(folder / 'report.html').name}")
    return files
