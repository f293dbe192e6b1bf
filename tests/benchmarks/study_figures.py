"""Draw the pictures of docs/results.md: held-out loss against kNN, and accuracy over the clock with the teacher cached and online.

    python -m tests.benchmarks.study_figures LIST --work DIR [--appearance REPORT] --out docs/images

LIST and DIR are those of the study; REPORT is the `report.json` of `bench_appearance`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from stjepa_cli.viz.charts import axis, number
from tests.benchmarks.study import BATCH_SIZE, grouped

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 380, 70, 34, 330
RIGHT = 520
# the palette of Okabe and Ito, which colour-blind readers can tell apart
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#8c564b")
STYLE = (
    "text{font:14px sans-serif;fill:#1f2328}.grid{stroke:#d0d7de}@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#444c56}}"
)

Points = Sequence[tuple[float, float]]


def chart(title: str, labels: tuple[str, str], series: Mapping[str, Points], *, joined: bool) -> str:
    """Return an SVG file of points (x, y) by the name of their series, joined by lines or not."""
    xs = axis([x for points in series.values() for x, _ in points])
    ys = axis([y for points in series.values() for _, y in points], zero=True)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + xs.place(x) * (RIGHT - LEFT), BOTTOM - ys.place(y) * (BOTTOM - TOP)

    parts = [f'<text x="8" y="18" font-weight="bold">{escape(title)}</text>']
    for tick in ys.ticks:
        y = place(xs.low, tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in xs.ticks:
        x = place(tick, ys.low)[0]
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{BOTTOM}" y2="{BOTTOM + 5}"/>')
        parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 20}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 42}" text-anchor="middle">{escape(labels[0])}</text>')
    parts.append(f'<text transform="translate(18 {(TOP + BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{escape(labels[1])}</text>')
    for i, (name, points) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        places = [place(*point) for point in points]
        if joined:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity="0.8"/>' for x, y in places]
        y = TOP + 20 * i + 8
        parts.append(f'<circle cx="{RIGHT + 18}" cy="{y - 5}" r="5" fill="{colour}"/><text x="{RIGHT + 30}" y="{y}">{escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def loss_and_probe(rows: Mapping[str, list[dict[str, Any]]]) -> str:
    """Draw the held-out loss of each checkpoint against its kNN accuracy, a series per recipe, with Pearson's r."""
    series: dict[str, Points] = {}
    for label, results in rows.items():
        points = [(point["val_loss"], point["knn"]) for result in results for point in result["curve"] if "val_loss" in point]
        r = statistics.correlation([x for x, _ in points], [y for _, y in points])
        series[f"{label.replace(', mask', '')}  r = {r:.2f}"] = points
    title = "Held-out loss and kNN accuracy, checkpoints of 3 seeds, teacher: tiny VideoMAE"
    return chart(title, ("held-out loss", "kNN accuracy"), series, joined=False)


def equal_time(report: Mapping[str, Any], recipe: str = "dense") -> str:
    """Draw mean linear accuracy over CPU time, for targets from a cache and for a teacher in every step."""
    runs = [row for row in report["students"] if row["recipe"] == recipe]
    teacher, clips = report["teacher_seconds_per_clip"], report["clips"]
    cached, online = [], []
    for number_of, point in enumerate(runs[0]["curve"]):
        steps = point["step"]
        accuracy = statistics.mean(run["curve"][number_of]["linear"] for run in runs)
        train = statistics.mean(run["cpu_seconds"] / run["curve"][-1]["step"] for run in runs) * steps
        cached.append((clips * teacher + train, accuracy))
        online.append((steps * BATCH_SIZE * teacher + train, accuracy))
    end = cached[-1][0]
    shown = [point for point in online if point[0] <= end * 2.2]
    series: dict[str, Points] = {"cached": [(0.0, cached[0][1]), *cached], "online": shown}
    title = f"Linear probe over CPU seconds, DINOv2 ViT-S as teacher, recipe {recipe}"
    return chart(title, ("CPU seconds, cache included", "linear accuracy"), series, joined=True)


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("listing", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--appearance", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    groups = grouped(options.listing, options.work)
    name = next(group for group in groups if group.startswith("recipe, teacher: tiny VideoMAE"))
    (options.out / "loss_and_probe.svg").write_text(loss_and_probe(groups[name]))
    if options.appearance:
        (options.out / "equal_time.svg").write_text(equal_time(json.loads(options.appearance.read_text())))


if __name__ == "__main__":
    main()
