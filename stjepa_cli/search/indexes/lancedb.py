"""A table of vectors in LanceDB, an embedded database that lives in a folder or a bucket. The one user of lancedb.

```text
folder/videos.lance     the table `videos`, unless the place names another: `folder/name`
folder/.videos.lock     held while rows are written
```
Writers of a table in a local folder take turns under a lock; Lance itself lets two processes insert the same new row. In a bucket
there is no lock, and one process writes at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np

from stjepa_cli.core.errors import ConfigError, NotReadyError, StjepaError, how_to_install, storage_errors
from stjepa_cli.core.locations import is_folder, is_local, location, names
from stjepa_cli.search.filters import fields, parse
from stjepa_cli.search.indexes.base import NEAREST, Built, Index
from stjepa_cli.search.records import FIXED, OK, Column, Known, Row, Vector
from stjepa_cli.store.locks import CREATION, holding

TABLE = "videos"
WORTH_AN_INDEX = 20_000
"""Number of vectors from which an approximate search is faster than an exact one."""

REFINE = 20
"""Candidates per result that an approximate search compares exactly."""

_SUFFIX = ".lance"
_WAIT_S = 600.0
_FLOATS = ("duration_seconds", "fps", "start_seconds", "end_seconds")
_INTS = ("width", "height")
_ID = re.compile("[0-9a-f]{32}")
_FAILURES = (ValueError, RuntimeError, OSError)


class LanceIndex(Index):
    """A table in a LanceDB folder."""

    def __init__(self, table: Any, folder: str, name: str) -> None:
        self._table, self.name = table, f"{folder.rstrip('/')}/{name}"
        self._lock = _lock(folder, name)

    @classmethod
    def open(cls, place: str, *, create: bool = False) -> Self:
        """Open `folder/name`, or the table `videos` of a folder."""
        folder, name = split_place(place)
        if not create and not is_folder(location(folder) / f"{name}{_SUFFIX}"):
            fix = "Make it with `stjepa embed SOURCE --model MODEL --table " + place + "`."
            raise ConfigError("there is no table at this place", got=place, fix=fix)
        lancedb, arrow = _libraries()
        with _failures(f"the table {place} cannot be opened"):
            database = lancedb.connect(folder, read_consistency_interval=timedelta(0))
            with _turn(_lock(folder, name) if create else None, place):
                if create:
                    table = database.create_table(name, schema=arrow.schema(_fixed_fields(arrow)), exist_ok=True)
                else:
                    table = database.open_table(name)
        _check_schema(table.schema, place)
        return cls(table, folder, name)

    def columns(self) -> dict[str, Column]:
        fields = [field for field in self._table.schema if field.metadata and b"model_digest" in field.metadata]
        found = [Column.of({key.decode(): value.decode() for key, value in field.metadata.items()}) for field in fields]
        return {column.name: column for column in found}

    def add_column(self, column: Column) -> None:
        _, arrow = _libraries()
        with self._writing():
            if (mine := self.columns().get(column.name)) is not None:
                return mine.check_same(column, self.name)
            if column.name in self._table.schema.names:
                raise ConfigError(f"column {column.name} of {self.name} holds no vectors", fix="Choose another --column.")
            vectors = arrow.field(column.name, _type(arrow, column), metadata=column.metadata())
            self._table.add_columns([vectors, arrow.field(column.status, arrow.string())])

    def known(self, column: str) -> dict[str, Known]:
        status = self._column(column).status
        query = self._table.search().where(f"{status} = '{OK}'").select(["id", "digest", "strategy", "duration_seconds"])
        found: dict[str, Known] = {}
        for batch in query.to_batches():
            values = batch.to_pydict()
            others = zip(values["digest"], values["strategy"], values["duration_seconds"], strict=True)
            found.update(zip(values["id"], (Known(*each) for each in others), strict=True))
        return found

    def upsert(self, rows: Sequence[Row], column: str) -> None:
        if not rows:
            return
        _, arrow = _libraries()
        mine = self._column(column)
        values: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in FIXED}
        values[mine.name] = _array(arrow, mine, [_checked(row, mine) for row in rows])
        values[mine.status] = values["status"]
        schema = arrow.schema([self._table.schema.field(name) for name in values])
        table = arrow.table(values, schema=schema)
        with self._writing():
            self._forget_other_vectors(rows, mine)
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(table)

    def _forget_other_vectors(self, rows: Sequence[Row], mine: Column) -> None:
        """Clear what other columns hold of videos whose content has changed. A kill after this loses nothing that was still true."""
        others = [other for other in self.columns().values() if other.name != mine.name]
        if not others:
            return
        digests = {row.id: row.digest for row in rows}
        stored = self._table.search().where(_among(digests)).select(["id", "digest"]).to_list()
        changed = [row["id"] for row in stored if row["digest"] != digests[row["id"]]]
        if changed:
            empty = {name: "NULL" for other in others for name in (other.name, other.status)}
            self._table.update(where=_among(changed), values_sql=empty)

    def delete(self, ids: Sequence[str]) -> None:
        if ids:
            with self._writing():
                self._table.delete(_among(ids))

    def rows(
        self, *, where: str | None = None, columns: Sequence[str] = (), batch_size: int = 1024, only_ok: bool = False
    ) -> Iterator[Row]:
        wanted = [self._column(name) for name in columns]
        status = [f"{column.status} = '{OK}'" for column in wanted] or [f"status = '{OK}'"]
        condition = self._condition(where, status if only_ok else [])
        query = self._table.search().select([*FIXED, *(name for column in wanted for name in (column.name, column.status))])
        query = query.where(condition) if condition else query
        with self._reading():
            for batch in query.to_batches(batch_size=batch_size):
                yield from _rows(batch, wanted)

    def get(self, row_id: str, columns: Sequence[str] = ()) -> Row | None:
        if not _ID.fullmatch(row_id):
            return None
        return next(self.rows(where=f"id = '{row_id}'", columns=columns), None)

    def search(
        self, vector: Vector, column: str, top: int = NEAREST, *, where: str | None = None, exact: bool = False
    ) -> list[tuple[Row, float]]:
        mine = self._searchable(column, vector)
        condition = self._condition(where, [f"{mine.status} = '{OK}'"])
        query = self._table.search(vector, vector_column_name=column).distance_type("cosine").where(condition, prefilter=True)
        query = query.select([*FIXED, "_distance"]).limit(top)
        query = query.bypass_vector_index() if exact else query.refine_factor(REFINE)
        with self._reading():
            batch = query.to_arrow()
        distances = batch.column("_distance").to_pylist()
        return [(row, max(0.0, distance)) for row, distance in zip(_rows(batch, []), distances, strict=True)]

    def build_index(self, column: str) -> Built:
        mine = self._searchable(column)
        num_rows = self.count(f"{mine.status} = '{OK}'")
        if num_rows < WORTH_AN_INDEX:
            return Built("exact", num_rows, 1.0)
        with self._writing():
            self._table.create_index(metric="cosine", vector_column_name=column, index_type="IVF_PQ", replace=True)
        return Built("IVF_PQ", num_rows, self.recall(column))

    def count(self, where: str | None = None) -> int:
        condition = self._condition(where, [])
        with self._reading():
            return int(self._table.count_rows(condition or None))

    def close(self) -> None:
        """Let go of the table; LanceDB holds no connection."""

    def tidy(self) -> None:
        """Merge the many small pieces that a long backfill leaves, and drop versions that are older than a day."""
        with self._writing():
            self._table.optimize(cleanup_older_than=timedelta(days=1))

    def _column(self, name: str) -> Column:
        columns = self.columns()
        if name not in columns:
            expected = "one of " + ", ".join(columns) if columns else None
            raise ConfigError(f"{self.name} has no column of vectors of this name", got=name, expected=expected)
        return columns[name]

    def _searchable(self, name: str, vector: Vector | None = None) -> Column:
        column = self._column(name)
        if column.kind != "clip":
            raise ConfigError(f"column {name} holds {column.kind}, and a search needs one vector per clip", fix="Choose another --column.")
        if vector is not None and vector.shape != (column.dim,):
            got, expected = f"a vector of shape {tuple(vector.shape)}", f"({column.dim},)"
            raise ConfigError(f"column {name} has another width", got=got, expected=expected)
        return column

    def _condition(self, where: str | None, others: Sequence[str]) -> str:
        """Join a condition with others; it is parsed and written again, and never reaches the database as it was typed."""
        typed = [] if where is None else [parse(where, fields(self.columns().values())).literal_sql()]
        return " AND ".join(f"({part})" for part in (*typed, *others))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            expected = "SQL over " + ", ".join(FIXED)
            raise ConfigError(f"{self.name} cannot be asked this", got=_first_line(error), expected=expected) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with _failures(f"cannot write {self.name}"), _turn(self._lock, self.name):
            yield


def split_place(place: str) -> tuple[str, str]:
    """Split the place of a table into a folder and a name: `folder`, `folder/name` or `folder/name.lance`.

    A place that does not exist is `folder/name` if its parent holds tables already, else a folder for the table `videos`.
    """
    here = location(place)
    if here.name.endswith(_SUFFIX):
        return str(here.parent), here.name.removesuffix(_SUFFIX)
    if is_folder(here.parent / f"{here.name}{_SUFFIX}"):
        return str(here.parent), here.name
    if not is_folder(here) and is_folder(here.parent) and any(name.endswith(_SUFFIX) for name in names(here.parent)):
        return str(here.parent), here.name
    return str(here), TABLE


def _lock(folder: str, name: str) -> Path | None:
    place = location(folder)
    return place / f".{name}.lock" if is_local(place) else None


@contextmanager
def _turn(lock: Path | None, name: str) -> Iterator[None]:
    """Hold the lock of a table while it is written."""
    if lock is None:
        yield
        return
    with holding(lock, range(CREATION, CREATION + 1), f"the table {name}", wait_s=_WAIT_S):
        yield


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Turn what LanceDB raises into one sentence."""
    try:
        with storage_errors(what.removeprefix("cannot write ")):
            yield
    except _FAILURES as error:
        reason = "the disk is full" if "No space left" in str(error) else _first_line(error)
        raise StjepaError(f"{what}: {reason}") from error


