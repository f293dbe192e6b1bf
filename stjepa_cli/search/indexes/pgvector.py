"""A table of vectors in PostgreSQL with the extension pgvector.

```text
postgresql://user@host/database          the table `videos`
postgresql://user@host/database#clips    the table `clips`; `host=... dbname=...#clips` is understood as well
```
A column of kind `clip` is a `vector(D)`, one of kind `frames` or `tokens` an array of them; where its vectors come from is its comment, as
JSON. Values travel as parameters, names are checked and quoted, and whatever reads does so in a READ ONLY transaction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.search.filters import Value, fields, parse
from stjepa_cli.search.indexes._postgres import add_extension, as_literal, connect, failures, quoted, register_vector
from stjepa_cli.search.indexes.base import NEAREST, Built, Index
from stjepa_cli.search.records import FIXED, OK, Column, Known, Row, Vector

TABLE = "videos"
WORTH_AN_INDEX = 20_000
"""Number of vectors from which an approximate search is faster than an exact one."""
WIDEST_INDEX = 2000
"""Channels that pgvector indexes at most."""

_TYPES = dict.fromkeys(("duration_seconds", "fps", "start_seconds", "end_seconds"), "double precision")
_TYPES |= dict.fromkeys(("width", "height"), "integer")
_PLACE = re.compile(r"(?P<dsn>.*?)(?:#(?P<table>[^#]*))?", re.DOTALL)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,57}")
_ATTRIBUTES = """
SELECT a.attname, col_description(a.attrelid, a.attnum) FROM pg_attribute a
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""


