"""The page of a search: what was searched for, and what is most like it, as short loops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.progress import Progress
from stjepa_cli.search.find import Found
from stjepa_cli.search.pages.previews import Preview, described, shown_loops, tile, times_of
from stjepa_cli.search.records import Row
from stjepa_cli.viz import html

MOST_LOOPS = 60


def write_found(path: Path, found: Found, command: str, *, workers: int, progress: Progress) -> int:
    """Write the page of a search.

    Args:
        path: HTML file to write.
        found: The search.
        command: Command that repeats it, for the foot of the page.
        workers: Videos that are decoded at the same time.
        progress: Receives progress.

    Returns:
        The number of videos that cannot be shown; each has a placeholder.
    """
    rows = _rows(found)
    previews = shown_loops(rows, workers, progress)
    title = f"Videos like {described(found.query.row)[0] if found.query.row else found.query.name}"
    write_atomic(path, html.page(title, _body(title, found, previews, command)).encode(errors="backslashreplace"))
    return sum(preview.picture is None for preview in previews)


def _body(title: str, found: Found, previews: list[Preview], command: str) -> Iterator[str]:
    yield html.heading(title, 1)
    condition = f", where {found.where}" if found.where else ""
    yield html.paragraph(
        f"The {len(found.hits)} nearest rows of {found.table} by column {found.column.name} ({found.column.model}, "
        f"{found.column.dim} channels){condition}; 0 is the same direction, 1 is unrelated.",
        quiet=True,
    )
    left = list(previews)
    if found.query.row is not None:
        yield html.gallery([tile(found.query.row, left.pop(0), "searched for")])
    if not found.hits:
        yield html.paragraph("No row fits. Ask with another condition, or embed more videos.")
    shown = [
        tile(hit.row, preview, f"{i}: distance {hit.distance:.4f}")
        for i, (hit, preview) in enumerate(zip(found.hits, left, strict=False), 1)
    ]
    yield html.gallery(shown)
    if len(found.hits) > MOST_LOOPS:
        yield html.paragraph(f"The first {MOST_LOOPS} are shown; the table below names all of them.", quiet=True)
    gone = [preview.error for preview in previews if preview.error]
    if gone:
        yield html.folded(f"{len(gone)} cannot be shown", map(html.paragraph, gone))
    rows = [(hit.row.uri, f"{hit.distance:.4f}", times_of(hit.row), hit.row.id) for hit in found.hits]
    yield html.folded("Paths and ids", [html.table(("video", "distance", "seconds", "id"), rows)])
    yield html.heading("The same again")
    yield html.command(command)


def _rows(found: Found) -> list[Row]:
    """Return the rows that the page shows: what was searched for, if it is a video, and the first results."""
    asked = [] if found.query.row is None else [found.query.row]
    return [*asked, *(hit.row for hit in found.hits[:MOST_LOOPS])]
