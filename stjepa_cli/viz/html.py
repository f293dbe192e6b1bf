"""Self-contained HTML pages: one file without network access, readable on a phone and on a dark screen. Nearly all have no script.

Standard library only. Every argument not named `..._html` is plain text and is escaped here.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from stjepa_cli.viz.charts import STYLE as CHART_STYLE

# a browser that obeys this policy loads nothing, whatever the page contains
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1f2933;--quiet:#52606d;--line:#d9dde3;--code:#f1f3f6;
--bar:#0b62c4;--link:#0b57b0;--right:#15803d;--wrong:#c2410c}
@media (prefers-color-scheme:dark){:root{--page:#14181d;--ink:#e4e7eb;--quiet:#a6b1bd;--line:#3a424d;--code:#1f252c;
--bar:#60a5fa;--link:#8ab8ff;--right:#4ade80;--wrong:#fb923c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:16px;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:.3em 0;overflow-wrap:anywhere}h2{font-size:1.25rem;margin:2em 0 .4em}
h3{font-size:1.05rem;margin:1.6em 0 .3em;overflow-wrap:anywhere}
p,figcaption,caption{max-width:75ch}.quiet,figcaption,caption{color:var(--quiet);font-size:.94rem}
.charts{display:grid;gap:20px;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))}
figure{margin:0}.wide{max-width:620px;margin-bottom:20px}svg.chart{display:block;width:100%;height:auto}
table{border-collapse:collapse;margin:.6em 0}th,td{padding:4px 14px 4px 0;text-align:left;vertical-align:top;overflow-wrap:anywhere}
tr{border-bottom:1px solid var(--line)}th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
caption{text-align:left;padding-bottom:4px}.pairs th{overflow-wrap:normal;font-weight:400;color:var(--quiet)}
.scroll{overflow-x:auto}.scroll th,.scroll td{white-space:nowrap}pre{background:var(--code);padding:10px 12px;white-space:pre-wrap;
overflow-wrap:anywhere;border-radius:6px}
code{font:.9rem ui-monospace,monospace}
.strip{display:grid;gap:4px;margin:2px 0 12px}.strip img{width:100%;display:block;border-radius:3px}
.strip span{font-size:.8rem;color:var(--quiet);text-align:center}
.label{position:sticky;left:0;display:inline-block;max-width:min(88vw,75ch)}
@media (max-width:600px){.scroll table{font-size:.82rem}.scroll th,.scroll td{padding-right:9px}}
.big{font-size:1.15rem;font-weight:600}
.wrapped{table-layout:fixed;width:100%;max-width:820px}.wrapped th,.wrapped td{padding-right:10px;font-weight:400}
.wrapped tr:first-child th{font-weight:600}.wrapped .n{white-space:normal}.wrapped .n+td,.wrapped .n+th{padding-left:14px}
@media (max-width:600px){.wrapped{font-size:.88rem}}@media (min-width:700px){.pairs th{white-space:nowrap}}
.bar{height:7px;margin:3px 0 4px;border-radius:3px;background:var(--line)}
.bar i{display:block;height:100%;border-radius:3px;background:var(--bar)}
details{margin:.4em 0}summary{cursor:pointer;color:var(--link);padding:6px 0}
.picture{display:block;max-width:100%;height:auto;border-radius:6px}
@media (prefers-color-scheme:dark){.picture.drawn{filter:invert(.92) hue-rotate(180deg)}}
.tiles{display:grid;gap:6px;margin:4px 0 18px;grid-template-columns:repeat(var(--few),minmax(0,1fr))}
.gallery{display:grid;gap:14px 10px;margin:4px 0 18px;grid-template-columns:repeat(auto-fill,minmax(min(46%,190px),1fr))}
.gallery .tile img,.gallery .tile .none{aspect-ratio:4/3;background:var(--code)}
@media (min-width:700px){.tiles{grid-template-columns:repeat(var(--all),minmax(0,1fr))}}
.tile img,.tile .none{display:block;width:100%;aspect-ratio:1;object-fit:cover;border-radius:6px}
.tile .none{border:2px dotted var(--quiet);padding:8px;font-size:.8rem;color:var(--quiet)}.tile.asks img{border:4px solid var(--line)}
.tile.right img{border:4px solid var(--right)}.tile.wrong img{border:4px dashed var(--wrong)}
.tile figcaption{font-size:.82rem;line-height:1.3;overflow-wrap:anywhere}.tile b{color:var(--ink)}
.clip{margin:0 0 22px}.panels img{display:block;width:100%;border-radius:6px}.heads{display:grid;
grid-template-columns:repeat(var(--n),1fr);gap:4px}
.heads span{font-size:.85rem;color:var(--quiet);padding-bottom:2px}.clip figcaption{color:var(--ink);padding-top:4px}
.clips{display:grid;gap:8px 28px;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr))}
.verdict{font-size:1.12rem;max-width:75ch;padding:8px 14px;border-left:5px solid var(--line);background:var(--code);border-radius:4px}
.verdict.right{border-color:var(--right)}.verdict.wrong{border-color:var(--wrong)}
.scale{display:flex;gap:10px;align-items:center;white-space:nowrap}.scale i{display:block;width:200px;height:14px;border-radius:3px}
"""


