"""Use case: train a head on the vectors of a table and the judgements of a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.progress import Progress
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.judgements import heads
from stjepa_cli.judgements.events import Event, EventLog
from stjepa_cli.judgements.figures import figures, overlap
from stjepa_cli.judgements.fitting import Fitted, Items, answers, learn
from stjepa_cli.judgements.head_file import HeadHeader, write_head
from stjepa_cli.judgements.losses import LOSSES
from stjepa_cli.judgements.questions import questions_of
from stjepa_cli.judgements.triplets import judgements, log_digest
from stjepa_cli.search.find import choose_column
from stjepa_cli.search.indexes.base import Index, open_index
from stjepa_cli.search.records import Column, row_id


@dataclass(frozen=True)
class TrainRequest:
    """What to learn, from what, and where to.

    Attributes:
        table: Place of a table, as `open_index` takes it.
        log: Log of judgements.
        mode: Mode of the judgements.
        out: File of the head.
        kind: `linear`, `mlp`, or `attention` for a column of frames or tokens.
        loss: `listwise`, `logistic`, `triplet`, `infonce` or `supcon`.
        dim: Width of the head; None for that of the vectors.
        column: Column of vectors; None for the only one that fits.
        seed: Seed of the splits and of what the head draws.

    Raises:
        ConfigError: There is no such kind or loss.
    """

    table: str
    log: Path
    mode: str
    out: Path
    kind: str = "linear"
    loss: str = "listwise"
    dim: int | None = None
    column: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in heads.KINDS:
            raise ConfigError("unknown kind of head", got=repr(self.kind), expected="one of " + ", ".join(heads.KINDS))
        if self.loss not in LOSSES:
            raise ConfigError("unknown loss", got=repr(self.loss), expected="one of " + ", ".join(LOSSES))


@dataclass(frozen=True)
class Trained:
    """What training has come to.

    Attributes:
        head: File of the head.
        header: What the head is.
        left_out: Number of choices that name items without vectors in the table.
        seconds: Duration.
    """

    head: Path
    header: HeadHeader
    left_out: int
    seconds: float


@dataclass(frozen=True)
class _Rows:
    """The vectors of the rows of a table that judgements are about, and more.

    Attributes:
        items: Their vectors.
        numbers: Number of a row by its id, and by its uri.
    """

    items: Items
    numbers: dict[str, int]


def train(request: TrainRequest, runtime: Runtime = Runtime()) -> Trained:
    """Train a head and write it. Where it would not surely be better than the raw vectors, it stays as it starts, and says so.

    Args:
        request: What to learn, from what, and where to.
        runtime: Progress; training runs on the CPU, so that the same log and seed give the same bytes.

    Raises:
        ConfigError: There is no such table, column, log or mode, none of the judgements is about the table, or the width does not fit.
        StjepaError: The log is damaged, or the head cannot be written.
    """
    started = time.monotonic()
    by_mode = _read_log(request)
    mine = by_mode.pop(request.mode, [])
    with open_index(request.table) as index:
        table, column = index.name, _column(index, request)
        rows = _read(index, column, {*mine, *(event for group in by_mode.values() for event in group)}, runtime.progress)
    questions = questions_of(mine, rows.numbers)
    choices = sum(event.verdict == "choice" for event in mine)
    if choices and not len(questions):
        got = mine[0].anchor
        raise ConfigError(f"none of the judgements is about rows of {table} with a vector in column {column.name}", got=got)
    start = heads.start_of(rows.items.means(), column.dim if request.dim is None else request.dim)
    head = heads.build(request.kind, start, torch.Generator().manual_seed(request.seed))
    fitted = learn(head, rows.items, questions, request.loss, seed=request.seed, progress=runtime.progress)
    header = _header(request, column, fitted, log_digest(mine), _report(mine, by_mode, rows, fitted))
    write_head(request.out, fitted.head, header)
    return Trained(request.out, header, choices - len(questions), round(time.monotonic() - started, 3))


def _read_log(request: TrainRequest) -> dict[str, list[Event]]:
    """Return the judgements of a log that hold, by mode."""
    with EventLog.open(request.log) as log:
        modes = log.modes()
        if modes and request.mode not in modes:
            raise ConfigError(f"{request.log} has no judgements of this mode", got=request.mode, expected="one of " + ", ".join(modes))
        return {mode: judgements(log.events(mode)) for mode in modes}


def _column(index: Index, request: TrainRequest) -> Column:
    if request.kind != "attention":
        return choose_column(index, request.column)
    several = [column for column in index.columns().values() if column.kind != "clip"]
    column = index.column(request.column) if request.column else several[0] if len(several) == 1 else None
    if column is None or column.kind == "clip":
        got = column.name if column else f"{len(several)} such columns"
        fix = "Name one with --column, or fill one with `stjepa embed --output tokens --column NAME`."
        raise ConfigError("an attention head reads a column of frames or tokens", got=got, fix=fix)
    return column


def _read(index: Index, column: Column, events: set[Event], progress: Progress) -> _Rows:
    """Read the vectors of a column: all of a column of clips, those that judgements name of a column of tokens."""
    named = {item for event in events for item in (event.anchor, *event.candidates)}
    named |= {row_id(item) for item in named}
    found: dict[str, tuple[str, bool, Any]] = {}
    with progress.task("reading vectors", total=index.count(), unit="rows") as task:
        for row in index.rows(columns=(column.name,), only_ok=True):
            task.advance()
            vector = row.vectors[column.name]
            wanted = column.kind == "clip" or row.id in named
            if wanted and vector is not None and np.isfinite(vector).all() and vector.any():
                found[row.id] = (row.uri, row.end_seconds is None, vector)
    if not found:
        raise ConfigError(f"no row of {index.name} that could be learned from has a vector in column {column.name}")
    ids = sorted(found)
    numbers = {each: i for i, each in enumerate(ids)}
    uris = {found[each][0]: i for i, each in enumerate(ids) if found[each][1]}  # a uri is the whole video
    return _Rows(_stacked([found[each][2] for each in ids]), {**uris, **numbers})


def _stacked(vectors: Sequence[Any]) -> Items:
    if vectors[0].ndim == 1:
        return Items(torch.from_numpy(np.stack(vectors)))
    most = max(len(each) for each in vectors)
    whole, mask = torch.zeros(len(vectors), most, vectors[0].shape[1]), torch.zeros(len(vectors), most, dtype=torch.bool)
    for i, each in enumerate(vectors):
        whole[i, : len(each)], mask[i, : len(each)] = torch.from_numpy(np.array(each)), True
    return Items(whole, mask)


def _report(mine: list[Event], others: dict[str, list[Event]], rows: _Rows, fitted: Fitted) -> dict[str, Any]:
    with torch.no_grad():
        space: Tensor = fitted.head(rows.items.vectors, rows.items.mask)
    return figures(mine, fitted, _other_task(others, rows, fitted), overlap(rows.items.means(), space))


def _other_task(others: dict[str, list[Event]], rows: _Rows, fitted: Fitted) -> dict[str, Any] | None:
    """Return how raw vectors and head agree with the mode of the same log that has the most judgements beside this one."""
    name = max(others, key=lambda mode: (len(others[mode]), mode), default=None)
    questions = questions_of(others[name], rows.numbers) if name else None
    if questions is None or not len(questions):
        return None
    means = rows.items.means()
    raw = heads.LinearHead(torch.eye(means.shape[1]))
    pairs = (("raw", raw, Items(means)), ("head", fitted.head, rows.items))
    agreement = {key: round(float(answers(head, items, questions, 1.0)[0].mean()), 6) for key, head, items in pairs}
    return {"name": name, **agreement}


def _header(request: TrainRequest, column: Column, fitted: Fitted, log: str, report: dict[str, Any]) -> HeadHeader:
    return HeadHeader(
        kind=request.kind,
        loss=request.loss,
        mode=request.mode,
        dim=column.dim if request.dim is None else request.dim,
        input_dim=column.dim,
        input_kind=column.kind,
        pool=column.pool,
        column=column.name,
        encoder=column.model,
        encoder_digest=column.model_digest,
        log_digest=log,
        split_seed=request.seed,
        temperature=fitted.temperature,
        keep_raw=fitted.penalty is None,
        report=report,
    )
