"""`stjepa cache build` and `stjepa cache verify`."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stjepa_cli.cache.request import BuildRequest, Part, Source, Storage, TeacherChoice, default_cache, parse_layers
from stjepa_cli.commands import console, options
from stjepa_cli.core import places
from stjepa_cli.core.locations import location
from stjepa_cli.core.progress import Progress
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec

if TYPE_CHECKING:
    from stjepa_cli.cache.build import BuildResult
    from stjepa_cli.cache.dry_run import DryRun
    from stjepa_cli.cache.verify import VerifyResult
    from stjepa_cli.store.records import FailedClip

app = typer.Typer(help="Build and check the cache of a teacher's latents.\n\nExample: stjepa cache build", no_args_is_help=True)

MAX_SHOWN = 10


class Level(StrEnum):
    """How thoroughly a cache is checked."""

    quick = "quick"
    full = "full"
    recompute = "recompute"


class ProjectionKind(StrEnum):
    """The map from the teacher's width to the stored one."""

    pca = "pca"
    random = "random"
    identity = "identity"
    standardize = "standardize"
    phi_s = "phi-s"


class Sampling(StrEnum):
    """The frames of a clip."""

    uniform = "uniform"
    dense = "dense"


class Dtype(StrEnum):
    """The type of stored numbers."""

    float16 = "float16"
    int8 = "int8"


DataRoot = Annotated[
    str | None,
    typer.Option(
        metavar="PATH|URL",
        help="The data set, a folder or URL. Environment: STJEPA_<DATASET>, for example STJEPA_SSV2.",
        show_default="/mnt/<dataset>",
    ),
]


# An option has the name of the field of BuildRequest, or of one of its groups, that it sets; defaults stand there alone.
@app.command(help="Run the teacher once over a data set and keep its latents.\n\nExample: stjepa cache build --teacher hog --limit 200")
def build(
    data_root: DataRoot = None,
    cache: options.Cache = None,
    dataset: Annotated[str, typer.Option(autocompletion=options.complete_dataset, help="Layout of the data set.")] = Source.dataset,
    split: Annotated[str, typer.Option(help="List of the data set to read.")] = Source.split,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first clips of the list.")] = Source.limit,
    teacher: Annotated[
        str, typer.Option(autocompletion=options.complete_teacher, help="Hugging Face id, local folder, or `hog`.")
    ] = TeacherChoice.name,
    teacher_layers: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Cache these layers side by side (1 is the first, -1 the last).", show_default="its output"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per forward pass of the teacher.")] = Runtime.batch_size,
    workers: options.Workers = Runtime.workers,
    device: options.Device = Runtime.device,
    latent_dim: Annotated[int, typer.Option("--dim", min=1, help="Stored channels.")] = Storage.latent_dim,
    projection: Annotated[
        ProjectionKind | None,
        typer.Option(help="Map to the stored channels.", show_default="identity if the widths agree, else pca"),
    ] = None,
    fit_clips: Annotated[
        int, typer.Option(min=1, help="Clips that the projection is fitted on, a random sample spread over the list.")
    ] = Storage.fit_clips,
    fit_seed: Annotated[int, typer.Option(help="Random seed of that sample.")] = Storage.fit_seed,
    views: Annotated[int, typer.Option(min=1, help="Views per clip; the first is the centre view, the others are random.")] = Storage.views,
    view_seed: Annotated[int, typer.Option(help="Random seed of the views.")] = Storage.view_seed,
    frames: Annotated[bool, typer.Option("--frames", help="Keep the decoded clips too, so that pretraining needs no videos.")] = False,
    dtype: Annotated[Dtype, typer.Option(help="int8 (with a scale per token) halves the size.")] = Dtype.float16,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames per clip (teachers of free geometry only: hog, V-JEPA 2).")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Clip size in pixels (teachers of free geometry only).")] = None,
    tubelet: Annotated[int | None, typer.Option(min=1, help="Frames per token (hog only).")] = None,
    patch: Annotated[int | None, typer.Option(min=1, help="Patch size of a token in pixels (hog only).")] = None,
    sampling: Annotated[
        Sampling | None,
        typer.Option(help="Sampling of frames: uniform over the video, or dense.", show_default="as the teacher was trained"),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Take every n-th frame, with dense sampling.", show_default="the teacher's")
    ] = None,
    part: Annotated[str, typer.Option(metavar="I/N", help="Fill only part I of N, beside other processes.")] = str(BuildRequest.part),
    engine: Annotated[
        str,
        typer.Option(
            autocompletion=options.complete_engine, help="local, or ray to use all GPUs of a Ray cluster (pip install 'stjepa[ray]')."
        ),
    ] = BuildRequest.engine,
    engine_address: Annotated[
        str | None, typer.Option("--ray-address", help="Address of a running Ray cluster.", show_default="start one here")
    ] = BuildRequest.engine_address,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry the clips in failures.jsonl.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report the size and duration of the build and write nothing.")] = False,
    sample: Annotated[int, typer.Option(min=0, help="Clips that a dry run times.")] = 16,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the cache that is there; it stays until the new one is complete.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    given = dict(locals())

    def plan(progress: Progress) -> DryRun:
        from stjepa_cli.cache import dry_run as planning

        return planning.dry_run(_request(given), Runtime(device, workers, batch_size, progress), sample=sample)

    def fill(progress: Progress) -> BuildResult:
        from stjepa_cli.cache import build as building

        return building.build(_request(given), Runtime(device, workers, batch_size, progress))

    if dry_run:
        console.run_command(plan, render=_show_dry_run, as_json=as_json)
    else:
        console.run_command(fill, render=_show_build, as_json=as_json)