class PgvectorIndex(Index):
    """A table in PostgreSQL."""

    def __init__(self, connection: Any, dsn: str, table: str) -> None:
        self._connection, self._dsn = connection, dsn
        self._table, self._name = quoted(table), table
        self.name = f"{table} of {connection.info.dbname}"

    @classmethod
    def open(cls, place: str, *, create: bool = False) -> Self:
        """Open a table: `DSN` for the table `videos`, `DSN#name` for another."""
        dsn, table = split_place(place)
        connection = connect(dsn)
        try:
            index = cls(connection, dsn, table)
            index._prepare(create)
        except BaseException:
            connection.close()
            raise
        return index

    def columns(self) -> dict[str, Column]:
        found = (json.loads(comment) for _, comment in self._attributes() if comment and comment.startswith('{"name"'))
        return {column["name"]: Column.of(column) for column in found}

    def add_column(self, column: Column) -> None:
        with self._writing() as connection:
            if (mine := self.columns().get(column.name)) is not None:
                return mine.check_same(column, self.name)
            name, kind = quoted(column.name), f"vector({column.dim})" + ("" if column.kind == "clip" else "[]")
            comment = as_literal(json.dumps(column.metadata()), connection)
            connection.execute(f"ALTER TABLE {self._table} ADD COLUMN {name} {kind}, ADD COLUMN {quoted(column.status)} text")
            connection.execute(f"COMMENT ON COLUMN {self._table}.{name} IS {comment}")
        return None

    def known(self, column: str) -> dict[str, Known]:
        mine = self.column(column)
        asked = f"SELECT id, digest, strategy, duration_seconds FROM {self._table} WHERE {quoted(mine.status)} = '{OK}'"
        with self._reading() as connection:
            return {key: Known(*others) for key, *others in connection.execute(asked)}

    def upsert(self, rows: Sequence[Row], column: str) -> None:
        mine = self.column(column)
        others = [name for other in self.columns().values() if other.name != column for name in (other.name, other.status)]
        written = [*FIXED, mine.name, mine.status]
        taken = [f"{quoted(name)} = EXCLUDED.{quoted(name)}" for name in written if name != "id"]
        kept = [f"{quoted(n)} = CASE WHEN EXCLUDED.digest IN (old.digest, '') THEN old.{quoted(n)} END" for n in others]  # else NULL
        asked = (
            f"INSERT INTO {self._table} AS old ({', '.join(map(quoted, written))}) VALUES ({', '.join(['%s'] * len(written))}) "
            f"ON CONFLICT (id) DO UPDATE SET {', '.join(taken + kept)}"
        )
        values = [[*map(_storable, row.fixed().values()), _sent(row, mine), row.status] for row in rows]
        values.sort(key=lambda each: str(each[0]))  # two processes that lock the same rows in one order do not wait for each other
        with self._writing(alone=False) as connection:
            connection.cursor().executemany(asked, values)

    def delete(self, ids: Sequence[str]) -> None:
        with self._writing(alone=False) as connection:
            connection.execute(f"DELETE FROM {self._table} WHERE id = ANY(%s)", [list(ids)])

    def rows(
        self, *, where: str | None = None, columns: Sequence[str] = (), batch_size: int = 1024, only_ok: bool = False
    ) -> Iterator[Row]:
        wanted = [self.column(name) for name in columns]
        status = [f"{quoted(column.status)} = '{OK}'" for column in wanted] or [f"status = '{OK}'"]
        condition, values = self._condition(where, status if only_ok else [])
        names = [*FIXED, *(name for column in wanted for name in (column.name, column.status))]
        asked = f"SELECT {', '.join(map(quoted, names))} FROM {self._table} WHERE {condition}"
        connection = connect(self._dsn)  # of its own, so that the caller may write between two rows
        try:
            with self._reading(connection), connection.cursor(name="rows", binary=True) as cursor:
                cursor.itersize = batch_size
                cursor.execute(asked, values)
                for found in cursor:
                    yield _row(found, wanted)
        finally:
            connection.close()

    def get(self, row_id: str, columns: Sequence[str] = ()) -> Row | None:
        wanted = [self.column(name) for name in columns]
        names = [*FIXED, *(name for column in wanted for name in (column.name, column.status))]
        asked = f"SELECT {', '.join(map(quoted, names))} FROM {self._table} WHERE id = %s"
        with self._reading() as connection:
            found = connection.execute(asked, [_storable(row_id)], binary=True).fetchone()
        return None if found is None else _row(found, wanted)

    def search(
        self, vector: Vector, column: str, top: int = NEAREST, *, where: str | None = None, exact: bool = False
    ) -> list[tuple[Row, float]]:
        mine = self.searchable(column, vector)
        condition, values = self._condition(where, [f"{quoted(mine.status)} = '{OK}'"])
        asked = (
            f"SELECT {', '.join(map(quoted, FIXED))}, {quoted(column)} <=> %s AS distance FROM {self._table} "
            f"WHERE {condition} ORDER BY distance LIMIT %s"
        )
        with self._reading() as connection:
            if exact or not self._filters_while_it_searches(connection, where):
                connection.execute("SET LOCAL enable_indexscan = off")
            connection.execute(f"SET LOCAL hnsw.ef_search = {max(100, min(1000, 2 * top))}")
            found = connection.execute(asked, [np.asarray(vector, np.float32), *values, top], binary=True).fetchall()
        return [(_row(each, []), float(np.clip(np.nan_to_num(each[-1], nan=1.0), 0, 2))) for each in found]

    def build_index(self, column: str) -> Built:
        mine = self.searchable(column)
        status, name = quoted(mine.status), quoted(f"{self._name[:20]}_{column[:30]}_hnsw")
        with self._reading() as connection:
            (num_rows,) = connection.execute(f"SELECT count(*) FROM {self._table} WHERE {status} = '{OK}'").fetchone()
        if num_rows < WORTH_AN_INDEX or mine.dim > WIDEST_INDEX:
            return Built("exact", num_rows, 1.0)
        with self._writing() as connection:
            connection.execute("SET LOCAL maintenance_work_mem = '512MB'")
            connection.execute(f"DROP INDEX IF EXISTS {name}")
            of = f"USING hnsw ({quoted(column)} vector_cosine_ops) WHERE {status} = '{OK}'"
            connection.execute(f"CREATE INDEX {name} ON {self._table} {of}")
            connection.execute(f"ANALYZE {self._table}")
        return Built("HNSW", num_rows, self.recall(column))

    def count(self, where: str | None = None) -> int:
        condition, values = self._condition(where, [])
        with self._reading() as connection:
            return int(connection.execute(f"SELECT count(*) FROM {self._table} WHERE {condition}", values).fetchone()[0])

    def close(self) -> None:
        self._connection.close()

    # ------------------------------------------------------------------------------------------------------- inside

    def _prepare(self, create: bool) -> None:
        """Check the table, after creating it if that was asked for, and teach the connection the type `vector`."""
        if create:
            with self._writing(alone=True) as connection:
                add_extension(connection)
                fields = ", ".join(f"{quoted(name)} {_TYPES.get(name, 'text')}" for name in FIXED)
                connection.execute(f"CREATE TABLE IF NOT EXISTS {self._table} ({fields}, PRIMARY KEY (id))")
        with self._reading():
            names = [name for name, _ in self._attributes()]
        if not names:
            fix = "Make it with `stjepa embed SOURCE --model MODEL --pgvector DSN`."
            raise ConfigError("there is no table at this place", got=self.name, fix=fix)
        missing = [name for name in FIXED if name not in names]
        if missing:
            raise ConfigError(f"{self.name} is a table of another schema", got="no " + ", ".join(missing), fix="Name another table.")
        with failures("the server has no pgvector"):
            register_vector(self._connection)

    def _attributes(self) -> list[tuple[str, str | None]]:
        """Return name and comment of each column of the table, in their order; none if there is no table."""
        with failures(f"{self.name} cannot be read"):
            found: list[tuple[str, str | None]] = self._connection.execute(_ATTRIBUTES, [self._table]).fetchall()
        return found

    def _condition(self, where: str | None, others: Sequence[str]) -> tuple[str, list[Value]]:
        """Join a condition with others; return SQL and its parameters."""
        if where is None:
            return " AND ".join(others) or "TRUE", []
        typed, values = parse(where, fields(self.columns().values())).parameter_sql()
        return " AND ".join(f"({part})" for part in (typed, *others)), values

    def _filters_while_it_searches(self, connection: Any, where: str | None) -> bool:
        """Return True if an index can go on until enough rows match a condition, which pgvector does from 0.8 on."""
        if where is None:
            return True
        known = connection.execute("SELECT count(*) FROM pg_settings WHERE name = 'hnsw.iterative_scan'").fetchone()[0]
        if known:
            connection.execute("SET LOCAL hnsw.iterative_scan = 'strict_order'")
        return bool(known)

    @contextmanager
    def _reading(self, connection: Any = None) -> Iterator[Any]:
        """Yield a connection inside a transaction that cannot write."""
        used = self._connection if connection is None else connection
        with failures(f"{self.name} cannot be read"), used.transaction():
            used.execute("SET TRANSACTION READ ONLY")
            yield used

    @contextmanager
    def _writing(self, *, alone: bool = True) -> Iterator[Any]:
        """Yield the connection inside a transaction; `alone` if it changes the table itself, for which processes take turns."""
        with failures(f"cannot write {self.name}"), self._connection.transaction():
            if alone:
                self._connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"stjepa {self._name}"])
            yield self._connection


