"""Use case: write a new column of vectors with a head, from the stored vectors of another. No video is decoded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.judgements.head_file import HeadHeader, head_digest, read_head
from stjepa_cli.judgements.heads import Head
from stjepa_cli.search.indexes.base import Index, open_index
from stjepa_cli.search.records import HEAD, OK, Column, Row

BATCH = 1024


@dataclass(frozen=True)
class Applied:
    """What applying a head has come to.

    Attributes:
        table: Name of the table.
        source: Column that was read.
        column: Column that was written.
        dim: Width of its vectors.
        written: Number of rows whose vectors this run has written.
        skipped: Number of rows that were done before.
        index: Name of the index, or `exact` where searching everything is faster.
        recall: Share of the true 10 nearest rows that a search finds, between 0 and 1.
        keep_raw: Whether the head is the raw vectors.
        seconds: Duration.
    """

    table: str
    source: str
    column: str
    dim: int
    written: int
    skipped: int
    index: str
    recall: float
    keep_raw: bool
    seconds: float


def apply(place: str, path: Path, column: str, source: str | None = None, runtime: Runtime = Runtime()) -> Applied:
    """Fill a column with the vectors of a head. What is done is skipped, so that a run which was stopped goes on where it was.

    Args:
        place: Place of a table, as `open_index` takes it.
        path: File of the head.
        column: Column to write. It is added; one that another head or encoder has filled is refused.
        source: Column to read; None for the one that the head was trained on.
        runtime: Progress.

    Raises:
        ConfigError: There is no such table, column or head, or the head is for another encoder.
        StjepaError: The head is damaged, or the table cannot be written; what was written stays.
    """
    started = time.monotonic()
    head, header = read_head(path)
    with open_index(place) as index:
        read = _source(index, header, source)
        new = replace(
            read, name=column, kind="clip", dim=header.dim, model=f"{HEAD}{header.mode} on {read.model}", model_digest=head_digest(path)
        )
        if new.name == read.name:
            raise ConfigError("a head writes a column of its own", got=column, fix="Choose another --column.")
        index.add_column(new)
        known, total = index.known(column), len(index.known(read.name))
        written = skipped = 0
        with runtime.progress.task("head", total=total, unit="rows") as task:
            for rows in _batches(index, read):
                waiting = [row for row in rows if row.id not in known]
                index.upsert(_through(head, waiting, read, new), column)
                written, skipped = written + len(waiting), skipped + len(rows) - len(waiting)
                task.advance(len(rows))
        if written:
            index.tidy()
        built = index.build_index(column)
        seconds = round(time.monotonic() - started, 3)
        return Applied(index.name, read.name, column, new.dim, written, skipped, built.kind, built.recall, header.keep_raw, seconds)


def _source(index: Index, header: HeadHeader, name: str | None) -> Column:
    columns = index.columns()
    fitting = [each for each in columns.values() if each.model_digest == header.encoder_digest and each.kind == header.input_kind]
    usual = header.column if header.column in columns else fitting[0].name if len(fitting) == 1 else header.column
    column = index.column(name or usual)
    header.check_fits(column, index.name)
    return column


def _batches(index: Index, column: Column) -> Iterator[list[Row]]:
    waiting: list[Row] = []
    for row in index.rows(columns=(column.name,), batch_size=BATCH, only_ok=True):
        waiting.append(row)
        if len(waiting) == BATCH:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _through(head: Head, rows: Sequence[Row], source: Column, new: Column) -> list[Row]:
    """Return rows with the vectors of a head."""
    found = []
    for row in rows:
        vector = row.vectors_of(source)
        assert vector is not None
        found.append(torch.from_numpy(np.array(vector)))
    with torch.no_grad():
        vectors = [head(_padded(found[i : i + 64]), _mask(found[i : i + 64])) for i in range(0, len(found), 64)]
    flat = [vector.numpy() for block in vectors for vector in block]
    changes: dict[str, Any] = {"model": new.model, "model_digest": new.model_digest, "strategy": new.strategy, "status": OK, "error": None}
    return [replace(row, vectors={new.name: vector}, statuses={}, **changes) for row, vector in zip(rows, flat, strict=True)]


def _padded(vectors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(vectors)) if vectors[0].ndim == 1 else torch.nn.utils.rnn.pad_sequence(list(vectors), batch_first=True)


def _mask(vectors: Sequence[Tensor]) -> Tensor | None:
    if vectors[0].ndim == 1:
        return None
    lengths = torch.tensor([len(each) for each in vectors])
    return torch.arange(int(lengths.max()))[None] < lengths[:, None]
