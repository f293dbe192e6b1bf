"""What the benchmarks share: peers measured in turns on one core, medians of rounds, a table or JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Row = Mapping[str, object]


def pin_to_one_core() -> int | None:
    """Keep this process on one core, and torch on one thread; returns the core, None where a system cannot."""
    import torch

    torch.set_num_threads(1)
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def interleave(contenders: Mapping[str, Callable[[], object]], rounds: int, *, warmup: int = 1) -> dict[str, list[float]]:
    """Time contenders in turns, so that a slow minute of the machine is everyone's.

    Args:
        contenders: what to call, by name.
        rounds: times that each is measured; the order is reversed every second round.
        warmup: rounds before, which do not count.

    Returns:
        Seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-warmup, rounds):
        for name in list(contenders) if number % 2 else reversed(list(contenders)):
            start = time.perf_counter()
            contenders[name]()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, peer: str) -> float:
    """How many times as fast `ours` is as `peer`: the median over rounds of the ratio within each round."""
    return statistics.median(theirs / mine for mine, theirs in zip(seconds[ours], seconds[peer], strict=True))


def table(rows: Sequence[Row]) -> str:
    """Rows with the same keys as aligned text under a header."""
    if not rows:
        return ""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--quick` and `--json`, which every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="small and short: shows that it runs, not how fast")
    made.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return made


def report(title: str, rows: Sequence[Row], *, as_json: bool, notes: Sequence[str] = ()) -> None:
    """Print what was measured."""
    if as_json:
        print(json.dumps({"title": title, "rows": list(rows), "notes": list(notes)}, default=str))
    else:
        print("\n".join([title, "", table(rows), "", *notes]).rstrip() + "\n")


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return "-" if value is None else str(value)
