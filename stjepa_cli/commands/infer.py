"""`stjepa infer ucf101`: score a frozen student on a public protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stjepa_cli import config, console
from stjepa_cli.commands import options
from stjepa_cli.progress import Progress

if TYPE_CHECKING:
    import torch

    from stjepa_cli.encoders import Encoder
    from stjepa_cli.evaluation import EvaluationResult

app = typer.Typer(help="Score a frozen encoder on public protocols.\n\nExample: stjepa infer ucf101", no_args_is_help=True)

MAX_SHOWN = 10
PROTOCOLS = ("knn", "linear", "retrieval")


@app.callback()
def root() -> None:
    pass


@app.command(help="kNN, linear probe and retrieval on UCF-101's official splits.\n\nExample: stjepa infer ucf101 --split 1 --protocol knn")
def ucf101(
    data_root: options.UCF101Root = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint, or a folder for its newest. [default: the newest]")] = None,
    teacher: Annotated[str | None, typer.Option(help="Score a teacher instead: Hugging Face id, local folder, or `hog`.")] = None,
    split: Annotated[int, typer.Option(min=1, max=3, help="Official split.")] = 1,
    protocol: Annotated[list[str] | None, typer.Option(help="Repeatable. [default: " + ", ".join(PROTOCOLS) + "]")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many train and so many test videos, spread over the classes.")
    ] = None,
    pool: Annotated[str, typer.Option(help="mean: over all tokens. time: over space, time steps side by side.")] = "mean",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips that the encoder sees at once.")] = 8,
    workers: options.Workers = 4,
    device: options.Device = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of what the probes draw.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the report. [default: beside the checkpoint]")] = None,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> EvaluationResult:
        from stjepa_cli.datasets.base import open_dataset
        from stjepa_cli.devices import pick_device
        from stjepa_cli.evaluation import evaluate, write_report

        place = pick_device(device)
        encoder = _encoder(checkpoint, teacher, place)
        result = evaluate(
            encoder,
            open_dataset("ucf101", config.ucf101_root(data_root)),
            split=split,
            protocols=protocol or PROTOCOLS,
            limit=limit,
            pool=pool,
            batch_size=batch_size,
            workers=workers,
            device=place,
            seed=seed,
            progress=progress,
        )
        folder = out or _report_folder(encoder.name, teacher, split)
        for path in write_report(result, folder):
            progress.note(f"wrote {path}")
        return result

    console.run_command(call, render=_show, as_json=as_json, payload=_payload)


def _encoder(checkpoint: Path | None, teacher: str | None, device: torch.device) -> Encoder:
    from stjepa_cli.checkpoint import newest_checkpoint
    from stjepa_cli.encoders import StudentEncoder, TeacherEncoder
    from stjepa_cli.errors import ConfigError

    if teacher is not None:
        if checkpoint is not None:
            raise ConfigError("one encoder at a time", got="--checkpoint and --teacher", expected="one of them")
        from stjepa_cli.teachers.base import open_teacher

        return TeacherEncoder(open_teacher(teacher, device=device))
    path = config.checkpoints_dir(checkpoint)
    return StudentEncoder.open(newest_checkpoint(path) if checkpoint is None or path.is_dir() else path, device)


def _report_folder(encoder: str, teacher: str | None, split: int) -> Path:
    """A folder that tells encoders apart: reports of two checkpoints never overwrite each other."""
    name = Path(encoder).stem if teacher is None else encoder.rstrip("/").rpartition("/")[2]
    parent = Path(encoder).parent if teacher is None else config.checkpoints_dir()
    return parent / "reports" / f"ucf101_split{split}_{name}"


def _payload(result: EvaluationResult) -> dict[str, Any]:
    return result.to_json()


def _show(result: EvaluationResult) -> None:
    console.show_table(
        f"{result.dataset} split {result.split}: {result.checkpoint}",
        ("protocol", "figure", "value"),
        [(name, figure, f"{value:.4f}") for name, probe in result.probes.items() for figure, value in probe.figures.items()],
        caption=f"{result.num_train:,} train and {len(result.ids):,} test videos, {len(result.failed)} failed and left out; "
        f"chance {result.chance:.4f}; features: {result.pool} of tokens",
    )
    if result.failed:
        rows = [(failure.id, failure.error) for failure in result.failed[:MAX_SHOWN]]
        more = len(result.failed) - len(rows)
        console.show_table("Videos that could not be used", ("video", "why"), rows, caption=f"and {more} more" if more else None)
