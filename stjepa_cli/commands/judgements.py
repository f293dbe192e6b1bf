"""`stjepa judgements`: judgements from files into a log, and out of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stjepa_cli.commands import console, options
from stjepa_cli.core.progress import Progress

if TYPE_CHECKING:
    from stjepa_cli.judgements.files import Exported, Imported

_HELP = (
    "Import judgements of what is similar into a log, and export them.\n\nExample: stjepa judgements export judgements.sqlite answers.jsonl"
)
app = typer.Typer(no_args_is_help=True, help=_HELP)

Log = Annotated[Path, typer.Option(metavar="LOG", help="Log of judgements, an SQLite file.")]
IMPORT_HELP = (
    "Append the judgements of a file to a log. The same file again adds nothing.\n\n"
    "Example: stjepa judgements import answers.jsonl --log judgements.sqlite --mode trick"
)
EXPORT_HELP = (
    "Write the events of a log to a file, undos included.\n\nExample: stjepa judgements export judgements.sqlite answers.jsonl --mode trick"
)


@app.command("import", help=IMPORT_HELP)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Judgements (.jsonl, .parquet), or a .csv of triplets or labels.")],
    log: Log,
    mode: Annotated[str, typer.Option(help="The question that they answer, such as trick or place.")],
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> Imported:
        from stjepa_cli.judgements.files import import_file

        return import_file(file, log, mode)

    console.run_command(call, render=_show_imported, as_json=as_json)


@app.command(help=EXPORT_HELP)
def export(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Log of judgements, an SQLite file.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write, .jsonl or .parquet.")],
    mode: Annotated[str | None, typer.Option(help="Only events of this mode.", show_default="all")] = None,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> Exported:
        from stjepa_cli.judgements.files import export_file

        return export_file(log, file, mode)

    console.run_command(call, render=_show_exported, as_json=as_json)


def _show_imported(result: Imported) -> None:
    known = result.read - result.new
    told: dict[str, object] = {"log": str(result.log), "new": f"{result.new:,}", "known already": f"{known:,}"}
    console.show_pairs("Imported", told)


def _show_exported(result: Exported) -> None:
    console.show_pairs("Exported", {"file": str(result.file), "events": f"{result.events:,}"})
