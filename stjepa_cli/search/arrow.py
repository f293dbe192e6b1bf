"""Rows as Arrow tables, and Parquet files of them: without a Python object per number. The one user of pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stjepa_cli.core.errors import ConfigError, NotReadyError, StjepaError, how_to_install, storage_errors
from stjepa_cli.core.files import replacing
from stjepa_cli.core.locations import Location, RemoteFile, is_local
from stjepa_cli.search.records import FIXED, Column, Row, Vector

_FLOATS = ("duration_seconds", "fps", "start_seconds", "end_seconds")
_INTS = ("width", "height")


def library() -> Any:
    """Return the module pyarrow.

    Raises:
        NotReadyError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise NotReadyError("pyarrow is not installed", fix=how_to_install(extra="search")) from error
    return pyarrow


# -------------------------------------------------------------------------------------------------------- to Arrow


def fixed_schema() -> Any:
    """Return the schema of the columns that every table has."""
    arrow = library()
    types = dict.fromkeys(_FLOATS, arrow.float64()) | dict.fromkeys(_INTS, arrow.int32())
    return arrow.schema([arrow.field(name, types.get(name, arrow.string())) for name in FIXED])


def column_fields(column: Column) -> list[Any]:
    """Return the fields of a column of vectors, which carries its origin as metadata, and of its statuses."""
    arrow = library()
    vector = arrow.list_(arrow.float32(), column.dim)
    kind = vector if column.kind == "clip" else arrow.list_(vector)
    return [arrow.field(column.name, kind, metadata=column.metadata()), arrow.field(column.status, arrow.string())]


def columns_of(schema: Any) -> dict[str, Column]:
    """Return the columns of vectors that a schema describes, by name."""
    fields = [field for field in schema if field.metadata and b"model_digest" in field.metadata]
    found = [Column.of({key.decode(): value.decode() for key, value in field.metadata.items()}) for field in fields]
    return {column.name: column for column in found}


def check_schema(schema: Any, name: str) -> None:
    """Refuse a table that lacks a column that every table has.

    Raises:
        ConfigError: The message names what is missing.
    """
    missing = [each for each in FIXED if each not in schema.names]
    if missing:
        fix = "Name another table."
        raise ConfigError(f"{name} is a table of another schema", got="no " + ", ".join(missing), expected=", ".join(FIXED), fix=fix)


def to_table(rows: Sequence[Row], columns: Sequence[Column]) -> Any:
    """Return rows with their vectors of some columns as an Arrow table.

    Raises:
        ConfigError: A vector does not have the width of its column.
    """
    arrow = library()
    values: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in FIXED}
    fields = list(fixed_schema())
    for column in columns:
        fields += column_fields(column)
        values[column.name] = _array(arrow, column, [row.vectors_of(column) for row in rows])
        values[column.status] = [row.statuses.get(column.name) for row in rows]
    return arrow.table(values, schema=arrow.schema(fields))


def _array(arrow: Any, column: Column, vectors: Sequence[Vector | None]) -> Any:
    missing = arrow.array([vector is None for vector in vectors])
    if column.kind == "clip":
        whole = np.zeros((len(vectors), column.dim), np.float32)
        for i, vector in enumerate(vectors):
            if vector is not None:
                whole[i] = vector
        return arrow.FixedSizeListArray.from_arrays(whole.ravel(), column.dim, mask=missing)
    found = [np.asarray(vector, np.float32) for vector in vectors if vector is not None]
    flat = np.concatenate(found) if found else np.zeros((0, column.dim), np.float32)
    values = arrow.FixedSizeListArray.from_arrays(flat.ravel(), column.dim)
    ends = np.cumsum([0, *(0 if vector is None else len(vector) for vector in vectors)])
    return arrow.ListArray.from_arrays(arrow.array(ends, arrow.int32()), values, mask=missing)


# ------------------------------------------------------------------------------------------------------ from Arrow


def to_rows(batch: Any, columns: Sequence[Column]) -> Iterator[Row]:
    """Yield the rows of an Arrow batch or table with their vectors of some columns."""
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


# --------------------------------------------------------------------------------------------------------- Parquet


def read_parquet(place: Location, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a Parquet file, those of `columns` that it has; a remote one is read by its parts.

    Raises:
        StjepaError: It cannot be read.
    """
    arrow = library()
    try:
        with place.open("rb") if is_local(place) else RemoteFile(place) as source, arrow.parquet.ParquetFile(source) as file:
            wanted = [name for name in file.schema_arrow.names if name in columns]
            if len(wanted) < len(columns):
                yield dict.fromkeys(file.schema_arrow.names)
            for batch in file.iter_batches(columns=wanted):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise StjepaError(f"{place} cannot be read as Parquet", got=error) from error


def write_parquet(path: Path, rows: Iterator[Row], columns: Sequence[Column], *, batch_size: int = 1024) -> int:
    """Write rows to a Parquet file, whole or not at all, and return their number; `batch_size` of them are in memory.

    Raises:
        StjepaError: The file cannot be written.
    """
    arrow = library()
    schema = arrow.schema([*fixed_schema(), *(field for column in columns for field in column_fields(column))])
    written, waiting = 0, list[Row]()
    with storage_errors(path), replacing(path) as part, arrow.parquet.ParquetWriter(part, schema) as writer:
        for row in rows:
            waiting.append(row)
            if len(waiting) == batch_size:
                writer.write_table(to_table(waiting, columns))
                written, waiting = written + len(waiting), []
        writer.write_table(to_table(waiting, columns))
    return written + len(waiting)
