"""`stjepa duplicates` and `stjepa map`: all vectors of a table against each other."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stjepa_cli.commands import console, options
from stjepa_cli.core.progress import Progress
from stjepa_cli.core.runtime import Runtime

if TYPE_CHECKING:
    from stjepa_cli.search.overview.gathered import Duplicates
    from stjepa_cli.search.pages.vector_map import Mapped

MOST_GROUPS, MOST_NAMES = 20, 3
Table = Annotated[str, typer.Argument(metavar="TABLE", help="LanceDB folder or folder/name; with --pgvector the name of a table.")]


@dataclass(frozen=True)
class _Shown:
    """Near-duplicates, and the page that was written about them.

    Attributes:
        found: The near-duplicates.
        page: The page, or None.
        missing: Number of videos that the page cannot show.
    """

    found: Duplicates
    page: Path | None
    missing: int


def register(app: typer.Typer) -> None:
    """Add both commands to the program."""
    duplicates_help = "Group the near-duplicates of a table.\n\nExample: stjepa duplicates table --threshold 0.95 --html duplicates.html"
    app.command("duplicates", help=duplicates_help)(duplicates)
    map_help = "Draw all vectors of a table in two dimensions, with a picture of each video.\n\nExample: stjepa map table --html map.html"
    app.command("map", help=map_help)(vector_map)


def duplicates(
    table: Table,
    threshold: Annotated[float, typer.Option(help="Least cosine similarity of two near-duplicates, at most 1.")] = 0.95,
    column: options.Column = None,
    where: options.Where = None,
    same_video: Annotated[bool, typer.Option("--same-video", help="Compare the parts of one video with each other too.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="PAGE", help="Also write a page with loops of each group.", show_default="no page")
    ] = None,
    pgvector: options.Pgvector = None,
    workers: options.Workers = 4,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> _Shown:
        from stjepa_cli.search.indexes.base import open_index
        from stjepa_cli.search.overview.gathered import find_duplicates, gather
        from stjepa_cli.search.pages.groups import write_groups

        with open_index(options.table_place(table, pgvector)) as index:
            gathered = gather(index, column, where, progress)
        found = find_duplicates(gathered, threshold, same_video=same_video, progress=progress)
        chosen = {"--threshold": f"{threshold:g}", "--column": column, "--where": where, "--html": html, "--pgvector": pgvector and "DSN"}
        again = _command("duplicates", table, chosen, ["--same-video"] if same_video else [])
        missing = 0 if html is None else write_groups(html, found, again, workers=workers, progress=progress)
        return _Shown(found, html, missing)

    console.run_command(call, render=_show_duplicates, as_json=as_json, payload=_payload)


def vector_map(
    table: Table,
    html: Annotated[Path, typer.Option(metavar="PAGE", help="HTML page to write.")] = Path("map.html"),
    color: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column that decides the colours, or `folder`: the folder that a file is in.")
    ] = "folder",
    method: Annotated[str, typer.Option(help="pca, or umap (needs stjepa[umap]).")] = "pca",
    thumbnails: Annotated[int, typer.Option(min=0, help="Most pictures in the page; each takes about 2 kB.")] = 2000,
    column: options.Column = None,
    where: options.Where = None,
    pgvector: options.Pgvector = None,
    workers: options.Workers = 4,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> Mapped:
        from stjepa_cli.search.indexes.base import open_index
        from stjepa_cli.search.overview.gathered import gather
        from stjepa_cli.search.pages.vector_map import write_map

        runtime = Runtime("cpu", workers, progress=progress)
        with open_index(options.table_place(table, pgvector)) as index:
            gathered = gather(index, column, where, progress)
        chosen = {"--html": html, "--color": color, "--method": method, "--thumbnails": thumbnails}
        again = _command("map", table, {**chosen, "--column": column, "--where": where, "--pgvector": pgvector and "DSN"}, [])
        return write_map(html, gathered, again, method=method, color=color, most_thumbnails=thumbnails, runtime=runtime)

    console.run_command(call, render=_show_map, as_json=as_json)


def _command(name: str, table: str, chosen: Mapping[str, object], flags: list[str]) -> str:
    """Return a command to type; a DSN, which may hold a password, is not in it."""
    given = [part for option, value in chosen.items() if value is not None for part in (option, str(value))]
    return shlex.join(["stjepa", name, table, *given, *flags])


def _payload(shown: _Shown) -> dict[str, object]:
    page = None if shown.page is None else str(shown.page)
    return {**shown.found.to_json(), "page": page, "not_shown": shown.missing}


def _show_duplicates(shown: _Shown) -> None:
    found = shown.found
    rows = []
    for number, group in enumerate(found.groups[:MOST_GROUPS], 1):
        names = [member.row.uri for member in group[:MOST_NAMES]] + (["..."] if len(group) > MOST_NAMES else [])
        rows.append((number, len(group), f"{max(member.similarity for member in group):.4f}", "\n".join(names)))
    if rows:
        console.show_table("Near-duplicates", ("group", "rows", "similarity", "videos"), rows)
    console.show_pairs(
        "Compared",
        {
            "rows": f"{found.rows:,} of {found.table}, column {found.column.name} ({found.column.model}), in {found.seconds:.1f} s",
            "groups": f"{len(found.groups):,} with a similarity of {found.threshold:g} or more"
            + (f"; the first {MOST_GROUPS} are shown, --json lists all" if len(found.groups) > MOST_GROUPS else ""),
            "superfluous": f"{found.superfluous:,} rows, if one of each group stays",
            **({"left out": f"{found.left_out:,} rows without a vector"} if found.left_out else {}),
        },
    )
    if shown.page is not None:
        missing = f" {shown.missing} videos cannot be read and have a placeholder." if shown.missing else ""
        console.say(f"Next: open {shown.page} in a browser.{missing}")


def _show_map(mapped: Mapped) -> None:
    pairs: dict[str, object] = {
        "page": f"{mapped.page} ({console.megabytes(mapped.bytes)})",
        "points": f"{mapped.points:,} of {mapped.table}, column {mapped.column} ({mapped.model})",
        "method": mapped.method + (f", {mapped.explained:.0%} of the variance" if mapped.explained is not None else ""),
        "colour": mapped.color,
        "pictures": f"{mapped.thumbnails:,} in the page" + (f"; {mapped.not_shown:,} videos cannot be read" if mapped.not_shown else ""),
    }
    if mapped.left_out:
        pairs["left out"] = f"{mapped.left_out:,} rows without a vector"
    console.show_pairs("Map", pairs)
    console.say(f"Next: open {mapped.page} in a browser.")
