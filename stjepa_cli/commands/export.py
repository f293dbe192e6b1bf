"""`stjepa export`: write the encoder of a checkpoint for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stjepa_cli.commands import console, options
from stjepa_cli.core import places
from stjepa_cli.core.progress import Progress

if TYPE_CHECKING:
    from stjepa_cli.models.export import ExportResult

HELP = (
    "Write the encoder of a checkpoint for other programs, and check that it computes the same.\n\n"
    "Example: stjepa export checkpoints --format onnx --out student_onnx"
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("export", help=HELP)(export)


def export(
    out: Annotated[Path, typer.Option(help="Folder to create; an existing folder must be empty.")],
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A checkpoint, or a folder for its newest one.", show_default="checkpoints")
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            autocompletion=options.complete_format,
            help="hf: config.json and model.safetensors; torchscript: loads without stjepa; onnx: needs the extra stjepa[onnx].",
        ),
    ] = "hf",
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload the export to this model of the Hugging Face Hub; a new one is private."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> ExportResult:
        from stjepa_cli.models import export

        return export.export(places.checkpoints_dir(checkpoint), out, format, push=push, progress=progress)

    console.run_command(call, render=_show, as_json=as_json)


def _show(result: ExportResult) -> None:
    console.show_pairs(
        str(result.out),
        {
            "format": result.format,
            "checkpoint": str(result.checkpoint),
            "files": f"{', '.join(result.files)} ({console.megabytes(result.bytes)})",
            "encoder": f"{result.parameters:,} parameters",
            "checked": f"loaded again; differs from the original by at most {result.max_difference:.2g} (allowed {result.tolerance:g})",
            **({"pushed": result.pushed} if result.pushed else {}),
        },
    )
