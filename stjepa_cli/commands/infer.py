"""`stjepa infer`: score frozen encoders on labelled data sets, and predict the classes of single files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stjepa_cli.commands import console, infer_options, options, result_tables
from stjepa_cli.commands.infer_options import InferOptions
from stjepa_cli.core import locations, places, plugins
from stjepa_cli.core.progress import Progress
from stjepa_cli.core.runtime import Runtime

if TYPE_CHECKING:
    from stjepa_cli.data.datasets.base import Dataset
    from stjepa_cli.evaluation.compare import Comparison
    from stjepa_cli.evaluation.predict import Predictions

app = typer.Typer(help="Score a frozen encoder on public protocols.\n\nExample: stjepa infer ucf101", no_args_is_help=True)


@app.callback()
def root() -> None:
    pass


def score(given: InferOptions, *, as_json: bool) -> None:
    """Run `stjepa infer DATASET`."""

    def call(progress: Progress) -> Comparison:
        from stjepa_cli.evaluation.infer import infer

        request, runtime = infer_options.resolve(given, progress)
        return infer(request, runtime)

    console.run_command(call, render=result_tables.show, as_json=as_json, payload=lambda comparison: comparison.to_json())


@app.command()
def video(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Video files or URLs.")],
    head: Annotated[
        Path | None, typer.Option(help="Use this saved head, or the newest below this folder.", show_default="the newest of the reports")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Name the encoder of the head, if it has moved: checkpoint, folder or id.")] = None,
    clips: Annotated[
        str | None, typer.Option(help="Clips to cut from each video (16x5x3).", show_default="those that the head was scored on")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to print for each video.")] = 5,
    batch_size: options.BatchSize = 8,
    workers: options.Workers = 4,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Predict the classes of video files with a head that `--save-head` kept.

    Example: stjepa infer video holiday.mp4
    """

    def call(progress: Progress) -> Predictions:
        from stjepa_cli.evaluation.predict import predict

        run = places.checkpoints_dir()
        return predict(
            [locations.location(file) for file in files],
            head or run / "reports",
            encoder=encoder,
            clips=clips,
            top=top,
            run=run,
            runtime=Runtime(device, workers, batch_size, progress),
        )

    console.run_command(
        call, render=_show_predictions, as_json=as_json, succeeded=lambda found: found.complete, payload=lambda found: found.to_json()
    )


def _show_predictions(found: Predictions) -> None:
    for prediction in found.videos:
        if prediction.error:
            console.say(f"error: {prediction.error}", style="bold red")
        else:
            console.show_table(prediction.video, ("class", "score"), [(guess.name, f"{guess.score:.4f}") for guess in prediction.top])
    console.show_pairs("Predicted by", {"head": found.head, "encoder": found.encoder, "clips": found.clips})


def _register(name: str) -> None:
    """Add the command of a data set. All of them have the same options."""
    dataset: type[Dataset] = plugins.load("data.datasets", name)
    example = f"Example: stjepa infer {name} {dataset.example}".rstrip()
    app.command(name, help=f"Score frozen features on {dataset.title}.\n\n{example}")(infer_options.command(dataset, score))


for _name in plugins.names("data.datasets"):
    _register(_name)
