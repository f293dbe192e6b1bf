"""`stjepa infer`: score frozen encoders on labelled data sets."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stjepa_cli.commands import console, options, result_tables
from stjepa_cli.core import config, locations, plugins
from stjepa_cli.core.progress import Progress

if TYPE_CHECKING:
    from stjepa_cli.core.locations import Location
    from stjepa_cli.data.datasets.base import Dataset
    from stjepa_cli.evaluation.compare import Comparison
    from stjepa_cli.evaluation.predict import Predictions

app = typer.Typer(help="Score a frozen encoder on public protocols.\n\nExample: stjepa infer ucf101", no_args_is_help=True)

PROTOCOLS = ("knn", "linear", "retrieval")
_PROTOCOLS_HELP = f"One of {', '.join(plugins.names('evaluation.probes'))}; repeatable."


@app.callback()
def root() -> None:
    pass


def _register(name: str) -> None:
    """Add the command of a data set; all of them are one."""
    dataset: type[Dataset] = plugins.load("data.datasets", name)
    splits = tuple(dataset.pairs) + (("all",) if len(dataset.pairs) > 2 else ())

    def command(
        data_root: str | None = None,
        checkpoint: Annotated[
            Path | None, typer.Option(help="A checkpoint, a folder for its newest, or an exported student.", show_default="the newest")
        ] = None,
        teacher: Annotated[str | None, typer.Option(help="Score a teacher instead: Hugging Face id, local folder, or `hog`.")] = None,
        compare: Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME",
                help="Score this too, in the same table; repeatable: a checkpoint, an exported student, a teacher's folder or id, "
                "`hog`, `untrained` (the student at step 0), `pixels` (4x16x16 grey values).",
            ),
        ] = None,
        split: str = splits[0],
        protocol: Annotated[list[str] | None, typer.Option(metavar="NAME", help=_PROTOCOLS_HELP, show_default=", ".join(PROTOCOLS))] = None,
        limit: Annotated[
            int | None, typer.Option(min=1, help="At most so many train and so many test videos, spread over the classes.")
        ] = None,
        clips: Annotated[
            str,
            typer.Option(help="Clips of a video: temporal x spatial, or frames x temporal x spatial (16x5x3); their scores are averaged."),
        ] = "1x1",
        sampling: Annotated[
            str | None, typer.Option(help="Frames of a clip: uniform over the video, or dense.", show_default="as the encoder was trained")
        ] = None,
        stride: Annotated[
            int | None, typer.Option(min=1, help="Of dense sampling: take every n-th frame.", show_default="the encoder's")
        ] = None,
        layer: Annotated[
            int | None, typer.Option(help="Block of a student, from 1, or negative from the end.", show_default="the last")
        ] = None,
        pool: Annotated[
            str | None,
            typer.Option(
                help="mean: over all tokens. time: over space, time steps side by side. tokens: all of them.",
                show_default="tokens for probes that take them, else mean",
            ),
        ] = None,
        features: Annotated[
            Path | None,
            typer.Option(
                envvar="STJEPA_FEATURES", help="Folder where features are kept and found again.", show_default="~/.cache/stjepa/features"
            ),
        ] = None,
        cached: Annotated[bool, typer.Option("--features-cache/--no-features-cache", help="Keep features, and use kept ones.")] = True,
        epochs: Annotated[int | None, typer.Option(min=1, help="Of `--protocol finetune`.", show_default="50")] = None,
        lr: Annotated[float | None, typer.Option(help="Of `--protocol finetune`, at 256 clips a step.", show_default="0.001")] = None,
        batch_size: Annotated[int, typer.Option(min=1, help="Clips that the encoder sees at once.")] = 8,
        workers: options.Workers = 4,
        device: options.Device = "auto",
        seed: Annotated[int, typer.Option(min=0, help="Of what the probes and the intervals draw.")] = 0,
        out: Annotated[Path | None, typer.Option(help="Folder of the report.", show_default="beside the checkpoint")] = None,
        save_head: Annotated[
            bool, typer.Option("--save-head", help="Keep what was fitted in that folder, for `stjepa infer video`.")
        ] = False,
        as_json: options.Json = False,
    ) -> None:
        def call(progress: Progress) -> Comparison:
            from stjepa_cli.core.devices import pick_device
            from stjepa_cli.data.eval_clips import parse_eval_clips
            from stjepa_cli.encoders.feature_store import Extraction
            from stjepa_cli.evaluation.infer import ScoreRequest, score_all
            from stjepa_cli.evaluation.probes.base import pool_for

            plan = replace(parse_eval_clips(clips), sampling=sampling, stride=stride)
            root, protocols = config.dataset_root(name, data_root), tuple(protocol or PROTOCOLS)
            folder = config.features_dir(features) if cached else None
            request = ScoreRequest(
                dataset=name,
                root=root,
                checkpoint=checkpoint,
                teacher=teacher,
                compare=tuple(compare or ()),
                split=split,
                protocols=protocols,
                limit=limit,
                extraction=Extraction(pool or pool_for(protocols), plan, layer, folder, batch_size, workers),
                settings=_settings(epochs, lr),
                seed=seed,
                out=out,
                save_head=save_head,
                command=_typed(root, is_named=dataset.root_is_named),
            )
            return score_all(request, device=pick_device(device), progress=progress)

        console.run_command(call, render=result_tables.show, as_json=as_json, payload=_payload)

    command.__annotations__ |= {"data_root": _root_option(dataset), "split": _split_option(splits)}
    example = f"Example: stjepa infer {name} {dataset.example}".rstrip()
    app.command(name, help=f"Probes on frozen features of {dataset.title}.\n\n{example}")(command)


def _root_option(dataset: type[Dataset]) -> Any:
    name = dataset.name
    if dataset.root_is_named:
        return Annotated[str, typer.Argument(metavar="DIR", help=dataset.how_to_get)]
    told, variable = f"{dataset.title}, a folder or URL.", f"STJEPA_{name.upper()}"
    return Annotated[str | None, typer.Option(envvar=variable, metavar="PATH|URL", help=told, show_default=f"/mnt/{name}")]


def _split_option(splits: tuple[str, ...]) -> Any:
    def known(value: str) -> str:
        if value not in splits:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(splits)}.")
        return value

    told = "Official split; all: mean and deviation over them." if "all" in splits else "What the probes are tested on."
    return Annotated[str, typer.Option(metavar="|".join(splits), callback=known, help=told)]


@app.command()
def video(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Video files or URLs.")],
    head: Annotated[
        Path | None, typer.Option(help="A saved head, or a folder for the newest below it.", show_default="the newest of the reports")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="The head's encoder, where it has moved: checkpoint, folder or id.")] = None,
    clips: Annotated[str | None, typer.Option(help="Clips of a video, 16x5x3.", show_default="those that the head was scored on")] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to print of each video.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips that the encoder sees at once.")] = 8,
    workers: options.Workers = 4,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """The likeliest classes of video files, by a head that `--save-head` kept.

    Example: stjepa infer video holiday.mp4
    """

    def call(progress: Progress) -> Predictions:
        from stjepa_cli.core.devices import pick_device
        from stjepa_cli.evaluation.predict import predict

        run = config.checkpoints_dir()
        return predict(
            [locations.location(file) for file in files],
            head or run / "reports",
            encoder=encoder,
            clips=clips,
            top=top,
            run=run,
            batch_size=batch_size,
            workers=workers,
            device=pick_device(device),
            progress=progress,
        )

    console.run_command(
        call, render=_show_predictions, as_json=as_json, succeeded=lambda found: found.whole, payload=lambda found: found.to_json()
    )


def _show_predictions(found: Predictions) -> None:
    for prediction in found.videos:
        if prediction.error:
            console.say(f"error: {prediction.error}", style="bold red")
        else:
            console.show_table(prediction.video, ("class", "score"), [(guess.name, f"{guess.score:.4f}") for guess in prediction.top])
    console.show_pairs("Answered by", {"head": found.head, "encoder": found.encoder, "clips": found.clips})


for _name in plugins.names("data.datasets"):
    _register(_name)


def _typed(root: Location, *, is_named: bool) -> str:
    """What was typed, with the root where that is left to the environment."""
    words = sys.argv[1:]
    is_named = is_named or any(word.startswith("--data-root") for word in words)
    return shlex.join(["stjepa", *words, *([] if is_named else ["--data-root", str(root)])])


def _settings(epochs: int | None, lr: float | None) -> dict[str, Any]:
    """Of the protocols that have settings; what nobody gave stays as it is."""
    given: dict[str, Any] = {name: value for name, value in (("epochs", epochs), ("lr", lr)) if value is not None}
    if not given:
        return {}
    from stjepa_cli.evaluation.probes.finetune import FinetuneSettings

    return {"finetune": FinetuneSettings(**given)}


def _payload(board: Comparison) -> dict[str, Any]:
    return board.to_json()
