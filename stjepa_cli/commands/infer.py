"""`stjepa infer`: score frozen encoders on labelled data sets."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stjepa_cli import config, console, locations
from stjepa_cli.commands import options
from stjepa_cli.progress import Progress

if TYPE_CHECKING:
    import torch

    from stjepa_cli.encoders import Encoder
    from stjepa_cli.evaluation import EvaluationResult
    from stjepa_cli.nouns import ClipSpec
    from stjepa_cli.prediction import Predictions
    from stjepa_cli.scoreboard import Entry, Scoreboard

app = typer.Typer(help="Score a frozen encoder on public protocols.\n\nExample: stjepa infer ucf101", no_args_is_help=True)

MAX_SHOWN = 10
PROTOCOLS = ("knn", "linear", "retrieval")


@dataclass(frozen=True)
class Scored:
    """A data set as a command.

    Attributes:
        title: what people call it.
        splits: what `--split` takes, the default first; the data set's pairs.
        example: the rest of a command.
    """

    title: str
    splits: tuple[str, ...]
    example: str = ""


DATASETS = {
    "ucf101": Scored("UCF-101", ("1", "2", "3", "all"), " --split 1 --protocol knn"),
    "hmdb51": Scored("HMDB-51", ("1", "2", "3", "all"), " --split all"),
    "ssv2": Scored("Something-Something v2", ("validation",), " --clips 2x3"),
    "kinetics": Scored("Kinetics-style lists of paths and labels", ("val", "test"), " --data-root /data/k400 --clips 5x3"),
    "folder": Scored("any folder of class folders", ("test",), " my_videos --compare untrained --compare pixels"),
}


@app.callback()
def root() -> None:
    pass


def _register(name: str, scored: Scored) -> None:
    """Add the command of a data set; all of them are one."""

    def command(
        data_root: str | None = None,
        checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint, or a folder for its newest. [default: the newest]")] = None,
        teacher: Annotated[str | None, typer.Option(help="Score a teacher instead: Hugging Face id, local folder, or `hog`.")] = None,
        compare: Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME",
                help="Score this too, in the same table; repeatable: a checkpoint, an exported student, a teacher's folder or id, "
                "`hog`, `untrained` (the student at step 0), `pixels` (4x16x16 grey values).",
            ),
        ] = None,
        split: str = scored.splits[0],
        protocol: Annotated[list[str] | None, typer.Option(help="Repeatable. [default: " + ", ".join(PROTOCOLS) + "]")] = None,
        limit: Annotated[
            int | None, typer.Option(min=1, help="At most so many train and so many test videos, spread over the classes.")
        ] = None,
        clips: Annotated[
            str,
            typer.Option(help="Clips of a video: temporal x spatial, or frames x temporal x spatial (16x5x3); their scores are averaged."),
        ] = "1x1",
        sampling: Annotated[
            str | None, typer.Option(help="Frames of a clip: uniform over the video, or dense. [default: as the encoder was trained]")
        ] = None,
        stride: Annotated[int | None, typer.Option(min=1, help="Of dense sampling: take every n-th frame. [default: 4]")] = None,
        layer: Annotated[int | None, typer.Option(help="Block of a student, from 1, or negative from the end. [default: the last]")] = None,
        pool: Annotated[
            str, typer.Option(help="mean: over all tokens. time: over space, time steps side by side. tokens: for probes that take tokens.")
        ] = "mean",
        features: Annotated[
            Path | None,
            typer.Option(
                envvar="STJEPA_FEATURES", help="Folder where features are kept and found again. [default: ~/.cache/stjepa/features]"
            ),
        ] = None,
        cached: Annotated[bool, typer.Option("--features-cache/--no-features-cache", help="Keep features, and use kept ones.")] = True,
        batch_size: Annotated[int, typer.Option(min=1, help="Clips that the encoder sees at once.")] = 8,
        workers: options.Workers = 4,
        device: options.Device = "auto",
        seed: Annotated[int, typer.Option(min=0, help="Of what the probes and the intervals draw.")] = 0,
        out: Annotated[Path | None, typer.Option(help="Folder of the report. [default: beside the checkpoint]")] = None,
        save_head: Annotated[
            bool, typer.Option("--save-head", help="Keep what was fitted in that folder, for `stjepa infer video`.")
        ] = False,
        as_json: options.Json = False,
    ) -> None:
        def call(progress: Progress) -> Scoreboard:
            from stjepa_cli.datasets.base import open_dataset
            from stjepa_cli.devices import pick_device
            from stjepa_cli.encoders import StudentEncoder
            from stjepa_cli.features import Extraction, FeatureStore
            from stjepa_cli.plans import parse_plan
            from stjepa_cli.prediction import check_heads
            from stjepa_cli.scoreboard import contest

            if save_head:
                check_heads(protocol or PROTOCOLS)
            place = pick_device(device)
            plan = replace(parse_plan(clips), sampling=sampling, stride=stride)
            folder = config.features_dir(features) if cached else None
            extraction = Extraction(pool, plan, layer, folder, batch_size, workers)
            openers = _openers(checkpoint, teacher, compare or [], place)
            dataset = open_dataset(name, config.dataset_root(name, data_root))
            board = contest(
                openers,
                dataset,
                lambda encoder: FeatureStore(
                    encoder,
                    dataset.name,
                    extraction if teacher is not None or isinstance(encoder, StudentEncoder) else replace(extraction, layer=None),
                    device=place,
                    progress=progress,
                ),
                split=split,
                protocols=protocol or PROTOCOLS,
                limit=limit,
                seed=seed,
                command=shlex.join(["stjepa", *sys.argv[1:]]),
            )
            _write_reports(board, out, save_head, progress)
            return board

        console.run_command(call, render=_show, as_json=as_json, payload=_payload)

    command.__annotations__ |= {"data_root": _root_option(name, scored), "split": _split_option(scored)}
    app.command(name, help=f"Probes on frozen features of {scored.title}.\n\nExample: stjepa infer {name}{scored.example}")(command)


def _root_option(name: str, scored: Scored) -> Any:
    if name == "folder":
        return Annotated[str, typer.Argument(metavar="DIR", help="train/<class>/<video> and test/<class>/<video>, or <class>/<video>.")]
    told = f"{scored.title}, a folder or URL. [default: /mnt/{name}]"
    return Annotated[str | None, typer.Option(envvar=f"STJEPA_{name.upper()}", metavar="PATH|URL", help=told)]


def _split_option(scored: Scored) -> Any:
    def known(value: str) -> str:
        if value not in scored.splits:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(scored.splits)}.")
        return value

    return Annotated[str, typer.Option(metavar="|".join(scored.splits), callback=known, help=_split_help(scored))]


def _split_help(scored: Scored) -> str:
    return "Official split; all: mean and deviation over them." if "all" in scored.splits else "What the probes are tested on."


@app.command()
def video(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Video files or URLs.")],
    head: Annotated[
        Path | None, typer.Option(help="A saved head, or a folder for the newest below it. [default: the newest of the reports]")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="The head's encoder, where it has moved: checkpoint, folder or id.")] = None,
    clips: Annotated[str | None, typer.Option(help="Clips of a video, 16x5x3. [default: those that the head was scored on]")] = None,
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
        from stjepa_cli.devices import pick_device
        from stjepa_cli.prediction import predict

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

    console.run_command(call, render=_show_predictions, as_json=as_json, succeeded=lambda result: result.whole)


def _show_predictions(found: Predictions) -> None:
    for prediction in found.videos:
        if prediction.error:
            console.say(f"error: {prediction.error}", style="bold red")
        else:
            console.show_table(prediction.video, ("class", "score"), [(guess.name, f"{guess.score:.4f}") for guess in prediction.top])
    console.show_pairs("Answered by", {"head": found.head, "encoder": found.encoder, "clips": found.clips})


for _name, _scored in DATASETS.items():
    _register(_name, _scored)


def _openers(
    checkpoint: Path | None, teacher: str | None, others: list[str], device: torch.device
) -> list[Callable[[ClipSpec | None], Encoder]]:
    """Functions that open the encoder that is asked about, and then those that it is compared with."""
    from stjepa_cli.checkpoint import newest_checkpoint
    from stjepa_cli.contenders import open_contender
    from stjepa_cli.errors import ConfigError

    if teacher is not None and checkpoint is not None:
        raise ConfigError("one encoder at a time", got="--checkpoint and --teacher", expected="one of them, and --compare for others")
    run = config.checkpoints_dir(checkpoint)
    # the newest now, not after hours: a run may go on meanwhile
    asked = teacher or str(newest_checkpoint(run) if checkpoint is None or run.is_dir() else run)

    def opener(name: str) -> Callable[[ClipSpec | None], Encoder]:
        return lambda clip: open_contender(name, device=device, run=run, clip=clip)

    return [_student(Path(asked), device) if teacher is None else opener(asked), *map(opener, others)]


def _student(checkpoint: Path, device: torch.device) -> Callable[[ClipSpec | None], Encoder]:
    from stjepa_cli.encoders import StudentEncoder

    return lambda _: StudentEncoder.open(checkpoint, device)


def _write_reports(board: Scoreboard, out: Path | None, save_head: bool, progress: Progress) -> None:
    from stjepa_cli.evaluation import write_report
    from stjepa_cli.prediction import save_heads

    results = [result for entry in board.entries for result in entry.results]
    for result in results:
        own = _report_folder(result)
        folder = own if out is None else out if len(results) == 1 else out / own.name
        for path in (*write_report(result, folder), *(save_heads(result, folder) if save_head else ())):
            progress.note(f"wrote {path}")


def _report_folder(result: EvaluationResult) -> Path:
    """A folder that tells encoders apart: reports of two checkpoints never overwrite each other."""
    encoder = Path(result.checkpoint)
    is_checkpoint = encoder.suffix == ".safetensors"
    parent = encoder.parent if is_checkpoint else config.checkpoints_dir()
    return parent / "reports" / f"{result.dataset}_split{result.split}_{encoder.stem if is_checkpoint else encoder.name}"


def _payload(board: Scoreboard) -> dict[str, Any]:
    return board.to_json()


def _show(board: Scoreboard) -> None:
    first = board.entries[0].results[0]
    split = "all" if len(board.entries[0].results) > 1 else first.split
    if len(board.entries) == 1:
        _show_one(board.entries[0], f"{first.dataset} split {split}: {first.checkpoint}")
    else:
        _show_many(board, f"{first.dataset} split {split}")
    _show_failed(board.entries[0])
    made: dict[str, object] = {"command": board.command}
    for entry in board.entries:
        for result in entry.results:
            made[f"{entry.encoder}, split {result.split}"] = ", ".join(f"{name} {digest[:16]}" for name, digest in result.digests.items())
    console.show_pairs("Made by, from", made)


def _show_one(entry: Entry, title: str) -> None:
    deviations, rows = entry.deviations(), []
    for name, figures in entry.figures().items():
        for figure, value in figures.items():
            spread = f"{deviations[name][figure]:.4f}" if deviations else None
            rows.append((name, figure, f"{value:.4f}", spread, _interval(entry, name) if figure == "top1" else None))
    shown = [row if deviations else (*row[:3], row[4]) for row in rows]
    columns = (
        ("protocol", "figure", "value", "deviation", "95 % of videos") if deviations else ("protocol", "figure", "value", "95 % of videos")
    )
    console.show_table(title, columns, shown, caption=_caption(entry))


def _show_many(board: Scoreboard, title: str) -> None:
    protocols = list(board.entries[0].results[0].probes)
    rows = []
    for entry in board.entries:
        cells = []
        for name in protocols:
            value = next(iter(entry.figures()[name].values()))
            cells.append(f"{value:.4f} {_interval(entry, name) or ''}".rstrip())
        rows.append((entry.encoder, *cells))
    heads = [f"{name} {next(iter(board.entries[0].figures()[name]))}" for name in protocols]
    console.show_table(title, ("encoder", *heads), rows, caption=_caption(board.entries[0]) + "; in brackets: 95 % of videos drawn again")


def _interval(entry: Entry, protocol: str) -> str | None:
    return "[{:.3f}, {:.3f}]".format(*entry.intervals[protocol]) if protocol in entry.intervals else None


def _caption(entry: Entry) -> str:
    result = entry.results[0]
    train, test, failed = (
        ", ".join(f"{count:,}" for count in counts)
        for counts in zip(*((part.num_train, len(part.ids), len(part.failed)) for part in entry.results), strict=True)
    )
    caption = f"{train} train and {test} test videos, {failed} failed and left out; chance {result.chance:.4f}; "
    return (
        caption
        + f"features: {result.pool} of tokens, clips {result.clips}"
        + (f", block {result.layer}" if result.layer else "")
        + (f"; {result.remark}" if result.remark else "")
    )


def _show_failed(entry: Entry) -> None:
    failed = list(dict.fromkeys((failure.id, failure.error) for result in entry.results for failure in result.failed))
    if failed:
        more = len(failed) - MAX_SHOWN
        console.show_table(
            "Videos that could not be used", ("video", "why"), failed[:MAX_SHOWN], caption=f"and {more} more" if more > 0 else None
        )
