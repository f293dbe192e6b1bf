"""The contract of an index: a table of rows and vectors in a database that is opened by its place."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.search.records import Column, Known, Row, Vector

NEAREST = 10

_DSN = re.compile(r"postgres(ql)?://|\s*\w+\s*=.*#\w*$|#")


@dataclass(frozen=True)
class Built:
    """What building an index of a column has come to.

    Attributes:
        kind: Name of the index in the words of the database, or `exact` where searching everything is faster.
        rows: Number of vectors that it covers.
        recall: Share of the true 10 nearest rows that it finds, between 0 and 1, measured on rows of the table.
    """

    kind: str
    rows: int
    recall: float


class Index(ABC):
    """A table of vectors. A module of this folder exposes its class as `plugin`.

    An index may be open in several processes. What one has upserted the others see at their next call.

    Attributes:
        name: The table, as messages call it.
    """

    name: str

    @classmethod
    @abstractmethod
    def open(cls, place: str, *, create: bool = False) -> Self:
        """Open a table.

        Args:
            place: Folder, or connection string, and the name of a table; `split_place` of the plug-in says how they are joined.
            create: Create the table if there is none.

        Raises:
            ConfigError: There is no such table, or it has another schema.
            NotReadyError: A package is missing, or the server does not answer.
        """

    @abstractmethod
    def columns(self) -> dict[str, Column]:
        """Return the columns of vectors by name, in the order in which they were added."""

    @abstractmethod
    def add_column(self, column: Column) -> None:
        """Add a column of vectors, empty; one that exists stays as it is.

        Raises:
            ConfigError: The column exists and holds vectors of another model, width, kind, pooling or strategy.
        """

    @abstractmethod
    def known(self, column: str) -> dict[str, Known]:
        """Return what is done: the rows whose status in a column is `ok`, by id. Failed rows are not done."""

    @abstractmethod
    def upsert(self, rows: Sequence[Row], column: str) -> None:
        """Write rows and their vectors of one column, all or none of them.

        A row that exists is replaced; what it holds in other columns stays, unless its digest has changed: then those vectors are of
        another video, and they and their statuses become null. An empty digest is no change: the file could not be reached.
        `Row.status` becomes the status of the column. A second process may upsert the same rows at the same time: no row is ever there
        twice.

        Args:
            rows: Rows without repetition; each has a vector of `column`, or None if its status is `error`.
            column: A column of the table.

        Raises:
            ConfigError: There is no such column, or a vector has another width.
            StjepaError: The table cannot be written; none of the rows is.
        """

    @abstractmethod
    def delete(self, ids: Sequence[str]) -> None:
        """Delete rows; ids that are not there are ignored."""

    @abstractmethod
    def rows(
        self, *, where: str | None = None, columns: Sequence[str] = (), batch_size: int = 1024, only_ok: bool = False
    ) -> Iterator[Row]:
        """Yield rows in no particular order; `batch_size` of them are in memory.

        Args:
            where: Condition in SQL over the columns that every table has, such as `duration_seconds > 3`.
            columns: Columns whose vectors are read.
            batch_size: Rows per request.
            only_ok: Leave out rows whose status is not `ok` in all of `columns`, or, without any, in the row itself.

        Raises:
            ConfigError: The condition is not one, or there is no such column.
        """

    @abstractmethod
    def get(self, row_id: str, columns: Sequence[str] = ()) -> Row | None:
        """Return the row of an id with its vectors of `columns`, or None."""

    @abstractmethod
    def search(
        self, vector: Vector, column: str, top: int = NEAREST, *, where: str | None = None, exact: bool = False
    ) -> list[tuple[Row, float]]:
        """Find the rows whose vectors are nearest to one, among those whose status in the column is `ok`.

        Args:
            vector: float32 (D,), of any length but zero.
            column: A column of kind `clip`.
            top: Greatest number of rows.
            where: Condition in SQL, as in `rows`; it is applied before the search.
            exact: Compare with every row, even where the column has an index.

        Returns:
            Rows without vectors and their cosine distances in [0, 2], nearest first.

        Raises:
            ConfigError: There is no such column, it does not hold one vector per row, the width is another, or the condition is none.
        """

    @abstractmethod
    def build_index(self, column: str) -> Built:
        """Build an approximate index of a column where it pays, and measure what it finds. An index that exists is replaced.

        Raises:
            ConfigError: There is no such column, or it does not hold one vector per row.
        """

    @abstractmethod
    def count(self, where: str | None = None) -> int:
        """Return the number of rows, those with an error included.

        Raises:
            ConfigError: The condition is not one.
        """

    def column(self, name: str) -> Column:
        """Return a column of vectors.

        Raises:
            ConfigError: There is none of this name; the message lists those that exist.
        """
        columns = self.columns()
        if name not in columns:
            expected = "one of " + ", ".join(columns) if columns else None
            raise ConfigError(f"{self.name} has no column of vectors of this name", got=name, expected=expected)
        return columns[name]

    def searchable(self, name: str, vector: Vector | None = None) -> Column:
        """Return a column that can be searched, and for this vector if there is one.

        Raises:
            ConfigError: There is no such column, it does not hold one vector per row, or the vector has another width.
        """
        column = self.column(name)
        if column.kind != "clip":
            raise ConfigError(f"column {name} holds {column.kind}, and a search needs one vector per clip", fix="Choose another --column.")
        if vector is not None and vector.shape != (column.dim,):
            got, expected = f"a vector of shape {tuple(vector.shape)}", f"({column.dim},)"
            raise ConfigError(f"column {name} has another width", got=got, expected=expected)
        return column

    def tidy(self) -> None:  # noqa: B027
        """Tidy up after many writes, for databases that do not do so by themselves."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the database."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def recall(self, column: str, *, top: int = NEAREST, num_queries: int = 50) -> float:
        """Return the share of the true `top` nearest rows that a search finds, between 0 and 1; 1 for a table without vectors.

        Args:
            column: A column of kind `clip`.
            top: Number of nearest rows.
            num_queries: Number of rows that are searched for, spread over the table.
        """
        found = wanted = 0
        for vector in self._queries(column, num_queries):
            exact = {row.id for row, _ in self.search(vector, column, top, exact=True)}
            found += len(exact & {row.id for row, _ in self.search(vector, column, top)})
            wanted += len(exact)
        return found / wanted if wanted else 1.0

    def _queries(self, column: str, num_queries: int) -> list[Vector]:
        """Return the vectors of rows spread over a table: those with the smallest ids, which are digests."""
        ids = sorted(self.known(column))[:num_queries]
        found = (self.get(row_id, (column,)) for row_id in ids)
        vectors: list[Mapping[str, Vector | None]] = [row.vectors for row in found if row is not None]
        return [vector for each in vectors if (vector := each[column]) is not None]


def open_index(place: str, *, create: bool = False) -> Index:
    """Open a table: in PostgreSQL if its place is a connection string (`postgresql://...`, `host=...#table`), else in a LanceDB folder.

    Raises:
        ConfigError: There is no such table, or it has another schema.
        NotReadyError: A package is missing, or the server does not answer.
    """
    name = "pgvector" if _DSN.match(place) else "lancedb"
    index: Index = plugins.load("search.indexes", name).open(place, create=create)
    return index
