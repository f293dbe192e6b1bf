"""What to embed: files, folders, globs, URLs, and tables with a column of URIs, as one list of videos without repetition."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stjepa_cli.core.errors import ConfigError, StjepaError
from stjepa_cli.core.locations import Location, absolute, driver_errors, is_local, location
from stjepa_cli.data.datasets.folder import SUFFIXES
from stjepa_cli.search.arrow import read_parquet
from stjepa_cli.search.indexes.lancedb import lance_rows
from stjepa_cli.search.reading import Item

URI_COLUMN = "uri"
TABLES = (".csv", ".parquet", ".lance")

_MAGIC = frozenset("*?[")


def list_items(sources: Sequence[str], *, uri_column: str = URI_COLUMN, center: str | None = None, limit: int | None = None) -> list[Item]:
    """List the videos of sources in their order, each once, or once for each of its moments.

    Args:
        sources: Files, folders (searched below, too), globs, URLs of either, and tables: `.csv`, `.parquet`, `.lance`.
        uri_column: Column of a table with paths or URLs; relative paths count from the folder of the table.
        center: Moment that a window is around, in seconds, or the column of the tables that holds it.
        limit: Greatest number of videos.

    Raises:
        ConfigError: There is no such source, it holds no videos, or a table lacks a column.
        NotReadyError: The driver of a URL, or the package that reads a table, is missing.
        StjepaError: A source cannot be read.
    """
    found: dict[Item, None] = {}
    moment = _seconds(center)
    for source in sources:
        for item in _items(source, uri_column, center if moment is None else None, moment):
            found[item] = None
            if limit is not None and len(found) == limit:
                return list(found)
    return list(found)


def _items(source: str, uri_column: str, center_column: str | None, moment: float | None) -> Iterator[Item]:
    suffix = os.path.splitext(source.rstrip("/"))[1].lower()
    if suffix in TABLES:
        yield from _table_items(source, suffix, uri_column, center_column, moment)
        return
    if center_column is not None:
        raise ConfigError("the centre of a window is a number of seconds, or a column of a table", got=center_column)
    for place in _places(source):
        yield Item(str(absolute(place)), moment)


# ------------------------------------------------------------------------------------------------ files and folders


def _places(source: str) -> list[Location]:
    place = location(source)
    with _reading(source):
        found = _search(place, source)
    if found is None:
        raise ConfigError("there is no such video, folder or table", got=source)
    if not found:
        raise ConfigError("there are no videos at this place", got=source, expected="files that end in " + ", ".join(SUFFIXES))
    return sorted(found, key=str)


def _search(place: Location, source: str) -> list[Location] | None:
    """Return the videos at a place, or None if there is no such place; a file is taken whatever its name."""
    if place.is_dir():
        return [each for each in place.rglob("*") if each.name.lower().endswith(SUFFIXES) and each.is_file()]
    if os.path.lexists(place) if is_local(place) else place.exists():
        return [place]
    return _globbed(place) if _MAGIC & set(source) else None


def _globbed(place: Location) -> list[Location]:
    if is_local(place):
        return [Path(name) for name in glob.glob(str(place), recursive=True) if name.lower().endswith(SUFFIXES)]
    protocol = str(place).partition("://")[0]
    names = place.fs.glob(place.path)
    return [location(f"{protocol}://{name.lstrip('/')}") for name in names if name.lower().endswith(SUFFIXES)]


# ------------------------------------------------------------------------------------------------------------ tables


def _table_items(source: str, suffix: str, uri_column: str, center_column: str | None, moment: float | None) -> Iterator[Item]:
    place = location(source)
    rows = _rows(place, suffix, [column for column in (uri_column, center_column) if column is not None])
    for number, row in enumerate(rows, start=1):
        for column in (uri_column, center_column):
            if column is not None and column not in row:
                expected = "one of " + ", ".join(map(str, row))
                raise ConfigError(f"{source} has no such column", got=column, expected=expected, fix="Name it with `--uri-column`.")
        uri = row[uri_column]
        if not uri:
            continue
        center = moment if center_column is None else _seconds(str(row[center_column] or ""))
        if center_column is not None and center is None:
            raise ConfigError(f"{source}, row {number}: column {center_column} is no number of seconds", got=repr(row[center_column]))
        yield Item(_resolved(str(uri), place), center)


def _rows(place: Location, suffix: str, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    with _reading(str(place)):
        exists = place.exists()
    if not exists:
        raise ConfigError("there is no such table", got=str(place))
    if suffix == ".csv":
        return _csv_rows(place)
    return lance_rows(str(place), columns) if suffix == ".lance" else read_parquet(place, columns)


def _resolved(uri: str, table: Location) -> str:
    """Return a path of a table as one that counts from anywhere."""
    place = location(uri)
    return str(absolute(table.parent / uri)) if is_local(place) and not place.is_absolute() else str(place)


def _csv_rows(place: Location) -> Iterator[Mapping[str, Any]]:
    try:
        with driver_errors(), place.open("r", encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    except (OSError, ValueError, csv.Error) as error:
        raise StjepaError(f"{place} cannot be read as CSV", got=error) from error


@contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        with driver_errors():
            yield
    except OSError as error:
        raise StjepaError(f"{source} cannot be read", got=error) from error


def _seconds(text: str | None) -> float | None:
    """Return a number of seconds, or None if the text is none."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
