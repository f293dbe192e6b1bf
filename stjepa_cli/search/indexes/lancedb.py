"""A table of vectors in LanceDB, an embedded database that lives in a folder or a bucket. The one user of lancedb.

```text
folder/videos.lance     the table `videos`, unless the place names another: `folder/name`
folder/.videos.lock     held while rows are written
```
Writers of a table in a local folder take turns under a lock; Lance itself lets two processes insert the same new row. In a bucket
there is no lock, and one process writes at a time.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from stjepa_cli.core.errors import CacheError, ConfigError, NotReadyError, StjepaError, how_to_install, storage_errors
from stjepa_cli.core.locations import is_folder, is_local, location, names
from stjepa_cli.search import arrow
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
        lancedb = _library()
        with _failures(f"the table {place} cannot be opened", place):
            database = lancedb.connect(folder, read_consistency_interval=timedelta(0))
            with _turn(_lock(folder, name) if create else None, place):
                exists = is_folder(location(folder) / f"{name}{_SUFFIX}")
                table = database.open_table(name) if exists else database.create_table(name, schema=arrow.fixed_schema())
        arrow.check_schema(table.schema, place)
        return cls(table, folder, name)

    def columns(self) -> dict[str, Column]:
        return arrow.columns_of(self._table.schema)

    def add_column(self, column: Column) -> None:
        with self._writing():
            if (mine := self.columns().get(column.name)) is not None:
                return mine.check_same(column, self.name)
            if column.name in self._table.schema.names:
                raise ConfigError(f"column {column.name} of {self.name} holds no vectors", fix="Choose another --column.")
            self._table.add_columns(arrow.column_fields(column))

    def known(self, column: str) -> dict[str, Known]:
        status = self.column(column).status
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
        mine = self.column(column)
        statuses = [replace(row, statuses={column: row.status}) for row in rows]
        table = arrow.to_table(statuses, [mine])
        with self._writing():
            self._forget_other_vectors(rows, mine)
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(table, on_bad_vectors="null")  # LanceDB takes a missing vector for a bad one

    def _forget_other_vectors(self, rows: Sequence[Row], mine: Column) -> None:
        """Clear what other columns hold of videos whose content has changed. A kill after this loses nothing that was still true."""
        others = [other for other in self.columns().values() if other.name != mine.name]
        if not others:
            return
        digests = {row.id: row.digest for row in rows if row.digest}
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
        wanted = [self.column(name) for name in columns]
        status = [f"{column.status} = '{OK}'" for column in wanted] or [f"status = '{OK}'"]
        condition = self._condition(where, status if only_ok else [])
        query = self._table.search().select([*FIXED, *(name for column in wanted for name in (column.name, column.status))])
        query = query.where(condition) if condition else query
        with self._reading():
            for batch in query.to_batches(batch_size=batch_size):
                yield from arrow.to_rows(batch, wanted)

    def get(self, row_id: str, columns: Sequence[str] = ()) -> Row | None:
        if not _ID.fullmatch(row_id):
            return None
        return next(self.rows(where=f"id = '{row_id}'", columns=columns), None)

    def search(
        self, vector: Vector, column: str, top: int = NEAREST, *, where: str | None = None, exact: bool = False
    ) -> list[tuple[Row, float]]:
        mine = self.searchable(column, vector)
        condition = self._condition(where, [f"{mine.status} = '{OK}'"])
        query = self._table.search(vector, vector_column_name=column).distance_type("cosine").where(condition, prefilter=True)
        query = query.select([*FIXED, "_distance"]).limit(top)
        query = query.bypass_vector_index() if exact else query.refine_factor(REFINE)
        with self._reading():
            batch = query.to_arrow()
        distances = batch.column("_distance").to_pylist()
        return [(row, max(0.0, distance)) for row, distance in zip(arrow.to_rows(batch, []), distances, strict=True)]

    def build_index(self, column: str) -> Built:
        mine = self.searchable(column)
        num_rows = self.count(f"{mine.status} = '{OK}'")
        if num_rows < WORTH_AN_INDEX:
            return Built("exact", num_rows, 1.0)
        with self._writing():
            config = importlib.import_module("lancedb.index").IvfSq(distance_type="cosine")
            self._table.create_index(column, config=config, replace=True)
        return Built("IVF_SQ", num_rows, self.recall(column))

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
        with _failures(f"cannot write {self.name}", self.name), _turn(self._lock, self.name):
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
    with ExitStack() as held:
        try:
            held.enter_context(holding(lock, range(CREATION, CREATION + 1), f"the table {name}", wait_s=_WAIT_S))
        except CacheError as error:
            fix = "Wait for it, then run the same command again: it goes on where it was."
            raise StjepaError(f"another process has been writing the table {name} for {_WAIT_S:g} s", fix=fix) from error
        yield


@contextmanager
def _failures(what: str, place: str) -> Iterator[None]:
    """Turn what LanceDB raises into one sentence."""
    try:
        with storage_errors(place):
            yield
    except _FAILURES as error:
        if "No space left" in str(error):
            fix = "Free some space, then run the same command again: it goes on where it was."
            raise StjepaError(f"{what}: the disk is full", fix=fix) from error
        raise StjepaError(f"{what}: {_first_line(error)}") from error


def _library() -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise NotReadyError("LanceDB is not installed", fix=how_to_install(extra="search")) from error
    return lancedb


def lance_rows(place: str, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of any Lance table, those of `columns` that it has.

    Raises:
        ConfigError: There is no such table.
        StjepaError: It cannot be read.
    """
    folder, name = split_place(place)
    if not is_folder(location(folder) / f"{name}{_SUFFIX}"):
        raise ConfigError("there is no table at this place", got=place)
    lancedb = _library()
    with _failures(f"{place} cannot be read", place):
        table = lancedb.connect(folder).open_table(name)
        wanted = [each for each in table.schema.names if each in columns]
        if len(wanted) < len(columns):
            yield dict.fromkeys(table.schema.names)
        for batch in table.search().select(wanted).to_batches():
            yield from batch.to_pylist()


def _among(ids: Any) -> str:
    """Return the condition that an id is one of these; ids are digests, and anything else is none."""
    known = [each for each in ids if _ID.fullmatch(each)]
    return "id IN (" + ", ".join(f"'{each}'" for each in known) + ")" if known else "FALSE"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


plugin = LanceIndex
