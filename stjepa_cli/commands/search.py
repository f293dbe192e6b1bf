"""`stjepa search`: find the videos of a table that are most like a video, a row or a vector."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stjepa_cli.commands import console, options
from stjepa_cli.core.progress import Progress
from stjepa_cli.core.runtime import Runtime

if TYPE_CHECKING:
    from stjepa_cli.search.find import Found

HELP = """Find the videos of a table that are most like a video, a row, or a vector.

Example: stjepa search table clip.mp4 --html found.html"""


@dataclass(frozen=True)
class _Shown:
    """A search, and the page that was written about it.

    Attributes:
        found: The search.
        page: The page, or None.
        missing: Number of videos that the page cannot show.
    """

    found: Found
    page: Path | None
    missing: int


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("search", help=HELP)(search)


def search(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="LanceDB folder or folder/name; with --pgvector the name of a table.")],
    query: Annotated[str, typer.Argument(metavar="QUERY", help="Video file or URL, id of a row, or .npy file.")],
    column: options.Column = None,
    top: Annotated[int, typer.Option(min=1, max=10_000, help="Number of results.")] = 10,
    where: options.Where = None,
    html: Annotated[
        Path | None, typer.Option(metavar="PAGE", help="Also write a page with short loops of what was found.", show_default="no page")
    ] = None,
    pgvector: options.Pgvector = None,
    model: Annotated[str | None, typer.Option(help="Model of the column, if it has moved.", show_default="that of the column")] = None,
    workers: options.Workers = 4,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> _Shown:
        from stjepa_cli.search.find import find
        from stjepa_cli.search.indexes.base import open_index
        from stjepa_cli.search.pages.found import write_found

        runtime = Runtime(device, workers, progress=progress)
        with open_index(options.table_place(table, pgvector)) as index:
            found = find(index, query, column=column, top=top, where=where, model=model, runtime=runtime)
        chosen = {"--column": column, "--top": top, "--where": where, "--html": html, "--model": model}
        chosen["--pgvector"] = pgvector and "DSN"
        given = [part for name, value in chosen.items() if value is not None for part in (name, str(value))]  # a DSN may hold a password
        again = shlex.join(["stjepa", "search", table, query, *given])
        missing = 0 if html is None else write_found(html, found, again, workers=workers, progress=progress)
        return _Shown(found, html, missing)

    console.run_command(call, render=_show, as_json=as_json, payload=_payload)


def _payload(shown: _Shown) -> dict[str, object]:
    page = None if shown.page is None else str(shown.page)
    return {**shown.found.to_json(), "page": page, "not_shown": shown.missing}


def _show(shown: _Shown) -> None:
    from stjepa_cli.search.pages.previews import times_of

    found = shown.found
    rows = [(i, f"{hit.distance:.4f}", hit.row.uri, times_of(hit.row), hit.row.id[:8]) for i, hit in enumerate(found.hits, 1)]
    caption = (
        f"{found.column.model}, column {found.column.name} of {found.table}; cosine distance; searched in {1000 * found.seconds:.0f} ms"
    )
    console.show_table(f"Nearest to {found.query.name}", ("", "distance", "video", "seconds", "id"), rows, caption=caption)
    if not rows:
        console.say("No row fits. Ask with another condition, or embed more videos.")
    if shown.page is not None:
        missing = f" {shown.missing} videos cannot be read and have a placeholder." if shown.missing else ""
        console.say(f"Next: open {shown.page} in a browser.{missing}")