@dataclass(frozen=True)
class Tile:
    """A picture with lines of text below it.

    Attributes:
        picture: Media type and bytes, or None if there is no picture.
        alternative: Text alternative; empty if the lines below say it already.
        words: Lines below the picture, the first in bold type.
        right: Whether the answer shown is right; None if the tile is not an answer.
        still: Media type and bytes of a picture for readers who ask their system for less motion; None if the picture does not move.
    """

    picture: tuple[str, bytes] | None
    alternative: str
    words: tuple[str, ...] = ()
    right: bool | None = None
    still: tuple[str, bytes] | None = None


def page(title: str, body_html: Iterable[str], *, style: str = "", script: str = "", reload_seconds: int | None = None) -> str:
    """Return a whole document.

    Args:
        title: Title of the window.
        body_html: Parts of the page.
        style: Style sheet of parts that few pages have.
        script: The one script that the page may run: the policy names its digest, so whatever else the page contains is not run.
        reload_seconds: Seconds after which a browser loads the page again, or None.
    """
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"{POLICY}; script-src 'sha256-{digest}'" if script else POLICY
    again = "" if reload_seconds is None else f'<meta http-equiv="refresh" content="{reload_seconds}">'
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{again}<title>{escape(title)}</title>\n<style>{STYLE}{CHART_STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(body_html)
        + (f"\n<script>{script}</script>" if script else "")
        + "\n</body></html>\n"
    )


def paragraph(text: str, *, quiet: bool = False, big: bool = False) -> str:
    """Return a paragraph of text."""
    kind = ' class="quiet"' if quiet else ' class="big"' if big else ""
    return f"<p{kind}>{escape(text)}</p>"


def heading(text: str, level: int = 2) -> str:
    """Return a heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def command(text: str) -> str:
    """Return a block with a command to type."""
    return f"<pre><code>{escape(text)}</code></pre>"


def links(targets: Mapping[str, str]) -> str:
    """Return a list of links to files beside the page, given as text and target."""
    return "<ul>" + "".join(f'<li><a href="{escape(quote(target))}">{escape(text)}</a></li>' for text, target in targets.items()) + "</ul>"


def pairs(values: Mapping[str, object], *, caption: str = "") -> str:
    """Return a table of names and values, one pair per line."""
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>' for name, value in values.items())
    return f'<table class="pairs">{_caption(caption)}{rows}</table>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "") -> str:
    """Return a table whose first column is text and whose other columns are numbers; it scrolls if it is too wide."""
    kind = [""] + [' class="n"'] * (len(columns) - 1)
    head = "".join(f'<th scope="col"{k}>{escape(name)}</th>' for name, k in zip(columns, kind, strict=True))
    body = "".join("<tr>" + "".join(f"<td{k}>{escape(cell)}</td>" for cell, k in zip(row, kind, strict=True)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>{_caption(caption)}<tr>{head}</tr>{body}</table></div>'


def wrapped(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    widths: Sequence[int],
    numbers: Sequence[int],
    bars: Sequence[float] = (),
    caption: str = "",
) -> str:
    """Return a table as wide as the page, whose cells wrap.

    Args:
        columns: Heading of each column.
        rows: Cells of each row.
        widths: Width of each column in percent.
        numbers: Indices of the columns that hold numbers.
        bars: Length of a bar below the first cell of each row, 0 to 1; no bars if empty.
        caption: Text above the table.
    """
    kind = [' class="n"' if i in numbers else "" for i in range(len(columns))]
    cols = "".join(f'<col style="width:{width}%">' for width in widths)
    head = "".join(f'<th scope="col"{k}>{escape(name)}</th>' for name, k in zip(columns, kind, strict=True))
    body = []
    for i, (first, *others) in enumerate(rows):
        bar = f'<div class="bar" aria-hidden="true"><i style="width:{100 * bars[i]:.1f}%"></i></div>' if bars else ""
        cells = "".join(f"<td{k}>{_breakable(cell)}</td>" for cell, k in zip(others, kind[1:], strict=True))
        body.append(f'<tr><th scope="row">{_breakable(first)}{bar}</th>{cells}</tr>')
    return f'<table class="wrapped">{_caption(caption)}<colgroup>{cols}</colgroup><tr>{head}</tr>{"".join(body)}</table>'


def folded(summary: str, parts_html: Iterable[str]) -> str:
    """Return parts behind a summary that unfolds them."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts_html)}</details>"


def picture(kind: str, data: bytes, alternative: str, *, drawn: bool = False) -> str:
    """Return a picture no wider than the page.

    Args:
        kind: Media type of the picture.
        data: Bytes of the picture.
        alternative: Text alternative.
        drawn: It is drawn on white and shows no photograph: on a dark screen its brightness is inverted, its hues stay.
    """
    return f'<img class="picture{" drawn" if drawn else ""}" src="{_source(kind, data)}" alt="{escape(alternative)}">'


