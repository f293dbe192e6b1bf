"""HTML that needs nothing beside itself: one file, no script, no network, readable on a telephone and on a dark screen.

Standard library only. Everything that is not named `..._html` is text and is escaped here.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from stjepa_cli.viz.charts import STYLE as CHART_STYLE

# a browser that obeys it loads nothing, whatever stands in the page
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
.tiles{display:grid;gap:6px;margin:4px 0 18px;grid-template-columns:repeat(var(--few),minmax(0,1fr))}
@media (min-width:700px){.tiles{grid-template-columns:repeat(var(--all),minmax(0,1fr))}}
.tile img,.tile .none{display:block;width:100%;aspect-ratio:1;object-fit:cover;border-radius:6px}
.tile .none{border:2px dotted var(--quiet);padding:8px;font-size:.8rem;color:var(--quiet)}.tile.asks img{border:4px solid var(--line)}
.tile.right img{border:4px solid var(--right)}.tile.wrong img{border:4px dashed var(--wrong)}
.tile figcaption{font-size:.82rem;line-height:1.3;overflow-wrap:anywhere}.tile b{color:var(--ink)}
.scale{display:flex;gap:10px;align-items:center;white-space:nowrap}.scale i{display:block;width:200px;height:14px;border-radius:3px}
"""


@dataclass(frozen=True)
class Tile:
    """A picture with words below it.

    Attributes:
        picture: media type and bytes, None where there is none.
        alternative: the picture in words; empty where the words below say it already.
        words: lines below it, the first in bold type.
        right: whether it is an answer that is right; None if it is no answer.
    """

    picture: tuple[str, bytes] | None
    alternative: str
    words: tuple[str, ...] = ()
    right: bool | None = None


def page(title: str, body_html: Iterable[str]) -> str:
    """A whole document."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{CHART_STYLE}</style></head>\n<body>\n"
        + "\n".join(body_html)
        + "\n</body></html>\n"
    )


def paragraph(text: str, *, quiet: bool = False, big: bool = False) -> str:
    """A paragraph of text."""
    kind = ' class="quiet"' if quiet else ' class="big"' if big else ""
    return f"<p{kind}>{escape(text)}</p>"


def heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def command(text: str) -> str:
    """Something to type."""
    return f"<pre><code>{escape(text)}</code></pre>"


def links(targets: Mapping[str, str]) -> str:
    """Words and the files beside the page that they lead to."""
    return "<ul>" + "".join(f'<li><a href="{escape(quote(target))}">{escape(text)}</a></li>' for text, target in targets.items()) + "</ul>"


def pairs(values: Mapping[str, object], *, caption: str = "") -> str:
    """Names and values, one pair a line."""
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>' for name, value in values.items())
    return f'<table class="pairs">{_caption(caption)}{rows}</table>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "") -> str:
    """A table whose first column is text and whose others are numbers; it scrolls where it is too wide."""
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
    shares: Sequence[float] = (),
    caption: str = "",
) -> str:
    """A table as wide as the page, whose cells wrap.

    Args:
        columns: what heads them.
        rows: cells.
        widths: of the columns, in percent.
        numbers: which columns hold numbers.
        shares: for each row, 0 to 1, a bar below its first cell; none if empty.
        caption: above it.
    """
    kind = [' class="n"' if i in numbers else "" for i in range(len(columns))]
    cols = "".join(f'<col style="width:{width}%">' for width in widths)
    head = "".join(f'<th scope="col"{k}>{escape(name)}</th>' for name, k in zip(columns, kind, strict=True))
    body = []
    for i, (first, *others) in enumerate(rows):
        bar = f'<div class="bar" aria-hidden="true"><i style="width:{100 * shares[i]:.1f}%"></i></div>' if shares else ""
        cells = "".join(f"<td{k}>{_breakable(cell)}</td>" for cell, k in zip(others, kind[1:], strict=True))
        body.append(f'<tr><th scope="row">{_breakable(first)}{bar}</th>{cells}</tr>')
    return f'<table class="wrapped">{_caption(caption)}<colgroup>{cols}</colgroup><tr>{head}</tr>{"".join(body)}</table>'


def folded(summary: str, parts_html: Iterable[str]) -> str:
    """Parts that are shown when they are asked for."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts_html)}</details>"


def picture(kind: str, data: bytes, alternative: str) -> str:
    """A picture no wider than the page; `kind` is its media type."""
    return f'<img class="picture" src="{_source(kind, data)}" alt="{escape(alternative)}">'


def tiles(cells: Sequence[Tile], *, few: int) -> str:
    """Pictures of one size in a row, in rows of `few` on a narrow screen."""
    style = f"--all:{len(cells)};--few:{min(few, len(cells))};max-width:{190 * len(cells)}px"
    return f'<div class="tiles" style="{style}">{"".join(map(_tile, cells))}</div>'


def _tile(cell: Tile) -> str:
    kind = {True: " right", False: " wrong", None: " asks" if cell.words else ""}[cell.right]
    mark = {True: "✓&nbsp;", False: "✗&nbsp;", None: ""}[cell.right]
    shown = '<div class="none">no picture</div>'
    if cell.picture is not None:
        shown = f'<img src="{_source(*cell.picture)}" alt="{escape(cell.alternative)}">'
    lines = [f"<b>{mark}{_breakable(word)}</b>" if i == 0 else _breakable(word) for i, word in enumerate(cell.words)]
    below = f"<figcaption>{'<br>'.join(lines)}</figcaption>" if lines else ""
    return f'<figure class="tile{kind}">{shown}{below}</figure>'


def figure(chart_html: str, caption: str = "", *, wide: bool = False) -> str:
    """A picture with words below it."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>{chart_html}{below}</figure>"


def strip(label: str, alternative: str, pictures: Sequence[tuple[str, bytes]], below: Sequence[str] = ()) -> str:
    """Pictures of one size side by side.

    Args:
        label: what they show, above them.
        alternative: the same for those who cannot see them.
        pictures: media type (`image/png`) and bytes of each.
        below: a word below each.
    """
    sources = [_source(kind, data) for kind, data in pictures]
    cells = "".join(f'<img src="{source}" alt="{escape(alternative) if i == 0 else ""}">' for i, source in enumerate(sources))
    cells += "".join(f"<span>{escape(word)}</span>" for word in below)
    style = f"grid-template-columns:repeat({len(pictures)},1fr);min-width:{80 * len(pictures)}px;max-width:{180 * len(pictures)}px"
    return f'<div class="label">{escape(label)}</div><div class="strip" style="{style}">{cells}</div>'


def scale(low: str, high: str, colours: Sequence[tuple[int, int, int]]) -> str:
    """What the colours between two figures mean."""
    steps = ",".join(f"rgb{colour}" for colour in colours)
    return f'<p class="scale">{escape(low)} <i style="background:linear-gradient(90deg,{steps})"></i> {escape(high)}</p>'


def scrolling(parts_html: Iterable[str]) -> str:
    """Parts that are moved sideways together where they are too wide."""
    return f'<div class="scroll" tabindex="0">{"".join(parts_html)}</div>'


def _breakable(text: str) -> str:
    """Text that may go on in the next line where a word of a LongName_ends, before it is broken anywhere."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=_)", "<wbr>", escape(text))


def _source(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


def _caption(text: str) -> str:
    return f"<caption>{escape(text)}</caption>" if text else ""
