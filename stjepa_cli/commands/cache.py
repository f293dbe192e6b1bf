"""`stjepa cache build` and `stjepa cache verify`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from stjepa_cli.commands import console, options
from stjepa_cli.core import config
from stjepa_cli.core.locations import Location
from stjepa_cli.core.progress import Progress
from stjepa_cli.core.types import ClipSpec

if TYPE_CHECKING:
    from stjepa_cli.cache.build import BuildResult
    from stjepa_cli.cache.dry_run import DryRun
    from stjepa_cli.cache.engines.base import BuildRequest
    from stjepa_cli.cache.verify import VerifyResult
    from stjepa_cli.store.latent_store import FailedClip

app = typer.Typer(help="Build and check the cache of a teacher's latents.\n\nExample: stjepa cache build", no_args_is_help=True)

MAX_SHOWN = 10


class Level(StrEnum):
    """How much of a cache is checked."""

    quick = "quick"
    full = "full"
    recompute = "recompute"


class ProjectionKind(StrEnum):
    """How the teacher's width becomes the stored one."""

    pca = "pca"
    random = "random"
    identity = "identity"


class Dtype(StrEnum):
    """How latents are stored."""

    float16 = "float16"
    int8 = "int8"


@app.command(help="Run the teacher once over a data set and keep its latents.\n\nExample: stjepa cache build --teacher hog --limit 200")
def build(
    data_root: options.SSv2Root = None,
    cache: options.Cache = None,
    dataset: Annotated[str, typer.Option(help="Name of the data set's layout.")] = "ssv2",
    split: Annotated[str, typer.Option(help="Which of its lists.")] = "train",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many clips of the list.")] = None,
    teacher: Annotated[str, typer.Option(help="Hugging Face id, local folder, or `hog`.")] = config.DEFAULT_TEACHER,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips that the teacher sees at once.")] = 8,
    workers: options.Workers = 4,
    device: options.Device = "auto",
    dim: Annotated[int, typer.Option(min=1, help="Stored channels.")] = config.LATENT_DIM,
    projection: Annotated[ProjectionKind | None, typer.Option(show_default="identity if the widths agree, else pca")] = None,
    fit_clips: Annotated[int, typer.Option(min=1, help="Clips that the projection is fitted on.")] = 256,
    views: Annotated[int, typer.Option(min=1, help="Views of each clip; the first is the centre view, the others are random.")] = 1,
    view_seed: Annotated[int, typer.Option(help="Seed of the random views.")] = 0,
    frames: Annotated[bool, typer.Option("--frames", help="Keep the decoded clips too: pretraining then needs no videos.")] = False,
    dtype: Annotated[Dtype, typer.Option(help="int8 (a scale for each token) halves the size.")] = Dtype.float16,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames of a clip, for a teacher of free geometry (hog, V-JEPA 2).")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels a side, likewise.")] = None,
    tubelet: Annotated[int | None, typer.Option(min=1, help="Frames of a token, for hog.")] = None,
    patch: Annotated[int | None, typer.Option(min=1, help="Pixels a side of a token, for hog.")] = None,
    part: Annotated[str, typer.Option(metavar="I/N", help="Fill only this share of the shards, beside other processes.")] = "1/1",
    engine: Annotated[str, typer.Option(help="local, or ray: all GPUs of a Ray cluster (pip install 'stjepa[ray]').")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Of a running Ray cluster.", show_default="start one here")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try the clips in failures.jsonl again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be built and how long it would take; write nothing.")] = False,
    sample: Annotated[int, typer.Option(min=0, help="Clips that a dry run times.")] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the cache that is there first.")] = False,
    as_json: options.Json = False,
) -> None:
    def request() -> BuildRequest:
        from stjepa_cli.cache.engines.base import BuildRequest
        from stjepa_cli.store.records import Part

        root = config.ssv2_root(data_root)
        return BuildRequest(
            data_root=root,
            cache=config.cache_path(cache, root),
            dataset=dataset,
            split=split,
            limit=limit,
            teacher=teacher,
            clip=_clip(num_frames, size, tubelet, patch),
            latent_dim=dim,
            projection=projection.value if projection else None,
            fit_clips=fit_clips,
            views=views,
            view_seed=view_seed,
            frames=frames,
            dtype=dtype.value,
            batch_size=batch_size,
            workers=workers,
            device=device,
            part=Part.parse(part),
            engine=engine,
            engine_address=ray_address,
            retry_failed=retry_failed,
            overwrite=overwrite,
        )

    def plan(progress: Progress) -> DryRun:
        from stjepa_cli.cache.dry_run import dry_run

        return dry_run(request(), sample=sample, progress=progress)

    def fill(progress: Progress) -> BuildResult:
        from stjepa_cli.cache import build as library

        return library.build(request(), progress)

    if dry_run:
        console.run_command(plan, render=_show_forecast, as_json=as_json)
    else:
        console.run_command(fill, render=_show_build, as_json=as_json)