def tiles(cells: Sequence[Tile], *, few: int) -> str:
    """Return pictures of one size in a row, or in rows of `few` on a narrow screen."""
    style = f"--all:{len(cells)};--few:{min(few, len(cells))};max-width:{190 * len(cells)}px"
    return f'<div class="tiles" style="{style}">{"".join(map(_tile, cells))}</div>'


def gallery(cells: Sequence[Tile]) -> str:
    """Return pictures in as many columns as the page has room for, two on a phone."""
    return f'<div class="gallery">{"".join(map(_tile, cells))}</div>'


def _tile(cell: Tile) -> str:
    kind = {True: " right", False: " wrong", None: " asks" if cell.words else ""}[cell.right]
    mark = {True: "✓&nbsp;", False: "✗&nbsp;", None: ""}[cell.right]
    shown = '<div class="none">no picture</div>'
    if cell.picture is not None:
        shown = f'<img src="{_source(*cell.picture)}" alt="{escape(cell.alternative)}">'
    if cell.picture is not None and cell.still is not None:
        shown = f'<picture><source media="(prefers-reduced-motion:reduce)" srcset="{_source(*cell.still)}">{shown}</picture>'
    lines = [f"<b>{mark}{_breakable(word)}</b>" if i == 0 else _breakable(word) for i, word in enumerate(cell.words)]
    below = f"<figcaption>{'<br>'.join(lines)}</figcaption>" if lines else ""
    return f'<figure class="tile{kind}">{shown}{below}</figure>'


def figure(chart_html: str, caption: str = "", *, wide: bool = False) -> str:
    """Return a picture with a caption."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>{chart_html}{below}</figure>"


def strip(label: str, alternative: str, pictures: Sequence[tuple[str, bytes]], below: Sequence[str] = ()) -> str:
    """Return pictures of one size side by side.

    Args:
        label: What the pictures show; stands above them.
        alternative: Text alternative of the whole strip.
        pictures: Media type (`image/png`) and bytes of each picture.
        below: A word below each picture.
    """
    sources = [_source(kind, data) for kind, data in pictures]
    cells = "".join(f'<img src="{source}" alt="{escape(alternative) if i == 0 else ""}">' for i, source in enumerate(sources))
    cells += "".join(f"<span>{escape(word)}</span>" for word in below)
    style = f"grid-template-columns:repeat({len(pictures)},1fr);min-width:{80 * len(pictures)}px;max-width:{180 * len(pictures)}px"
    return f'<div class="label">{escape(label)}</div><div class="strip" style="{style}">{cells}</div>'


def panels(labels: Sequence[str], alternative: str, animation: tuple[str, bytes], still: tuple[str, bytes], caption: str) -> str:
    """Return an animation of panels of one size side by side, with a label above each and a caption below all of them.

    Args:
        labels: Label of each panel.
        alternative: Text alternative.
        animation: Media type and bytes of the animation, all panels in one picture.
        still: Media type and bytes of a picture for readers who ask their system for less motion.
        caption: Text below.
    """
    heads = "".join(f"<span>{_breakable(label)}</span>" for label in labels)
    shown = (
        f'<picture><source media="(prefers-reduced-motion:reduce)" srcset="{_source(*still)}">'
        f'<img src="{_source(*animation)}" alt="{escape(alternative)}"></picture>'
    )
    style = f"--n:{len(labels)};min-width:{110 * len(labels)}px;max-width:{220 * len(labels)}px"
    body = f'<div class="panels" style="{style}"><div class="heads">{heads}</div>{shown}</div>'
    return f'<figure class="clip"><div class="scroll">{body}</div><figcaption>{_breakable(caption)}</figcaption></figure>'


def verdict(text: str, *, good: bool | None) -> str:
    """Return a sentence that stands out, marked as good or bad news; None for neither."""
    kind, mark = {True: ("right", "✓ "), False: ("wrong", "✗ "), None: ("", "")}[good]
    return f'<p class="verdict {kind}">{mark}{escape(text)}</p>'


def scale(low: str, high: str, colours: Sequence[tuple[int, int, int]]) -> str:
    """Return a colour scale between two values."""
    steps = ",".join(f"rgb{colour}" for colour in colours)
    return f'<p class="scale">{escape(low)} <i style="background:linear-gradient(90deg,{steps})"></i> {escape(high)}</p>'


def scrolling(parts_html: Iterable[str]) -> str:
    """Return parts that scroll sideways together if they are too wide."""
    return f'<div class="scroll" tabindex="0">{"".join(parts_html)}</div>'


def _breakable(text: str) -> str:
    """Return text that may wrap between the words of a LongCamelName or a long_snake_name, before it wraps anywhere else."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=_)", "<wbr>", escape(text))


def _source(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def _caption(text: str) -> str:
    return f"<caption>{escape(text)}</caption>" if text else ""