def _libraries() -> tuple[Any, Any]:
    try:
        import lancedb
        import pyarrow
    except ImportError as error:
        raise NotReadyError("LanceDB is not installed", fix=how_to_install(extra="search")) from error
    return lancedb, pyarrow


def _fixed_fields(arrow: Any) -> list[Any]:
    types = dict.fromkeys(_FLOATS, arrow.float64()) | dict.fromkeys(_INTS, arrow.int32())
    return [arrow.field(name, types.get(name, arrow.string())) for name in FIXED]


def _check_schema(schema: Any, place: str) -> None:
    missing = [name for name in FIXED if name not in schema.names]
    if missing:
        fix = "Name another table."
        raise ConfigError(f"{place} is a table of another schema", got="no " + ", ".join(missing), expected=", ".join(FIXED), fix=fix)


def _type(arrow: Any, column: Column) -> Any:
    vector = arrow.list_(arrow.float32(), column.dim)
    return vector if column.kind == "clip" else arrow.list_(vector)


def _checked(row: Row, column: Column) -> Vector | None:
    vector = row.vectors.get(column.name)
    if vector is None:
        return None
    if vector.ndim != (1 if column.kind == "clip" else 2) or vector.shape[-1] != column.dim:
        got, expected = f"shape {tuple(vector.shape)}", f"width {column.dim}"
        raise ConfigError(f"{row.uri}: its vectors do not fit column {column.name}", got=got, expected=expected)
    return vector


