"""Tables of a comparison for people: one encoder with all metrics, or several encoders, with the command that repeats them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stjepa_cli.commands import console
from stjepa_cli.commands.streams import output

if TYPE_CHECKING:
    from stjepa_cli.evaluation.compare import Comparison, ComparisonRow

MAX_FAILED = 10
INTERVAL = "95 % bootstrap interval"


def show(comparison: Comparison) -> None:
    """Print a comparison."""
    first = comparison.rows[0].results[0]
    split = "all" if len(comparison.rows[0].results) > 1 else first.split
    if len(comparison.rows) == 1:
        _show_one(comparison.rows[0], f"{first.dataset} split {split}: {first.encoder}")
    else:
        _show_several(comparison, f"{first.dataset} split {split}")
    _show_failed(comparison)
    results = [result for row in comparison.rows for result in row.results]
    digests = [(result, ", ".join(f"{name} {digest[:16]}" for name, digest in result.digests.items())) for result in results]
    console.show_lines("Command that repeats this", [comparison.command])
    for path in comparison.files if output.verbose else ():
        console.say(f"wrote {path}")
    console.show_lines("Digests", [f"{result.encoder}, split {result.split}: {digest}" for result, digest in digests])


def _show_one(row: ComparisonRow, title: str) -> None:
    deviations = row.deviations()
    columns = ("protocol", "metric", "value", *(("deviation",) if deviations else ()), INTERVAL)
    lines = []
    for name, metrics in row.metrics().items():
        for i, (metric, value) in enumerate(metrics.items()):
            deviation = (f"{deviations[name][metric]:.4f}",) if deviations else ()
            lines.append((name, metric, f"{value:.4f}", *deviation, row.interval(name) if i == 0 else None))
    console.show_table(title, columns, lines, caption=_caption(row) + _saw_labels(row))


def _show_several(comparison: Comparison, title: str) -> None:
    columns, lines = comparison.table()
    console.show_table(title, columns, lines, caption=f"{_caption(comparison.rows[0])}; in brackets: {INTERVAL}")
    title, caption = f"Differences from {comparison.rows[0].encoder}", f"on the same videos; in brackets: paired {INTERVAL}"
    console.show_table(title, *comparison.difference_table(), caption=caption)


def _caption(row: ComparisonRow) -> str:
    result = row.results[0]
    train = ", ".join(f"{part.num_train:,}" for part in row.results)
    test = ", ".join(f"{len(part.ids):,}" for part in row.results)
    failed = {side: sum(failure.side == side for part in row.results for failure in part.failed) for side in ("train", "test")}
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


def _saw_labels(row: ComparisonRow) -> str:
    return f"; the encoder saw labels: {row.results[0].saw_labels}"


def _show_failed(comparison: Comparison) -> None:
    results = [result for row in comparison.rows for result in row.results]
    failed = list(dict.fromkeys((failure.id, failure.side, failure.error) for result in results for failure in result.failed))
    if failed:
        more = len(failed) - MAX_FAILED
        columns, caption = ("video", "side", "reason"), f"and {more} more" if more > 0 else None
        console.show_table("Videos that could not be used", columns, failed[:MAX_FAILED], caption=caption)
