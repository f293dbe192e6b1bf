"""The options of `stjepa infer DATASET`: declared once, resolved to a request, and printed again as a command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from stjepa_cli.commands import options
from stjepa_cli.core import places, plugins
from stjepa_cli.core.progress import Progress
from stjepa_cli.core.runtime import Runtime

if TYPE_CHECKING:
    from stjepa_cli.data.datasets.base import Dataset
    from stjepa_cli.evaluation.infer import InferRequest

PROTOCOLS = ("knn", "linear", "retrieval")
_PROTOCOL_NAMES = ", ".join(plugins.names("evaluation.probes"))


@dataclass(frozen=True)
class InferOptions:
    """Options as typed after `stjepa infer`. Each field is the option of its name."""

    dataset: str
    data_root: str | None = None
    checkpoint: Annotated[
        Path | None, typer.Option(help="Score a checkpoint, the newest of a folder, or an exported student.", show_default="the newest")
    ] = None
    teacher: Annotated[
        str | None,
        typer.Option(autocompletion=options.complete_teacher, help="Score a teacher instead: Hugging Face id, local folder, or `hog`."),
    ] = None
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Score this encoder too, in the same table; repeatable. A checkpoint, an exported student, a teacher's folder or id, "
            "`hog`, `untrained` (the student at step 0), or `pixels` (4x16x16 grey values).",
        ),
    ] = None
    split: str | None = None
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=options.complete_protocol,
            help=f"Run this protocol; repeatable. One of {_PROTOCOL_NAMES}.",
            show_default=", ".join(PROTOCOLS),
        ),
    ] = None
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use at most this many train and this many test videos, spread over the classes.")
    ] = None
    clips: Annotated[
        str,
        typer.Option(help="Clips of a video: temporal x spatial, or frames x temporal x spatial (16x5x3). Their scores are averaged."),
    ] = "1x1"
    sampling: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.completing(lambda: ("uniform", "dense")),
            help="Sampling of frames: uniform over the video, or dense.",
            show_default="as the encoder was trained",
        ),
    ] = None
    stride: Annotated[int | None, typer.Option(min=1, help="Take every n-th frame, with dense sampling.", show_default="the encoder's")] = (
        None
    )
    layer: Annotated[
        int | None,
        typer.Option(help="Take the tokens after this block of a student, from 1, or negative from the end.", show_default="the last"),
    ] = None
    pool: Annotated[
        str | None,
        typer.Option(
            autocompletion=options.completing(lambda: ("mean", "time", "tokens")),
            help="mean: average all tokens. time: average over space, keep the time steps side by side. tokens: keep all.",
            show_default="tokens for protocols that take them, else mean",
        ),
    ] = None
    features: Annotated[
        Path | None,
        typer.Option(envvar="STJEPA_FEATURES", help="Folder where features are kept.", show_default="~/.cache/stjepa/features"),
    ] = None
    features_cache: Annotated[bool, typer.Option("--features-cache/--no-features-cache", help="Keep features, and reuse kept ones.")] = True
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of `--protocol finetune`.", show_default="50")] = None
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate of `--protocol finetune` at 256 clips per step.", show_default="0.001")
    ] = None
    batch_size: options.BatchSize = 8
    workers: options.Workers = 4
    device: options.Device = "auto"
    seed: Annotated[int, typer.Option(min=0, help="Random seed for probes and bootstrap.")] = 0
    out: Annotated[Path | None, typer.Option(help="Write the report to this folder.", show_default="beside the checkpoint")] = None
    save_head: Annotated[
        bool, typer.Option("--save-head", help="Keep fitted heads in the folder of the report, for `stjepa infer video`.")
    ] = False


def command(dataset: type[Dataset], run: Callable[..., None]) -> Callable[..., None]:
    """Return the function of the command of a data set, with one parameter per field of `InferOptions`.

    Args:
        dataset: The data set.
        run: Called with the `InferOptions` that were given, and `as_json`.
    """

    def given(as_json: bool, **values: Any) -> None:
        run(InferOptions(dataset.name, **values), as_json=as_json)

    types = get_type_hints(InferOptions, include_extras=True) | {"data_root": _root_type(dataset), "split": _split_type(dataset)}
    defaults = {field.name: field.default for field in fields(InferOptions)} | {"split": next(iter(dataset.pairs))}
    if dataset.root_is_named:
        defaults["data_root"] = Parameter.empty
    parameters = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
        for name, default in defaults.items()
        if name != "dataset"
    ]
    parameters.append(Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=options.Json))
    given.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    given.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return given


def resolve(given: InferOptions, progress: Progress) -> tuple[InferRequest, Runtime]:
    """Return the request and runtime of some options.

    The request holds the command that repeats it. That command names the data set's folder and the checkpoint, wherever they came from.

    Raises:
        StjepaError: An option has a wrong value, or there is no checkpoint.
    """
    from stjepa_cli.data.eval_clips import parse_eval_clips
    from stjepa_cli.encoders.extraction import Extraction
    from stjepa_cli.evaluation.infer import InferRequest, pin_checkpoint
    from stjepa_cli.evaluation.probes.base import pool_for

    root = places.dataset_root(given.dataset, given.data_root)
    protocols = tuple(given.protocol or PROTOCOLS)
    clips = replace(parse_eval_clips(given.clips), sampling=given.sampling, stride=given.stride)
    folder = places.features_dir(given.features) if given.features_cache else None
    extraction = Extraction(given.pool or pool_for(protocols), clips, given.layer, folder)
    checkpoint = pin_checkpoint(given.checkpoint, given.teacher)
    request = InferRequest(
        dataset=given.dataset,
        root=root,
        checkpoint=checkpoint,
        teacher=given.teacher,
        compare=tuple(given.compare or ()),
        split=given.split,
        protocols=protocols,
        limit=given.limit,
        extraction=extraction,
        settings=_settings(given),
        seed=given.seed,
        out=given.out,
        save_head=given.save_head,
        command=typed(replace(given, data_root=str(root), checkpoint=checkpoint)),
    )
    return request, Runtime(given.device, given.workers, given.batch_size, progress)


def typed(given: InferOptions) -> str:
    """Return the command that gives these options."""
    dataset: type[Dataset] = plugins.load("data.datasets", given.dataset)
    usual = {field.name: field.default for field in fields(InferOptions)} | {"split": next(iter(dataset.pairs))}
    words = ["stjepa", "infer", given.dataset]
    if dataset.root_is_named:
        words.append(str(given.data_root))
    for name, default in usual.items():
        value = getattr(given, name)
        if name == "dataset" or value in (default, None) or (name == "data_root" and dataset.root_is_named):
            continue
        words += _option_words(name, value)
    return shlex.join(words)


def _option_words(name: str, value: Any) -> Iterator[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        yield f"--{flag}" if value else f"--no-{flag}"
        return
    for each in value if isinstance(value, (list, tuple)) else [value]:
        yield from (f"--{flag}", str(each))


def _settings(given: InferOptions) -> dict[str, Any]:
    """Return the settings of `finetune` if any were given."""
    values: dict[str, Any] = {name: value for name, value in (("epochs", given.epochs), ("lr", given.lr)) if value is not None}
    if not values:
        return {}
    from stjepa_cli.evaluation.probes.finetune import FinetuneSettings

    return {"finetune": FinetuneSettings(**values)}


def _root_type(dataset: type[Dataset]) -> Any:
    if dataset.root_is_named:
        return Annotated[str, typer.Argument(metavar="DIR", help=dataset.how_to_get)]
    variable = f"STJEPA_{dataset.name.upper()}"
    option = typer.Option(
        envvar=variable, metavar="PATH|URL", help=f"{dataset.title}, a folder or URL.", show_default=f"/mnt/{dataset.name}"
    )
    return Annotated[str | None, option]


def _split_type(dataset: type[Dataset]) -> Any:
    splits = (*dataset.pairs, *(("all",) if len(dataset.pairs) > 2 else ()))
    text = "Official split, or all for mean and deviation over them." if "all" in splits else "The split to test on."
    return Annotated[Literal[splits], typer.Option(metavar="|".join(splits), help=text)]
