"""A scoreboard for people: one encoder with all its figures, or several in one table, and under it what makes it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stjepa_cli.commands import console

if TYPE_CHECKING:
    from stjepa_cli.evaluation.compare import Comparison, ComparisonRow

MAX_SHOWN = 10


def show(board: Comparison) -> None:
    """Print it."""
    first = board.entries[0].results[0]
    split = "all" if len(board.entries[0].results) > 1 else first.split
    if len(board.entries) == 1:
        _show_one(board.entries[0], f"{first.dataset} split {split}: {first.checkpoint}")
    else:
        _show_many(board, f"{first.dataset} split {split}")
    _show_failed(board)
    results = [result for entry in board.entries for result in entry.results]
    digests = [(result, ", ".join(f"{name} {digest[:16]}" for name, digest in result.digests.items())) for result in results]
    console.show_lines("Made by", [board.command])
    console.show_lines("From", [f"{result.checkpoint}, split {result.split}: {told}" for result, told in digests])


def _show_one(entry: ComparisonRow, title: str) -> None:
    deviations, rows = entry.deviations(), []
    for name, figures in entry.figures().items():
        for figure, value in figures.items():
            spread = f"{deviations[name][figure]:.4f}" if deviations else None
            rows.append((name, figure, f"{value:.4f}", spread, entry.interval(name) if figure == next(iter(figures)) else None))
    shown = [row if deviations else (*row[:3], row[4]) for row in rows]
    columns = (
        ("protocol", "figure", "value", "deviation", "95 % of videos") if deviations else ("protocol", "figure", "value", "95 % of videos")
    )
    console.show_table(title, columns, shown, caption=_caption(entry))


def _show_many(board: Comparison, title: str) -> None:
    columns, rows = board.table()
    console.show_table(title, columns, rows, caption=_caption(board.entries[0]) + "; in brackets: 95 % of videos drawn again")


def _caption(entry: ComparisonRow) -> str:
    result = entry.results[0]
    train = ", ".join(f"{part.num_train:,}" for part in entry.results)
    test = ", ".join(f"{len(part.ids):,}" for part in entry.results)
    failed = {side: sum(failure.side == side for part in entry.results for failure in part.failed) for side in ("train", "test")}
    left_out = (
        f"{failed['train']:,} train and {failed['test']:,} test videos failed and are left out" if any(failed.values()) else "none failed"
    )
    return (
        f"{train} train and {test} test videos, {left_out}; chance {result.chance:.4f}; "
        f"features: {result.pool} of tokens, clips {result.clips} {result.sampling}"
        + (f", block {result.layer}" if result.layer else "")
        + "".join(f"; {name}: clips {clips}" for name, clips in result.own_clips.items())
        + (f"; {result.remark}" if result.remark else "")
    )


def _show_failed(board: Comparison) -> None:
    results = [result for entry in board.entries for result in entry.results]
    failed = list(dict.fromkeys((failure.id, failure.side, failure.error) for result in results for failure in result.failed))
    if failed:
        more = len(failed) - MAX_SHOWN
        console.show_table(
            "Videos that could not be used", ("video", "side", "why"), failed[:MAX_SHOWN], caption=f"and {more} more" if more > 0 else None
        )