def _request(given: dict[str, Any]) -> BuildRequest:
    """Return the request that the options of `build` describe, by their names."""
    root = places.dataset_root(given["dataset"], given["data_root"])
    sizes = {"num_frames": given["num_frames"], "size_px": given["size"], "tubelet": given["tubelet"], "patch_px": given["patch"]}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    choice = TeacherChoice(given["teacher"], ClipSpec(**sizes) if sizes else None, parse_layers(given["teacher_layers"]))
    chosen = {name: given[name] for name in BuildRequest.option_names() if name in given} | {"part": Part.parse(given["part"])}
    plain = {name: value.value if isinstance(value, StrEnum) else value for name, value in chosen.items()}
    path = default_cache(root, choice.name, given["latent_dim"]) if given["cache"] is None else location(given["cache"])
    return BuildRequest.of(root, path, teacher=choice, **plain)


@app.command(help="Check a cache: exit 0 if all of it is there and intact, 1 if not.\n\nExample: stjepa cache verify --level full")
def verify(
    cache: options.Cache = None,
    level: Annotated[
        Level, typer.Option(help="quick: manifests, sizes, indexes. full: every byte. recompute: quick, and some clips made again.")
    ] = Level.quick,
    repair: Annotated[
        bool, typer.Option("--repair", help="Set the manifests of damaged shards aside, so that the next build fills these shards.")
    ] = False,
    parts: Annotated[int, typer.Option(min=1, help="Group unfinished shards by this number of parts.")] = 1,
    sample: Annotated[int, typer.Option(min=1, help="Clips that recompute makes again.")] = 16,
    seed: Annotated[int, typer.Option(help="Random seed of that sample.")] = 0,
    data_root: DataRoot = None,
    teacher: Annotated[str | None, typer.Option(help="Name or folder of the teacher, for recompute.", show_default="as cached")] = None,
    device: options.Device = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Threads that read and decode.")] = os.cpu_count() or 1,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> VerifyResult:
        from stjepa_cli.cache import verify as checking

        again = checking.Recompute(location(data_root) if data_root else None, sample, seed, teacher)
        runtime = Runtime(device, workers, progress=progress)
        path = places.cache_path(cache, places.ssv2_root(data_root))
        return checking.verify(path, level=level.value, repair=repair, parts=parts, recompute=again, runtime=runtime)

    console.run_command(call, render=_show_verify, as_json=as_json, succeeded=lambda result: result.ok)


def _description(result: BuildResult | DryRun) -> dict[str, object]:
    """Return the description of a cache, planned or built."""
    tokens, channels = result.latents
    views = f" x {result.views} views" if result.views > 1 else ""
    frames = " and frames" if result.frames else ""
    shards = "1 shard" if result.shards == 1 else f"{result.shards:,} shards"
    return {
        "cache": result.cache,
        "teacher": f"{result.teacher} (licence {result.licence})",
        "clips": f"{result.clips:,}{views} in {shards}, latents {tokens:,} x {channels} {result.dtype}{frames}",
        "size": console.megabytes(result.bytes),
    }


def _show_dry_run(result: DryRun) -> None:
    pairs = _description(result) | {"stored already": f"{result.skipped:,}"}
    if result.clips_per_second and result.seconds is not None:
        failed = f", {result.sample_failed} of which failed" if result.sample_failed else ""
        pairs["speed"] = f"{result.clips_per_second:.3g} clips/s, from a sample of {result.sampled}{failed} ({result.measured})"
        pairs["time"] = f"about {console.duration(result.seconds)} for what is not stored yet"
    console.show_pairs("Would build", pairs)


def _show_build(result: BuildResult) -> None:
    pairs = _description(result) | {
        "written": f"{result.written:,}",
        "stored already": f"{result.skipped:,}",
        "failed": f"{len(result.failed):,}",
    }
    if result.cosine is not None:
        pairs["cosine of int8"] = f"{result.cosine:.6f} to the teacher's projected tokens"
    if result.missing:
        pairs["not built yet"] = f"{result.missing:,} (this was part {result.part})"
    console.show_pairs("Built", pairs | {"time": f"{result.seconds:.1f} s"})
    if result.failed:
        rows = [(_row_name(clip), clip.error) for clip in result.failed[:MAX_SHOWN]]
        console.show_table("Clips that could not be used", ("clip", "why"), rows, caption=_more(len(result.failed)))
        console.say(f"All of them are in {result.cache}/failures.jsonl; `--retry-failed` retries them.")


def _row_name(clip: FailedClip) -> str:
    return f"{clip.id} view {clip.view}" if clip.view else clip.id


def _more(total: int) -> str | None:
    return f"and {total - MAX_SHOWN} more (--json has all)" if total > MAX_SHOWN else None


def _show_verify(result: VerifyResult) -> None:
    pairs: dict[str, object] = {
        "cache": result.cache,
        "teacher": f"{result.teacher} (licence {result.licence})",
        "level": result.level,
        "expected": f"{result.expected:,} clips",
        "present": f"{result.present:,}",
        "missing": f"{result.missing:,}",
        "corrupt": f"{len(result.corrupt):,}",
        "foreign": f"{len(result.foreign):,}",
        "unreadable": f"{len(result.unreadable):,}",
        "extra files": f"{len(result.extra):,}",
        "failed when built": f"{result.failed:,}",
    }
    if result.level == Level.recompute:
        worst = "-" if result.worst_error is None else f"{result.worst_error:.2g}"
        pairs["made again"] = (
            f"{result.recomputed:,}, {len(result.changed):,} changed, distance at most {worst} (tolerance {result.tolerance})"
        )
    console.show_pairs("ok" if result.ok else "NOT ok", pairs | {"time": f"{result.seconds:.1f} s"})
    if result.gaps:
        console.show_table(
            "Not built yet", ("part", "shards", "clips", "to fill"), [(g.part, g.shards, g.rows, g.command) for g in result.gaps]
        )
    if result.faults:
        rows = [(fault.id, fault.kind, fault.reason) for fault in result.faults[:MAX_SHOWN]]
        console.show_table("What is wrong", ("clip", "kind", "why"), rows, caption=_more(len(result.faults)))
        console.annotate([f"{fault.kind} {fault.id}: {fault.reason}" for fault in result.faults[:MAX_SHOWN]], title="stjepa cache verify")
        console.say(_next_step(result))


def _next_step(result: VerifyResult) -> str:
    """Return what to type after a check that found something."""
    steps: list[str] = []
    if result.unreadable:
        steps.append("make the files readable (their permissions, their disk) and check again")
    if result.corrupt or result.foreign or result.missing:
        to_repair = any(fault.finished for fault in result.faults if fault.kind in ("corrupt", "foreign", "missing"))
        steps.append("`stjepa cache verify --level full --repair`, then `stjepa cache build`" if to_repair else "`stjepa cache build`")
        steps[-1] += ", which fills exactly what is missing"
    if result.extra:
        steps.append("look at the extra files and remove them yourself")
    if result.changed:
        steps.append("put back the videos, the decoder or the teacher that the cache was made with, or build another cache")
    return "Next: " + "; ".join(steps) + "."
