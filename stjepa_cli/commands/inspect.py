"""`stjepa inspect checkpoint` and `stjepa inspect cache`: show what files hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stjepa_cli.commands import console, options
from stjepa_cli.core import places, serialization
from stjepa_cli.core.progress import Progress

if TYPE_CHECKING:
    from stjepa_cli.cache.inspect import CacheReport
    from stjepa_cli.models.checkpoint_diff import CheckpointDifference
    from stjepa_cli.models.inspect import CheckpointReport

app = typer.Typer(help="Show what files hold.\n\nExample: stjepa inspect checkpoint", no_args_is_help=True)

MAX_CHANNELS = 16
MAX_DIFFERENCES = 20


@app.callback()
def root() -> None:
    pass


@app.command(help="Show a checkpoint: its origin, configuration and tensors.\n\nExample: stjepa inspect checkpoint checkpoints --stats")
def checkpoint(
    path: Annotated[Path | None, typer.Argument(help="A checkpoint, or a folder for its newest one.", show_default="checkpoints")] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Load the tensors and show their statistics; exit 1 if a value is not finite.")
    ] = False,
    diff: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="Compare with OTHER, a checkpoint or a folder for its newest one.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    def call(_: Progress) -> CheckpointReport:
        from stjepa_cli.models.inspect import inspect_checkpoint

        return inspect_checkpoint(places.checkpoints_dir(path), stats=stats)

    def compare(_: Progress) -> CheckpointDifference:
        from stjepa_cli.core.errors import ConfigError
        from stjepa_cli.models.checkpoint_diff import compare_checkpoints

        if stats:
            raise ConfigError("--stats and --diff cannot be used together")
        return compare_checkpoints(places.checkpoints_dir(path), diff)  # type: ignore[arg-type]

    if diff is not None:
        console.run_command(
            compare, render=_show_difference, as_json=as_json, payload=lambda found: dict(console.to_plain(found.to_dict()))
        )
    else:
        console.run_command(call, render=_show, as_json=as_json, payload=_payload, succeeded=lambda report: report.finite is not False)


@app.command(help="Show a cache: its origin, how complete it is, its channels.\n\nExample: stjepa inspect cache /data/cache")
def cache(
    path: Annotated[
        str | None, typer.Argument(metavar="[PATH|URL]", help="The cache.", show_default="STJEPA_CACHE, or that of the data root")
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="Number of rows to compute statistics from.")] = 64,
    as_json: options.Json = False,
) -> None:
    def call(_: Progress) -> CacheReport:
        from stjepa_cli.cache.inspect import inspect_cache

        return inspect_cache(places.cache_path(path, places.ssv2_root()), sample=sample)

    console.run_command(call, render=_show_cache, as_json=as_json, payload=lambda report: dict(console.to_plain(report.to_dict())))


def _show_cache(report: CacheReport) -> None:
    header, card = report.header, report.header.teacher
    views = f" x {header.num_views} views" if header.num_views > 1 else ""
    projection = header.projection
    console.show_pairs(
        report.path,
        {
            "data set": f"{header.dataset}/{header.split}, {header.num_clips:,} clips{views}",
            "teacher": f"{card.name} ({card.kind}, revision {card.revision})",
            "licence": card.licence,
            "teacher saw labels": card.saw_labels or "unknown",
            "clips": str(card.clip),
            "latents": f"{header.num_tokens:,} x {header.latent_dim} {header.dtype}" + (", with frames" if header.frames else ""),
            "projection": f"{projection['kind']} from {card.dim} channels, keeps {projection['explained']:.1%} of the variance",
            "stored": f"{report.stored:,} of {report.rows:,} rows, {report.failed:,} failed, {report.missing:,} not built yet",
            "size": f"{console.megabytes(report.bytes)} in {report.shards_done:,} of {report.shards:,} shards",
            "digest": header.digest,
            "written by": ", ".join(f"{name} {version}" for name, version in header.software.items()),
        },
    )
    if report.channels is None:
        return
    names = ("channel", "mean", "std", "min", "max")
    channels = report.channels
    rows = list(zip(range(header.latent_dim), channels.mean, channels.std, channels.minimum, channels.maximum, strict=True))
    shown = rows if len(rows) <= MAX_CHANNELS else [*rows[: MAX_CHANNELS // 2], *rows[-MAX_CHANNELS // 2 :]]
    constant, cosine = report.constant_channels, report.mean_cosine
    caption = f"over {report.sampled:,} rows; {constant} channels are constant; mean cosine of a token to the mean token: {cosine}"
    console.show_table(
        "Channels" if shown == rows else f"Channels, {len(shown)} of {len(rows)} (all with --json)", names, shown, caption=caption
    )


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
            "all finite": {None: "not checked (use --stats)", True: "yes", False: "NO"}[report.finite],
            "teacher": f"{header.teacher.name} (revision {header.teacher.revision}, licence {header.teacher.licence})",
            "teacher saw labels": header.teacher.saw_labels or "unknown",
            "data set": header.dataset,
            "cache": header.cache_digest,
            "written by": ", ".join(f"{name} {version}" for name, version in header.software.items()),
        },
    )
    console.show_pairs("Configuration", _flat(serialization.to_dict(header.run)))
    names: tuple[str, ...] = ("name", "shape", "type")
    rows: list[tuple[object, ...]] = [
        (tensor.name, "x".join(map(str, tensor.shape)) or "scalar", tensor.dtype) for tensor in report.tensors
    ]
    if report.statistics is not None:
        names += ("mean", "std", "min", "max", "not finite")
        found = [report.statistics[tensor.name] for tensor in report.tensors]
        rows = [(*row, part.mean, part.std, part.min, part.max, part.nonfinite) for row, part in zip(rows, found, strict=True)]
    console.show_table("Tensors", names, rows)


def _show_difference(found: CheckpointDifference) -> None:
    if found.header:
        console.show_table("Header", ("field", str(found.old), str(found.new)), [(part.name, part.old, part.new) for part in found.header])
    missing = [(name, "only in the first", "") for name in found.only_old] + [(name, "", "only in the second") for name in found.only_new]
    mismatched = [*missing, *((part.name, part.old, part.new) for part in found.shapes)]
    if mismatched:
        console.show_table(
            "Tensors that one checkpoint lacks, or whose shapes differ",
            ("tensor", str(found.old), str(found.new)),
            mismatched[:MAX_DIFFERENCES],
            caption=_more(mismatched),
        )
    rows = [(part.name, part.relative, part.max_abs) for part in found.tensors]
    console.show_table(
        f"Tensors that differ: {len(rows)}; equal: {found.equal}",
        ("tensor", "relative difference", "largest difference"),
        rows[:MAX_DIFFERENCES],
        caption=_more(rows),
    )


def _more(rows: Sequence[object]) -> str | None:
    """Return a caption about the rows that a table leaves out."""
    return f"and {len(rows) - MAX_DIFFERENCES} more (all with --json)" if len(rows) > MAX_DIFFERENCES else None


def _flat(data: dict[str, Any]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in data.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat
