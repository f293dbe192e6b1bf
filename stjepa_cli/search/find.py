"""Use case: find the videos of a table that are most like one of its rows, a video file, or a vector."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.locations import is_local, location
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.search import pooling
from stjepa_cli.search.encoder import Encoder
from stjepa_cli.search.filters import fields, parse
from stjepa_cli.search.indexes.base import NEAREST, Index
from stjepa_cli.search.parts import Framing
from stjepa_cli.search.reading import Item, Reader
from stjepa_cli.search.records import HEAD, OK, Column, Row, Vector

USUAL_COLUMN = "video_embedding"

_ID = re.compile(r"[0-9a-f]{8,32}")


@dataclass(frozen=True)
class Hit:
    """A row that a search found.

    Attributes:
        row: The row, without vectors.
        distance: Cosine distance to the query, 0 to 2.
    """

    row: Row
    distance: float

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-able values, with its distance."""
        names = ("id", "uri", "start_seconds", "end_seconds", "duration_seconds", "fps", "width", "height", "digest")
        values = {name: getattr(self.row, name) for name in names}
        return {**dict(list(values.items())[:4]), "distance": self.distance, **dict(list(values.items())[4:])}


@dataclass(frozen=True)
class Query:
    """What was searched for.

    Attributes:
        kind: `video`, `row` or `vector`.
        name: Path or URL, the id of a row, or the path of a file of numbers.
        row: The row, or a row that describes the video; None for a vector.
    """

    kind: str
    name: str
    row: Row | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Found:
    """What a search has come to.

    Attributes:
        table: Name of the table.
        column: Column of vectors that was searched.
        query: What was searched for.
        where: Condition on the rows, or None.
        hits: The nearest rows, nearest first; the row that was searched for is not among them.
        seconds: Time of the search alone, without that of opening a model.
    """

    table: str
    column: Column
    query: Query
    where: str | None
    hits: tuple[Hit, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return {
            "table": self.table,
            "column": self.column.name,
            "model": self.column.model,
            "query": {"kind": self.query.kind, "name": self.query.name},
            "where": self.where,
            "results": [hit.to_json() for hit in self.hits],
            "seconds": self.seconds,
        }


def find(
    index: Index,
    query: str,
    *,
    column: str | None = None,
    top: int = NEAREST,
    where: str | None = None,
    model: str | None = None,
    runtime: Runtime = Runtime(),
) -> Found:
    """Search a table.

    Args:
        index: The table.
        query: A video file or URL, the id of a row or at least 8 digits of it, or a `.npy` file with a vector.
        column: Column of vectors; None for the only one, or `video_embedding`.
        top: Greatest number of results.
        where: Condition on the rows, in the grammar of `filters`.
        model: For a video: the model of the column, if it has moved; None for the name that the column keeps.
        runtime: For a video: device and progress.

    Returns:
        Rows whose status is `ok`, by ascending cosine distance.

    Raises:
        ConfigError: There is no such column, row or file; the column does not hold one vector per row; the vector has another width, or
            the condition is none.
        StjepaError: The model of the column cannot be opened, or is no longer the one that the vectors were made with.
        VideoError: The video cannot be used.
    """
    chosen = choose_column(index, column)
    if where is not None:
        parse(where, fields(index.columns().values()))  # before a model is loaded for it
    asked, vector = _resolve(index, chosen, query, model, runtime)
    started = time.perf_counter()
    is_row = asked.kind == "row"
    found = index.search(vector, chosen.name, top + is_row, where=where)
    seconds = time.perf_counter() - started
    hits = [Hit(row, distance) for row, distance in found if not (is_row and row.id == asked.name)]
    return Found(index.name, chosen, asked, where, tuple(hits[:top]), round(seconds, 4))


def choose_column(index: Index, name: str | None) -> Column:
    """Return a column of vectors with one per row: the named one, the only one, or `video_embedding`.

    Raises:
        ConfigError: There is none, there are several, or it holds several vectors per row.
    """
    columns = index.columns()
    if name is None and not columns:
        raise ConfigError(f"{index.name} has no column of vectors", fix="Fill one with `stjepa embed SOURCE --model MODEL`.")
    clips = [column.name for column in columns.values() if column.kind == "clip"]
    wanted = name or (clips[0] if len(clips) == 1 else next(iter(columns)) if len(columns) == 1 else USUAL_COLUMN)
    if wanted not in columns:
        several = name is None
        what = f"{index.name} has several columns of vectors" if several else f"{index.name} has no column of vectors of this name"
        raise ConfigError(what, got=None if several else wanted, expected="one of " + ", ".join(columns), fix="Name it with --column.")
    chosen = columns[wanted]
    if chosen.kind != "clip":
        what = f"column {wanted} of {index.name} holds several vectors per row ({chosen.kind}), which cannot be compared as one"
        raise ConfigError(what, fix="Add a column of single ones with `stjepa embed --output clip --column NAME`.")
    return chosen


def unit(vector: Vector, what: str) -> Vector:
    """Return a vector with a length of 1.

    Raises:
        ConfigError: It is zero, or not finite.
    """
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(length) or length == 0:
        raise ConfigError(
            f"{what} has no direction to search in", got="a vector of zeros" if length == 0 else "numbers that are not finite"
        )
    return (vector / length).astype(np.float32)


def _resolve(index: Index, column: Column, query: str, model: str | None, runtime: Runtime) -> tuple[Query, Vector]:
    """Tell what a query is: a file that exists, else the id of a row."""
    place = location(query)
    exists = not is_local(place) or place.is_file()
    if exists and place.suffix.lower() == ".npy" and is_local(place):
        return Query("vector", query), unit(_read_vector(place, column), query)
    if not exists and _ID.fullmatch(query):
        row = _row(index, column, query)
        vector = row.vectors[column.name]
        assert vector is not None
        return Query("row", row.id, row), unit(vector, query)
    if not exists:
        raise ConfigError(
            "no such file, and not the id of a row", got=query, expected="a video, a row id of 8 to 32 hex digits, or a .npy file"
        )
    return _embed(query, column, model or column.model, runtime)


def _row(index: Index, column: Column, prefix: str) -> Row:
    """Return the one row whose id begins like this, which must have a vector."""
    rows = index.rows(where=f"id like '{prefix}%'", columns=(column.name,))
    found = [row for row, _ in zip(rows, range(2), strict=False)]
    if len(found) != 1:
        what = f"several rows of {index.name} have ids that begin like this" if found else f"{index.name} has no row of this id"
        raise ConfigError(what, got=prefix)
    if found[0].statuses[column.name] != OK or found[0].vectors[column.name] is None:
        raise ConfigError(f"row {found[0].id} has no vector in column {column.name}", got=found[0].error or "not embedded yet")
    return found[0]


def _read_vector(path: Path, column: Column) -> Vector:
    try:
        numbers = np.load(path, allow_pickle=False)
        vector = np.asarray(numbers, dtype=np.float32)
    except (ValueError, TypeError, EOFError) as error:
        raise ConfigError(f"{path} is no file of numbers", got=" ".join(str(error).split())[:120]) from error
    if vector.size != column.dim or vector.ndim == 0 or vector.shape[-1] != column.dim:
        raise ConfigError(f"{path} does not fit column {column.name}", got=f"shape {numbers.shape}", expected=f"({column.dim},)")
    return vector.reshape(column.dim)


def _embed(uri: str, column: Column, model: str, runtime: Runtime) -> tuple[Query, Vector]:
    """Embed a video as the rows of a column were embedded."""
    if column.model.startswith(HEAD):
        fix = "Search for the id of a row. A video without one is embedded first, then the head applied again."
        raise ConfigError(f"column {column.name} was written by a head, from stored vectors; a video cannot be searched for in it", fix=fix)
    encoder = Encoder.load(model, runtime, column.num_frames or None)
    check_digest(model, encoder.digest, column)
    place = location(uri)
    name = str(place.absolute()) if is_local(place) else uri
    read = Reader(encoder.clip, Framing(column.strategy)).read(Item(name))
    (found, tokens) = next(iter(encoder.encode([read])))
    if tokens is None:
        raise ConfigError(f"{uri} cannot be searched for: {found.error}")
    vector: Vector = pooling.pool(tokens, encoder.grid, column.pool)[0].float().cpu().numpy()
    facts: Mapping[str, Any] = found.facts
    return Query("video", uri, Row(name, digest=found.digest, **facts)), unit(vector, uri)


def check_digest(model: str, digest: str, column: Column) -> None:
    """Refuse a model that is not the one that the vectors of a column were made with.

    Args:
        model: Its name.
        digest: Its digest.
        column: The column.

    Raises:
        ConfigError: The digests differ; the message names both.
    """
    if digest != column.model_digest:
        got, expected = f"digest {digest[:12]}", f"{column.model} (digest {column.model_digest[:12]})"
        fix = "Name the right one with --model, or embed again into another --column."
        raise ConfigError(f"{model} is not the model that column {column.name} was made with", got=got, expected=expected, fix=fix)
