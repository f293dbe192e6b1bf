"""A map of points that shows a picture of each on hover and on tap: a canvas, its data, and the one script that pages may have.

Standard library only. Eight colours that people with any kind of colour vision can tell apart (after Okabe and Ito), times three shapes.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

SIZE = 4095  # steps of a coordinate: finer than any screen
NUM_COLOURS, NUM_SHAPES = 8, 3
MOST_GROUPS = NUM_COLOURS * NUM_SHAPES
STEPS = NUM_COLOURS - 1  # of an ordered scale

SCRIPT = (Path(__file__).parent / "assets" / "scatter.js").read_text(encoding="utf-8")
STYLE = """
.map,.legend{--p0:#0072b2;--p1:#d55e00;--p2:#009e73;--p3:#cc79a7;--p4:#b8860b;--p5:#56b4e9;--p6:#6b4fbb;--p7:#1f2933;--other:#9aa5b1;
--q0:#a6c8e4;--q1:#7fb0d8;--q2:#5a97ca;--q3:#397dba;--q4:#2063a3;--q5:#114a85;--q6:#08306b}
@media (prefers-color-scheme:dark){.map,.legend{--p0:#56b4e9;--p1:#ff8c42;--p2:#2bd4a4;--p3:#e8a3cd;--p4:#f5c542;--p5:#4f6be0;
--p6:#b39dff;--p7:#f3f4f6;--other:#6b7683;--q0:#2f5577;--q1:#3d6d97;--q2:#4f87b5;--q3:#68a1cf;--q4:#88bae2;--q5:#acd2f1;--q6:#d6ebff}}
.map{position:relative;border:1px solid var(--line);border-radius:8px;overflow:hidden;margin:10px 0}
.map canvas{display:block;width:100%;height:min(68vh,640px);min-height:300px;cursor:crosshair}
.map canvas:focus-visible{outline:3px solid var(--bar);outline-offset:-3px}
.map .zoom{position:absolute;right:8px;top:8px;display:flex;gap:4px}
.map .zoom button{min-width:40px;height:40px;font:1rem system-ui,sans-serif;border:1px solid var(--line);border-radius:6px;
background:var(--page);color:var(--ink);cursor:pointer;opacity:.92}
.map .card{position:absolute;width:168px;padding:7px;border-radius:8px;background:var(--page);border:1px solid var(--quiet);
box-shadow:0 3px 14px #0005;pointer-events:none;font-size:.82rem;line-height:1.3}
.map .card[hidden]{display:none}.map .card>img,.map .card .none{display:block;width:100%;aspect-ratio:4/3;object-fit:cover;
border-radius:4px;background:var(--code);margin-bottom:4px}.map .card .none{border:2px dotted var(--quiet);padding:8px;color:var(--quiet)}
.map .card b,.map .card span{display:block;overflow-wrap:anywhere}.map .card span{color:var(--quiet)}
.map .near{display:grid;grid-template-columns:repeat(4,1fr);gap:3px}
.map .near img{width:100%;aspect-ratio:1;object-fit:cover;border-radius:3px}
.legend{display:flex;flex-wrap:wrap;gap:6px;padding:0;margin:8px 0}
.legend button,.legend span{display:inline-flex;align-items:center;gap:6px;min-height:34px;padding:2px 10px;border-radius:17px;
font:.88rem system-ui,sans-serif;border:1px solid var(--line);background:var(--page);
color:var(--ink);max-width:100%;overflow-wrap:anywhere;text-align:left}
.legend button{cursor:pointer}.legend button[aria-pressed=true]{border-color:var(--ink);background:var(--code);font-weight:600}
.legend span:first-child{border:0;padding-left:0;color:var(--quiet)}
.legend svg{width:14px;height:14px;flex:none}.legend i{font-style:normal;color:var(--quiet)}
"""


@dataclass(frozen=True)
class Points:
    """Points of a map.

    Attributes:
        xy: Coordinates of each of the N points; any range, y upwards.
        names: Name of each point.
        notes: A second line for each point; may be empty.
        groups: Number of the legend's entry of each point; the number of entries for a point of none of them.
        legend: Names of the entries, at most 24; 7 if they are ordered.
        ordered: Whether the entries are steps of a scale, which get shades of one colour.
        near: Indices of the nearest points of each point, by what the map was drawn from; may be empty.
        thumbnails: WebP pictures by index of the point; empty bytes for a picture that could not be made.
        meaning: What the legend's entries are values of.
    """

    xy: Sequence[tuple[float, float]]
    names: Sequence[str]
    notes: Sequence[str]
    groups: Sequence[int]
    legend: Sequence[str]
    ordered: bool = False
    near: Sequence[Sequence[int]] = ()
    thumbnails: Mapping[int, bytes] = field(default_factory=dict)
    meaning: str = ""


def scatter(points: Points, alternative: str) -> str:
    """Return a map with its legend and its data. The page needs `STYLE` and `SCRIPT`.

    Args:
        points: The points.
        alternative: Text alternative of the map.
    """
    zoom = "".join(
        f'<button type="button" class="{kind}" aria-label="{label}">{sign}</button>'
        for kind, label, sign in (("in", "enlarge", "+"), ("out", "make smaller", "\N{MINUS SIGN}"), ("all", "show everything", "all"))
    )
    card = '<div class="card" hidden aria-live="polite"></div>'
    shown = f'<canvas tabindex="0" role="img" aria-label="{escape(alternative)}"></canvas>'
    data = json.dumps(_data(points), separators=(",", ":"), ensure_ascii=False)
    inert = data.replace("<", "\\u003c")  # no text of a file name can end the element
    return (
        f'<div class="map">{shown}<div class="zoom">{zoom}</div>{card}</div>{_legend(points)}'
        f'<script type="application/json" id="points">{inert}</script><noscript><p>The map needs JavaScript.</p></noscript>'
    )


def _data(points: Points) -> dict[str, object]:
    columns = list(zip(*points.xy, strict=True)) or [(), ()]
    x, y = (_scaled(values) for values in columns)
    rows: list[list[int]] = [[] for _ in range(len(points.legend) + 1)]
    for i, group in enumerate(points.groups):
        rows[group].append(i)
    pictures = {str(i): b64encode(data).decode() for i, data in points.thumbnails.items()}
    return {
        "size": SIZE,
        "x": x,
        "y": [SIZE - value for value in y],
        "names": list(points.names),
        "notes": list(points.notes),
        "rows": rows,
        "legend": len(points.legend),
        "ordered": points.ordered,
        "near": [list(near) for near in points.near],
        "thumbnails": pictures,
    }


def _scaled(values: Sequence[float]) -> list[int]:
    low, high = min(values, default=0.0), max(values, default=0.0)
    return [round((value - low) / (high - low) * SIZE) if high > low else SIZE // 2 for value in values]


def _legend(points: Points) -> str:
    counts = [0] * (len(points.legend) + 1)
    for group in points.groups:
        counts[group] += 1
    head = f"<span>{escape(points.meaning)}</span>" if points.meaning else ""
    entries = [
        f'<button type="button" aria-pressed="false">{_swatch(i, points.ordered)}{escape(name)} <i>{counts[i]:,}</i></button>'
        for i, name in enumerate(points.legend)
    ]
    if counts[-1] and points.legend:
        entries.append(f"<span>{_drawn('var(--other)', 0)}others <i>{counts[-1]:,}</i></span>")
    return f'<div class="legend">{head}{"".join(entries)}</div>' if entries else ""


def _swatch(number: int, ordered: bool) -> str:
    colour = f"var(--{'q' if ordered else 'p'}{number % NUM_COLOURS})"
    return _drawn(colour, 0 if ordered else number // NUM_COLOURS)


def _drawn(colour: str, shape: int) -> str:
    marks = ('<circle cx="7" cy="7" r="6"/>', '<rect x="1.5" y="1.5" width="11" height="11"/>', '<path d="M7 .5 13.5 13H.5Z"/>')
    return f'<svg viewBox="0 0 14 14" aria-hidden="true" style="fill:{colour}">{marks[shape % NUM_SHAPES]}</svg>'