plugin = PgvectorIndex


def split_place(place: str) -> tuple[str, str]:
    """Split the place of a table into the DSN of its database and its name.

    Raises:
        ConfigError: A table cannot have this name.
    """
    found = _PLACE.fullmatch(place)
    assert found is not None
    table = found["table"] or TABLE
    if not _NAME.fullmatch(table):
        raise ConfigError("a table cannot have this name", got=repr(table), expected="letters, digits and underscores, at most 58")
    return found["dsn"], table


def join_place(dsn: str, table: str) -> str:
    """Return the place of a table, as `split_place` takes it."""
    return f"{dsn}#{table}"


def _storable(value: Any) -> Any:
    """Return a value as PostgreSQL stores it: its texts have no NUL."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


def _sent(row: Row, column: Column) -> Any:
    """Return the vectors of a row as they are sent, or None."""
    vector = row.vectors_of(column)
    if vector is None:
        return None
    numbers = np.ascontiguousarray(vector, np.float32)
    return numbers if column.kind == "clip" else list(numbers)


def _row(values: Sequence[Any], columns: Sequence[Column]) -> Row:
    """Return the row of the values of `FIXED` and of each column with its status."""
    fixed = dict(zip(FIXED, values, strict=False))
    fixed.pop("id")
    pairs = values[len(FIXED) :]
    vectors = {column.name: _received(pairs[2 * i], column) for i, column in enumerate(columns)}
    return Row(**fixed, vectors=vectors, statuses={column.name: pairs[2 * i + 1] for i, column in enumerate(columns)})


def _received(value: Any, column: Column) -> Vector | None:
    if value is None:
        return None
    if column.kind == "clip":
        return np.asarray(value.to_numpy(), np.float32)
    return np.stack([each.to_numpy() for each in value]).astype(np.float32) if value else np.zeros((0, column.dim), np.float32)
