"""`stjepa inspect checkpoint`: what a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stjepa_cli import config, console
from stjepa_cli.commands import options
from stjepa_cli.progress import Progress

if TYPE_CHECKING:
    from stjepa_cli.inspection import CheckpointReport

app = typer.Typer(help="Show what files hold.\n\nExample: stjepa inspect checkpoint", no_args_is_help=True)


@app.callback()
def root() -> None:
    pass


@app.command(
    help="Show a checkpoint: where it comes from, its configuration, its tensors.\n\nExample: stjepa inspect checkpoint checkpoints"
)
def checkpoint(
    path: Annotated[Path | None, typer.Argument(help="A checkpoint, or a folder for its newest. [default: checkpoints]")] = None,
    as_json: options.Json = False,
) -> None:
    def call(_: Progress) -> CheckpointReport:
        from stjepa_cli import inspection

        return inspection.inspect_checkpoint(config.checkpoints_dir(path))

    console.run_command(call, render=_show, as_json=as_json, payload=_payload, succeeded=lambda report: report.finite)


def _payload(report: CheckpointReport) -> dict[str, Any]:
    plain: dict[str, Any] = console.to_plain(report.to_dict())
    return plain


def _show(report: CheckpointReport) -> None:
    header = report.header
    console.show_pairs(
        str(report.path),
        {
            "step": f"{header.step:,} (epoch {header.epoch} of {header.run.epochs})",
            "student": f"{report.student_parameters:,} parameters, {header.clip}",
            "in the file": f"{report.parameters:,} parameters in {len(report.tensors)} tensors",
            "all finite": "yes" if report.finite else "NO",
            "teacher": f"{header.teacher.name} (revision {header.teacher.revision}, licence {header.teacher.licence})",
            "data set": header.dataset,
            "cache": header.cache_digest,
            "written by": ", ".join(f"{name} {version}" for name, version in header.software.items()),
        },
    )
    console.show_pairs("Configuration", _flat(config.to_dict(header.run)))
    rows = [(tensor.name, "x".join(map(str, tensor.shape)) or "scalar", tensor.dtype) for tensor in report.tensors]
    console.show_table("Tensors", ("name", "shape", "type"), rows)


def _flat(data: dict[str, Any]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in data.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat
