"""`stjepa report`: one page about a run."""

from __future__ import annotations

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
        help="Write one self-contained page about a run: curves, configuration, what the student makes of some clips.\n\n"
        "Example: stjepa report checkpoints",
    )(report)


def report(
    run: Annotated[Path | None, typer.Argument(help="Folder of the run.", show_default="checkpoints")] = None,
    out: Annotated[Path | None, typer.Option(help="The page.", show_default="report.html in the run's folder")] = None,
    # no variables for these two: the run remembers its own
    data_root: Annotated[
        str | None, typer.Option(metavar="PATH|URL", help="Where the videos are now.", show_default="that of the run")
    ] = None,
    cache: Annotated[str | None, typer.Option(metavar="PATH|URL", help="Where the cache is now.", show_default="that of the run")] = None,
    clips: Annotated[int, typer.Option(min=0, help="Clips to show.")] = 4,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> ReportResult:
        from stjepa_cli.training import report

        return report.report(
            places.checkpoints_dir(run),
            out=out,
            cache=location(cache) if cache is not None else None,
            data_root=location(data_root) if data_root is not None else None,
            clips=clips,
            progress=progress,
        )

    console.run_command(call, render=_show, as_json=as_json)


def _show(result: ReportResult) -> None:
    cosine = "-" if result.cosine is None else f"{result.cosine:.3f} when hidden, the constant answer {result.constant_cosine:.3f}"
    pairs: dict[str, object] = {
        "page": f"{result.out} ({console.megabytes(result.bytes)})",
        "checkpoint": result.checkpoint,
        "metrics": f"{result.metric_lines:,} lines",
        "loss": result.loss,
        "clips": ", ".join(result.clips) or "-",
        "cosine": cosine,
    }
    console.show_pairs("Report", pairs)
    for sentence in result.left_out:
        console.say(sentence)
