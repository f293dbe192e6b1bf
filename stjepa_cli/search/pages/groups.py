"""The page of near-duplicates: each group as short loops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stjepa_cli.core.files import write_atomic
from stjepa_cli.core.progress import Progress
from stjepa_cli.search.overview.gathered import Duplicates, Member
from stjepa_cli.search.pages.previews import Preview, shown_loops, tile
from stjepa_cli.viz import html

MOST_LOOPS = 120
MOST_OF_A_GROUP = 12


def write_groups(path: Path, found: Duplicates, command: str, *, workers: int, progress: Progress) -> int:
    """Write the page of near-duplicates.

    Args:
        path: HTML file to write.
        found: The groups.
        command: Command that repeats it, for the foot of the page.
        workers: Videos that are decoded at the same time.
        progress: Receives progress.

    Returns:
        The number of videos that cannot be shown; each has a placeholder.
    """
    shown = _shown(found)
    previews = shown_loops([member.row for group in shown for member in group], workers, progress)
    write_atomic(path, html.page("Near-duplicates", _body(found, shown, previews, command)).encode(errors="backslashreplace"))
    return sum(preview.picture is None for preview in previews)


def _shown(found: Duplicates) -> list[tuple[Member, ...]]:
    """Return the first members of the first groups: as many as a page can hold."""
    groups, room = [], MOST_LOOPS
    for group in found.groups:
        part = group[:MOST_OF_A_GROUP]
        if len(part) > room:
            break
        groups.append(part)
        room -= len(part)
    return groups


def _body(found: Duplicates, shown: list[tuple[Member, ...]], previews: list[Preview], command: str) -> Iterator[str]:
    yield html.heading("Near-duplicates", 1)
    if not found.groups:
        yield html.paragraph(f"None: no two of {found.rows:,} rows have a cosine similarity of {found.threshold:g} or more.", big=True)
    else:
        yield html.paragraph(f"{len(found.groups):,} groups; {found.superfluous:,} rows could go if one of each group stays.", big=True)
    yield html.paragraph(
        f"{found.rows:,} rows of {found.table}, column {found.column.name} ({found.column.model}). A group is connected by pairs with a "
        f"cosine similarity of {found.threshold:g} or more; below each picture is the similarity to the closest other one of the group.",
        quiet=True,
    )
    left = iter(previews)
    for number, (group, part) in enumerate(zip(found.groups, shown, strict=False), 1):
        yield html.heading(f"Group {number}: {len(group):,} rows")
        yield html.gallery([tile(member.row, next(left), f"similarity {member.similarity:.4f}") for member in part])
        if len(group) > len(part):
            yield html.paragraph(f"The first {len(part)} are shown.", quiet=True)
    if len(found.groups) > len(shown):
        yield html.paragraph(f"The first {len(shown):,} groups are shown; `--json` lists all of them.", quiet=True)
    gone = [preview.error for preview in previews if preview.error]
    if gone:
        yield html.folded(f"{len(gone)} cannot be shown", map(html.paragraph, gone))
    if shown:
        rows = [
            (member.row.uri, str(number), f"{member.similarity:.4f}", member.row.id)
            for number, part in enumerate(shown, 1)
            for member in part
        ]
        yield html.folded("Paths and ids", [html.table(("video", "group", "similarity", "id"), rows)])
    yield html.heading("The same again")
    yield html.command(command)
