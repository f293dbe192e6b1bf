"""`stjepa report`: an HTML page about a run."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stjepa_cli.commands import console, options
from stjepa_cli.core import places
from stjepa_cli.core.locations import location
from stjepa_cli.core.progress import Progress

if TYPE_CHECKING:
    from stjepa_cli.training.report import ReportResult


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "report",
        help="Write a self-contained HTML page about a run, or about several laid over each other.\n\nExample: stjepa report checkpoints",
    )(report)


def report(
    runs: Annotated[list[Path] | None, typer.Argument(metavar="[RUN]...", help="Folders of the runs.", show_default="checkpoints")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file to write.", show_default="report.html in the run's folder, comparison.html here for several"),
    ] = None,
    # no environment variables for these two: the run knows its own
    data_root: Annotated[
        str | None, typer.Option(metavar="PATH|URL", help="Folder of the videos, if it has moved.", show_default="that of the run")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(metavar="PATH|URL", help="Folder of the cache, if it has moved.", show_default="that of the run")
    ] = None,
    clips: Annotated[int, typer.Option(min=0, help="Number of clips to show.")] = 4,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write the page again and again until the run ends; meanwhile it reloads itself in the browser.")
    ] = False,
    every: Annotated[int, typer.Option(min=1, max=86400, metavar="SECONDS", help="Seconds between two pages, with --watch.")] = 20,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> ReportResult:
        from stjepa_cli.training import report

        write = partial(
            report.report,
            out=out,
            cache=location(cache) if cache is not None else None,
            data_root=location(data_root) if data_root is not None else None,
            clips=clips,
        )
        folders = runs or [places.checkpoints_dir()]
        if watch:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: a last page is written that does not reload itself
        return report.watch(folders, every_seconds=every, write=write, progress=progress) if watch else write(folders, progress=progress)

    console.run_command(call, render=_show, as_json=as_json)


def _show(result: ReportResult) -> None:
    pairs: dict[str, object] = {
        "page": f"{result.out} ({console.megabytes(result.bytes)})",
        "runs" if len(result.runs) > 1 else "run": ", ".join(result.runs),
        "checkpoint": f"step {result.step:,}",
        "metrics": f"{result.metric_lines:,} lines",
        "clips": ", ".join(result.clips) or "-",
    }
    if result.cosine is not None:
        pairs["cosine"] = f"{result.cosine:.3f} for hidden tokens; {result.constant_cosine:.3f} for the constant answer"
    console.show_pairs("Report", pairs)
    console.say(result.verdict)
    for sentence in result.left_out:
        console.say(sentence)
    console.say(f"Next: open {result.out} in a browser.")