def _array(arrow: Any, column: Column, vectors: Sequence[Vector | None]) -> Any:
    """Return vectors as an Arrow array, without a Python object per number."""
    missing = np.array([vector is None for vector in vectors])
    if column.kind == "clip":
        whole = np.zeros((len(vectors), column.dim), np.float32)
        for i, vector in enumerate(vectors):
            if vector is not None:
                whole[i] = vector
        return arrow.FixedSizeListArray.from_arrays(whole.ravel(), column.dim, mask=arrow.array(missing))
    found = [np.asarray(vector, np.float32) for vector in vectors if vector is not None]
    flat = np.concatenate(found) if found else np.zeros((0, column.dim), np.float32)
    values = arrow.FixedSizeListArray.from_arrays(flat.ravel(), column.dim)
    ends = np.cumsum([0, *(0 if vector is None else len(vector) for vector in vectors)])
    return arrow.ListArray.from_arrays(arrow.array(ends, arrow.int32()), values, mask=arrow.array(missing))


def _rows(batch: Any, columns: Sequence[Column]) -> Iterator[Row]:
    """Yield the rows of an Arrow batch or table."""
    values = {name: batch.column(name).to_pylist() for name in FIXED if name != "id"}
    vectors = {column.name: batch.column(column.name) for column in columns}
    statuses = {column.name: batch.column(column.status).to_pylist() for column in columns}
    for i in range(batch.num_rows):
        fixed = {name: found[i] for name, found in values.items()}
        mine = {column.name: _vector(vectors[column.name][i], column) for column in columns}
        yield Row(**fixed, vectors=mine, statuses={name: found[i] for name, found in statuses.items()})


def _vector(scalar: Any, column: Column) -> Vector | None:
    if not scalar.is_valid:
        return None
    flat = scalar.values if column.kind == "clip" else scalar.values.flatten()
    numbers: Vector = flat.to_numpy(zero_copy_only=False).astype(np.float32)
    return numbers if column.kind == "clip" else numbers.reshape(-1, column.dim)


def _among(ids: Any) -> str:
    """Return the condition that an id is one of these; ids are digests, and anything else is none."""
    known = [each for each in ids if _ID.fullmatch(each)]
    return "id IN (" + ", ".join(f"'{each}'" for each in known) + ")" if known else "FALSE"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


plugin = LanceIndex
