"""The map of a table: all vectors in two dimensions, with a picture of each on hover and on tap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.search.filters import fields
from stjepa_cli.search.overview.gathered import Gathered
from stjepa_cli.search.overview.similar import METHODS, nearest, plane
from stjepa_cli.search.pages.previews import described, folder_of, thumbnails
from stjepa_cli.search.records import Row
from stjepa_cli.viz import html
from stjepa_cli.viz.scatter import MOST_GROUPS, SCRIPT, STEPS, STYLE, Points, scatter

FOLDER = "folder"
NUM_NEAR = 4


@dataclass(frozen=True)
class Mapped:
    """What drawing a map has come to.

    Attributes:
        table: Name of the table.
        column: Name of the column of vectors.
        model: Name of its model.
        method: `pca` or `umap`.
        explained: Fraction of the variance that both axes hold, or None for UMAP.
        color: What the colours stand for.
        points: Number of points.
        left_out: Number of rows without a vector.
        thumbnails: Number of pictures in the page.
        not_shown: Number of videos that cannot be read and have a placeholder.
        page: HTML file.
        bytes: Its size.
    """

    table: str
    column: str
    model: str
    method: str
    explained: float | None
    color: str
    points: int
    left_out: int
    thumbnails: int
    not_shown: int
    page: Path
    bytes: int


@dataclass(frozen=True)
class _Colouring:
    """Groups of rows that get a colour each.

    Attributes:
        groups: Number of the group of each row; `len(names)` for the rest.
        names: Names of the groups.
        ordered: Whether the groups are steps of a scale.
    """

    groups: list[int]
    names: list[str]
    ordered: bool = False


def write_map(
    path: Path,
    gathered: Gathered,
    command: str,
    *,
    method: str = "pca",
    color: str = FOLDER,
    most_thumbnails: int = 2000,
    runtime: Runtime = Runtime(),
) -> Mapped:
    """Draw a map of a table.

    Args:
        path: HTML file to write.
        gathered: The rows and their vectors.
        command: Command that repeats it, for the foot of the page.
        method: `pca` or `umap`.
        color: A column of the table other than vectors, or `folder`, the name of the folder that a file is in.
        most_thumbnails: Most pictures in the page; a picture takes about 2 kB.
        runtime: Decoding threads and progress.

    Raises:
        ConfigError: There is no such method or column.
        NotReadyError: umap-learn is not installed.
        StjepaError: The page cannot be written.
    """
    if method not in METHODS:
        raise ConfigError("unknown method", got=repr(method), expected="one of " + ", ".join(METHODS))
    colouring = colours_of(gathered.rows, color)
    if method == "umap":
        runtime.progress.note("UMAP compiles its code before it starts, which takes up to a minute")
    laid = plane(gathered.vectors, method)
    pictures, missing = _pictures(gathered.rows, most_thumbnails, runtime)
    notes = [" · ".join([*described(row)[1:], *_value(row, color)]) for row in gathered.rows]
    points = Points(
        [(x, y) for x, y in laid.points.tolist()],
        [described(row)[0] for row in gathered.rows],
        notes,
        colouring.groups,
        colouring.names,
        colouring.ordered,
        nearest(gathered.vectors, NUM_NEAR).tolist(),
        pictures,
        color,
    )
    mapped = Mapped(
        table=gathered.table,
        column=gathered.column.name,
        model=gathered.column.model,
        method=method,
        explained=laid.explained,
        color=color,
        points=len(gathered.rows),
        left_out=gathered.left_out,
        thumbnails=len(pictures) - missing,
        not_shown=missing,
        page=path,
        bytes=0,
    )
    page = html.page(f"Map of {gathered.table}", _body(mapped, points, command), style=STYLE, script=SCRIPT).encode(
        errors="backslashreplace"
    )
    write_atomic(path, page)
    return Mapped(**{**vars(mapped), "bytes": len(page)})


def colours_of(rows: Sequence[Row], color: str) -> _Colouring:
    """Group rows by a column: the most frequent texts, or ranges of numbers with as many rows each.

    Raises:
        ConfigError: There is no such column.
    """
    types = fields() | {FOLDER: str}
    if color not in types:
        raise ConfigError("nothing to colour by", got=color, expected="one of " + ", ".join(types))
    values: list[Any] = [folder_of(row) if color == FOLDER else getattr(row, color) for row in rows]
    if types[color] is str:
        return _by_text(["" if value is None else str(value) for value in values])
    return _by_number(values)


def _by_text(values: Sequence[str]) -> _Colouring:
    counts = Counter(values)
    names = sorted(counts, key=lambda name: (-counts[name], name))[:MOST_GROUPS]
    numbers = {name: i for i, name in enumerate(names)}
    return _Colouring([numbers.get(value, len(names)) for value in values], [name or "none" for name in names])


def _by_number(values: Sequence[float | None]) -> _Colouring:
    known = sorted(value for value in values if value is not None)
    if not known:
        return _Colouring([0] * len(values), [])
    edges = sorted({known[min(len(known) - 1, i * len(known) // STEPS)] for i in range(STEPS)})  # the least value of each step
    ends = [*edges[1:], known[-1]]
    names = [f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}" for low, high in zip(edges, ends, strict=True)]
    groups = [len(edges) if value is None else sum(value >= edge for edge in edges) - 1 for value in values]
    return _Colouring(groups, names, ordered=True)


def _value(row: Row, color: str) -> list[str]:
    """Return what the colour of a row stands for, as a note below its picture."""
    value = folder_of(row) if color == FOLDER else getattr(row, color)
    if value in (None, ""):
        return []
    return [str(value) if color == FOLDER else f"{color} {value:.4g}" if isinstance(value, float) else f"{color} {value}"]


def _pictures(rows: Sequence[Row], most: int, runtime: Runtime) -> tuple[dict[int, bytes], int]:
    """Return pictures by index of the row, empty where there is none, and their number; rows are drawn by their ids, which are digests."""
    chosen = sorted(sorted(range(len(rows)), key=lambda i: rows[i].id)[:most])
    pictures: dict[int, bytes] = {}
    with runtime.progress.task("thumbnails", total=len(chosen), unit="videos") as task:
        for i, preview in zip(chosen, thumbnails((rows[i] for i in chosen), runtime.workers), strict=True):
            pictures[i] = b"" if preview.picture is None else preview.picture[1]
            task.advance()
    return pictures, sum(not data for data in pictures.values())


def _body(mapped: Mapped, points: Points, command: str) -> Iterator[str]:
    yield html.heading(f"Map of {mapped.points:,} videos" if mapped.points > 1 else "Map of one video", 1)
    yield html.paragraph(
        "Videos that the model finds alike are close. Point at one or tap it to see it, with lines to those that are nearest by all "
        "channels. A colour in the legend makes its videos stand out; Ctrl and the wheel, or + and \N{MINUS SIGN}, enlarge the map."
    )
    yield scatter(points, f"Map of {mapped.points:,} videos by likeness, coloured by {mapped.color}. Arrow keys go from one to the next.")
    if mapped.explained is None:
        how = "UMAP (arXiv 1802.03426): neighbours are kept together; distances between far groups mean nothing."
    else:
        how = f"The two principal components hold {mapped.explained:.0%} of the variance, so points can look closer than they are."
    yield html.paragraph(how, quiet=True)
    yield html.pairs(
        {
            "table": mapped.table,
            "column": f"{mapped.column} ({mapped.model})",
            "colour": mapped.color,
            "videos without a vector, left out": f"{mapped.left_out:,}",
            "pictures in this page": f"{mapped.thumbnails:,} of {mapped.points:,}"
            + (f"; {mapped.not_shown:,} videos cannot be read" if mapped.not_shown else ""),
        }
    )
    yield html.heading("The same again")
    yield html.command(command)
