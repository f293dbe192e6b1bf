"""`stjepa cache build` and `stjepa cache verify`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stjepa_cli import config, console
from stjepa_cli.commands import options
from stjepa_cli.nouns import ClipSpec
from stjepa_cli.progress import Progress

if TYPE_CHECKING:
    from stjepa_cli.cache import BuildResult
    from stjepa_cli.verification import VerifyResult

app = typer.Typer(help="Build and check the cache of a teacher's latents.\n\nExample: stjepa cache build", no_args_is_help=True)

MAX_SHOWN = 10


class Level(StrEnum):
    """How much of a cache is read."""

    quick = "quick"
    full = "full"


class ProjectionKind(StrEnum):
    """How the teacher's width becomes the stored one."""

    pca = "pca"
    random = "random"
    identity = "identity"


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
    projection: Annotated[ProjectionKind | None, typer.Option(help="[default: identity if the widths agree, else pca]")] = None,
    fit_clips: Annotated[int, typer.Option(min=1, help="Clips that the projection is fitted on.")] = 256,
    num_frames: Annotated[int | None, typer.Option(min=1, help="Frames of a clip, for a teacher of free geometry (hog).")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels a side, likewise.")] = None,
    tubelet: Annotated[int | None, typer.Option(min=1, help="Frames of a token, likewise.")] = None,
    patch: Annotated[int | None, typer.Option(min=1, help="Pixels a side of a token, likewise.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be built; decode and write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the cache that is there first.")] = False,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> BuildResult:
        from stjepa_cli import cache as library

        root = config.ssv2_root(data_root)
        request = library.BuildRequest(
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
            batch_size=batch_size,
            workers=workers,
            device=device,
            overwrite=overwrite,
        )
        return library.forecast(request) if dry_run else library.build(request, progress)

    console.run_command(call, render=_show_build, as_json=as_json)


@app.command(help="Check a cache: exit 0 if all of it is there and whole, 1 if not.\n\nExample: stjepa cache verify --level full")
def verify(
    cache: options.Cache = None,
    level: Annotated[Level, typer.Option(help="quick: marks, sizes, indexes. full: every byte.")] = Level.quick,
    repair: Annotated[bool, typer.Option("--repair", help="Drop the marks of bad shards: the next build fills them.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read.")] = 2,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> VerifyResult:
        from stjepa_cli.verification import verify as check

        return check(_cache_to_check(cache), level=level.value, repair=repair, workers=workers, progress=progress)

    console.run_command(call, render=_show_verify, as_json=as_json, succeeded=lambda result: result.ok)


def _cache_to_check(cache: Path | None) -> Path:
    return config.cache_path(cache, config.ssv2_root())


def _clip(num_frames: int | None, size: int | None, tubelet: int | None, patch: int | None) -> ClipSpec | None:
    given = {"num_frames": num_frames, "size_px": size, "tubelet": tubelet, "patch_px": patch}
    chosen = {name: value for name, value in given.items() if value is not None}
    return ClipSpec(**chosen) if chosen else None  # type: ignore[arg-type]


def _show_build(result: BuildResult) -> None:
    tokens, channels = result.latents
    pairs: dict[str, object] = {
        "cache": result.cache,
        "teacher": f"{result.teacher} (licence {result.licence})",
        "clips": f"{result.clips:,} in {result.shards:,} shards, latents {tokens:,} x {channels} float16",
        "size": console.megabytes(result.bytes),
    }
    if result.dry_run:
        pairs["stored already"] = f"{result.skipped:,}"
        console.show_pairs("Would build", pairs)
        return
    pairs |= {"written": f"{result.written:,}", "stored already": f"{result.skipped:,}", "failed": f"{len(result.failed):,}"}
    console.show_pairs("Built", pairs | {"time": f"{result.seconds:.1f} s"})
    if result.failed:
        rows = [(clip.id, clip.error) for clip in result.failed[:MAX_SHOWN]]
        console.show_table("Clips that could not be used", ("clip", "why"), rows, caption=_more(len(result.failed)))


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
        "failed when built": f"{result.failed:,}",
        "time": f"{result.seconds:.1f} s",
    }
    console.show_pairs("ok" if result.ok else "NOT ok", pairs)
    if result.faults:
        rows = [(fault.id, fault.kind, fault.reason) for fault in result.faults[:MAX_SHOWN]]
        console.show_table("What is wrong", ("clip", "kind", "why"), rows, caption=_more(len(result.faults)))
        console.say("Next: `stjepa cache verify --level full --repair`, then `stjepa cache build`: it fills exactly what is missing.")
