"""`stjepa head`: train a head on judgements, write a column with it, report on it."""

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
    from stjepa_cli.judgements.apply import Applied
    from stjepa_cli.judgements.report import HeadReport
    from stjepa_cli.judgements.training import Trained

_HELP = "Small heads on frozen vectors, learned from judgements.\n\nExample: stjepa head report trick.safetensors"
app = typer.Typer(no_args_is_help=True, help=_HELP)

TRAIN_HELP = (
    "Train a head on the vectors of a table and the judgements of a log; no video is decoded.\n\n"
    "Example: stjepa head train vectors --log judgements.sqlite --mode trick --out trick.safetensors"
)
APPLY_HELP = (
    "Write a new column of vectors with a head, from the stored ones; no video is decoded.\n\n"
    "Example: stjepa head apply vectors trick.safetensors --column trick"
)
REPORT_HELP = "Report how well a head agrees with its judge.\n\nExample: stjepa head report trick.safetensors --html trick.html"

Table = Annotated[str, typer.Argument(metavar="TABLE", help="LanceDB folder or folder/name; with --pgvector the name of a table.")]
HeadFile = Annotated[Path, typer.Argument(metavar="HEAD", help="File of a head.")]


@dataclass(frozen=True)
class _Shown:
    """A report, and the page that was written about it.

    Attributes:
        report: The report.
        page: The page, or None.
    """

    report: HeadReport
    page: Path | None


@app.command(help=TRAIN_HELP)
def train(
    table: Table,
    log: Annotated[Path, typer.Option(metavar="LOG", help="Log of judgements, an SQLite file.")],
    mode: Annotated[str, typer.Option(help="The question that was answered, such as trick or place.")],
    out: Annotated[Path, typer.Option(metavar="HEAD", help="File to write (.safetensors).")],
    kind: Annotated[str, typer.Option(help="linear, mlp, or attention for a column of frames or tokens.")] = "linear",
    loss: Annotated[str, typer.Option(help="listwise, logistic, triplet, infonce or supcon.")] = "listwise",
    dim: Annotated[int | None, typer.Option(min=1, help="Width of the head.", show_default="that of the vectors")] = None,
    column: options.Column = None,
    seed: Annotated[int, typer.Option(help="Seed of the splits and of what a head draws.")] = 0,
    pgvector: options.Pgvector = None,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> Trained:
        from stjepa_cli.judgements.training import TrainRequest
        from stjepa_cli.judgements.training import train as run

        request = TrainRequest(options.table_place(table, pgvector), log, mode, out, kind, loss, dim, column, seed)
        return run(request, Runtime("cpu", progress=progress))

    console.run_command(call, render=_show_trained, as_json=as_json, payload=_trained)


@app.command(help=APPLY_HELP)
def apply(
    table: Table,
    head: HeadFile,
    column: Annotated[str, typer.Option(metavar="NEW", help="Column of vectors to write.")],
    source: Annotated[
        str | None, typer.Option("--from", metavar="NAME", help="Column to read.", show_default="the one that it was trained on")
    ] = None,
    pgvector: options.Pgvector = None,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> Applied:
        from stjepa_cli.judgements.apply import apply as run

        return run(options.table_place(table, pgvector), head, column, source, Runtime("cpu", progress=progress))

    console.run_command(call, render=_show_applied, as_json=as_json)


@app.command(help=REPORT_HELP)
def report(
    head: HeadFile,
    html: Annotated[Path | None, typer.Option(metavar="PAGE", help="Also write a page.", show_default="no page")] = None,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> _Shown:
        from stjepa_cli.judgements.report import report as run
        from stjepa_cli.judgements.report import write_page

        found = run(head)
        if html is not None:
            write_page(html, found, shlex.join(["stjepa", "head", "report", str(head), "--html", str(html)]))
        return _Shown(found, html)

    console.run_command(call, render=_show_report, as_json=as_json, payload=lambda shown: shown.report.to_json())


def _trained(result: Trained) -> dict[str, object]:
    from stjepa_cli.judgements.report import HeadReport

    found = HeadReport(result.head, result.header).to_json()
    return {"head": str(result.head), **found, "left_out": result.left_out, "seconds": result.seconds}


def _show_trained(result: Trained) -> None:
    from stjepa_cli.judgements.report import HeadReport

    _show_report(_Shown(HeadReport(result.head, result.header), None))
    if result.left_out:
        console.say(f"{result.left_out:,} choices were left out: the column has no vectors of their items.")
    if not result.header.keep_raw:
        console.say(f"Next: `stjepa head apply TABLE {shlex.quote(str(result.head))} --column NEW` writes its vectors beside the old ones.")


def _show_applied(result: Applied) -> None:
    kind = "none: searching everything is faster here" if result.index == "exact" else f"{result.index}, recall@10 {result.recall:.3f}"
    told: dict[str, object] = {
        "table": result.table,
        "column": f"{result.column}: {result.dim:,} channels, from {result.source}",
        "written": f"{result.written:,}",
        "done already": f"{result.skipped:,}",
        "index": kind,
        "time": console.duration(result.seconds),
    }
    console.show_pairs("Applied", told)
    if result.keep_raw:
        console.say("This head has learned nothing: its vectors are the raw ones.")


def _show_report(shown: _Shown) -> None:
    from stjepa_cli.judgements.report import pairs

    console.show_pairs(f"Head for {shown.report.header.mode}", dict(pairs(shown.report)))
    console.say(shown.report.verdict())
    if shown.page is not None:
        console.say(f"Next: open {shown.page} in a browser.")