@app.command(help="Check a cache: exit 0 if all of it is there and whole, 1 if not.\n\nExample: stjepa cache verify --level full")
def verify(
    cache: options.Cache = None,
    level: Annotated[
        Level, typer.Option(help="quick: marks, sizes, indexes. full: every byte. recompute: quick, and some clips made again.")
    ] = Level.quick,
    repair: Annotated[bool, typer.Option("--repair", help="Drop the marks of bad shards: the next build fills them.")] = False,
    parts: Annotated[int, typer.Option(min=1, help="Say what is not built yet by so many parts.")] = 1,
    sample: Annotated[int, typer.Option(min=1, help="Clips that recompute makes again.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of that choice.")] = 0,
    data_root: options.SSv2Root = None,
    teacher: Annotated[str | None, typer.Option(help="Where the teacher is, for recompute.", show_default="the name in the cache")] = None,
    device: options.Device = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Threads that read and decode.")] = os.cpu_count() or 1,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> VerifyResult:
        from stjepa_cli.cache import verify

        root = config.ssv2_root(data_root)
        again = verify.Recompute(root, sample, seed, teacher, device) if level is Level.recompute else None
        path: Location = config.cache_path(cache, root)
        return verify.verify(path, level=level.value, repair=repair, workers=workers, parts=parts, recompute=again, progress=progress)

    console.run_command(call, render=_show_verify, as_json=as_json, succeeded=lambda result: result.ok)


def _clip(num_frames: int | None, size: int | None, tubelet: int | None, patch: int | None) -> ClipSpec | None:
    given = {"num_frames": num_frames, "size_px": size, "tubelet": tubelet, "patch_px": patch}
    chosen = {name: value for name, value in given.items() if value is not None}
    return ClipSpec(**chosen) if chosen else None  # type: ignore[arg-type]


def _what(result: BuildResult | DryRun) -> dict[str, object]:
    """What a cache is, whether it is planned or built."""
    tokens, channels = result.latents
    views = f" x {result.views} views" if result.views > 1 else ""
    frames = " and frames" if result.frames else ""
    return {
        "cache": result.cache,
        "teacher": f"{result.teacher} (licence {result.licence})",
        "clips": f"{result.clips:,}{views} in {result.shards:,} shards, latents {tokens:,} x {channels} {result.dtype}{frames}",
        "size": console.megabytes(result.bytes),
    }


def _show_forecast(result: DryRun) -> None:
    pairs = _what(result) | {"stored already": f"{result.skipped:,}"}
    if result.clips_per_second and result.seconds is not None:
        failed = f", {result.sample_failed} of them failed" if result.sample_failed else ""
        pairs["speed"] = f"{result.clips_per_second:.3g} clips/s, from a sample of {result.sampled}{failed} ({result.measured})"
        pairs["time"] = f"about {console.duration(result.seconds)} for what is not stored yet"
    console.show_pairs("Would build", pairs)


def _show_build(result: BuildResult) -> None:
    pairs = _what(result) | {
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
        console.say(f"All of them are in {result.cache}/failures.jsonl; `--retry-failed` tries them again.")


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
    """What to type after a check that found something."""
    steps: list[str] = []
    if result.corrupt or result.foreign or result.missing:
        marked: Sequence[str] = [*result.corrupt, *result.foreign] or [fault.id for fault in result.faults if "done mark" in fault.reason]
        steps.append("`stjepa cache verify --level full --repair`, then `stjepa cache build`" if marked else "`stjepa cache build`")
        steps[-1] += ": it fills exactly what is missing"
    if result.extra:
        steps.append("look at the extra files and remove them yourself")
    if result.changed:
        steps.append("put back the videos, the decoder or the teacher that the cache was made with, or build another cache")
    return "Next: " + "; ".join(steps) + "."
