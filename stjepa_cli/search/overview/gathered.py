"""All vectors of a column in memory, and the use cases that compare each of them with all others: near-duplicates."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.search.find import choose_column
from stjepa_cli.search.indexes.base import Index
from stjepa_cli.search.overview.similar import near_duplicates
from stjepa_cli.search.records import Column, Row

BATCH = 4096


@dataclass(frozen=True)
class Gathered:
    """The rows of a table that have a vector, and their vectors.

    Attributes:
        table: Name of the table.
        column: Column of vectors.
        rows: Rows whose status is `ok`, without vectors, sorted by uri and time.
        vectors: float32 (N, D), in their order.
        left_out: Number of rows without a vector: failed, not embedded yet, or of zeros, which have no direction.
    """

    table: str
    column: Column
    rows: tuple[Row, ...]
    vectors: Tensor
    left_out: int


@dataclass(frozen=True)
class Member:
    """A row of a group of near-duplicates.

    Attributes:
        row: The row.
        similarity: Cosine similarity to the closest other row of the group.
    """

    row: Row
    similarity: float


@dataclass(frozen=True)
class Duplicates:
    """Near-duplicates of a table.

    Attributes:
        table: Name of the table.
        column: Column of vectors.
        threshold: Least cosine similarity of a pair.
        rows: Number of rows that were compared.
        left_out: Number of rows without a vector.
        groups: Members of each group, the largest group first.
        seconds: Time of comparing them.
    """

    table: str
    column: Column
    threshold: float
    rows: int
    left_out: int
    groups: tuple[tuple[Member, ...], ...]
    seconds: float

    @property
    def superfluous(self) -> int:
        """Number of rows that could go if one of each group stays."""
        return sum(len(group) - 1 for group in self.groups)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return {
            "table": self.table,
            "column": self.column.name,
            "model": self.column.model,
            "threshold": self.threshold,
            "rows": self.rows,
            "left_out": self.left_out,
            "duplicates": self.superfluous,
            "groups": [[_member(member) for member in group] for group in self.groups],
            "seconds": self.seconds,
        }


def _member(member: Member) -> dict[str, Any]:
    names = ("id", "uri", "start_seconds", "end_seconds")
    return {**{name: getattr(member.row, name) for name in names}, "similarity": member.similarity}


def gather(index: Index, column: str | None = None, where: str | None = None, progress: Progress = SILENT) -> Gathered:
    """Read all vectors of a column: 100,000 of 384 channels take 150 MB.

    Args:
        index: The table.
        column: Column of vectors; None for the only one, or `video_embedding`.
        where: Condition on the rows, in the grammar of `filters`.
        progress: Receives progress.

    Raises:
        ConfigError: There is no such column, it does not hold one vector per row, the condition is none, or no row has a vector.
    """
    chosen = choose_column(index, column)
    total = index.count(where)
    rows: list[Row] = []
    blocks: list[Tensor] = []
    batch: list[Any] = []
    with progress.task("reading vectors", total=total, unit="rows") as task:
        for row in index.rows(where=where, columns=(chosen.name,), batch_size=BATCH, only_ok=True):
            vector = row.vectors[chosen.name]
            task.advance()
            if vector is None or not np.isfinite(vector).all() or not vector.any():
                continue
            batch.append(vector)
            rows.append(_bare(row))
            if len(batch) == BATCH:
                blocks.append(torch.from_numpy(np.stack(batch)))
                batch.clear()
    if batch:
        blocks.append(torch.from_numpy(np.stack(batch)))
    if not rows:
        condition = f" where {where}" if where else ""
        raise ConfigError(f"no row of {index.name}{condition} has a vector in column {chosen.name}")
    order = sorted(range(len(rows)), key=lambda i: (rows[i].uri, rows[i].start_seconds, rows[i].end_seconds or 0.0))
    return Gathered(index.name, chosen, tuple(rows[i] for i in order), torch.cat(blocks)[order], total - len(rows))


def _bare(row: Row) -> Row:
    """Return a row without its vectors, which are kept as one tensor."""
    return Row(**{key: value for key, value in vars(row).items() if key != "vectors"})


def find_duplicates(gathered: Gathered, threshold: float, *, same_video: bool = False, progress: Progress = SILENT) -> Duplicates:
    """Group rows that are nearly the same.

    Args:
        gathered: The rows.
        threshold: Least cosine similarity of a pair, above 0 and at most 1.
        same_video: Whether two parts of one video can be a pair: overlapping ones nearly always are.
        progress: Receives progress.

    Raises:
        ConfigError: The threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise ConfigError("the threshold is a cosine similarity", got=threshold, expected="a number above 0 and at most 1")
    numbers: dict[str, int] = {}
    owners = torch.tensor([numbers.setdefault(row.uri, len(numbers)) for row in gathered.rows])
    started = time.perf_counter()
    found = near_duplicates(gathered.vectors, threshold, None if same_video else owners, progress)
    seconds = round(time.perf_counter() - started, 3)
    similarity = found.similarity.tolist()
    groups = tuple(tuple(Member(gathered.rows[i], round(similarity[i], 6)) for i in rows) for rows in found.rows)
    return Duplicates(gathered.table, gathered.column, threshold, len(gathered.rows), gathered.left_out, groups, seconds)
