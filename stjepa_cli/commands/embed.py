"""`stjepa embed` and `stjepa index`: vectors of videos in a table, and an index of a column."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stjepa_cli.commands import console, options
from stjepa_cli.core.progress import Progress
from stjepa_cli.core.runtime import Runtime

if TYPE_CHECKING:
    from stjepa_cli.search.embed import EmbedResult, IndexResult

EMBED_HELP = (
    "Turn videos into vectors and keep them in a table beside their metadata. What is done is skipped.\n\n"
    "Example: stjepa embed my_videos --model hog --table vectors"
)
INDEX_HELP = "Build an approximate index of a column where it pays, and measure what it finds.\n\nExample: stjepa index vectors"
MAX_SHOWN = 10


class Strategy(StrEnum):
    """The frames of a clip."""

    full = "full"
    centered = "centered"
    window = "window"


class Output(StrEnum):
    """What is kept of a clip."""

    clip = "clip"
    frames = "frames"
    tokens = "tokens"


class Pool(StrEnum):
    """How tokens become a vector."""

    mean = "mean"
    max = "max"
    weighted = "weighted"
    segments = "segments"


class OnError(StrEnum):
    """What stands for a video that cannot be used."""

    null = "null"
    zero = "zero"


Table = Annotated[
    str | None,
    typer.Option(metavar="TABLE", help="Table: a LanceDB folder, or folder/name.", show_default="none; or --pgvector"),
]
Pgvector = Annotated[str | None, typer.Option(metavar="DSN", help="Keep the table in PostgreSQL with pgvector (postgresql://...).")]
ColumnName = Annotated[str, typer.Option(envvar="VIDEO_EMBEDDING_COL", help="Column of the vectors.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("embed", help=EMBED_HELP)(embed)
    app.command("index", help=INDEX_HELP)(index)


def embed(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="Files, folders, globs, URLs, and tables of URIs (.csv, .parquet, .lance)."),
    ],
    model: Annotated[
        str, typer.Option(envvar="VJEPA_MODEL", help="Checkpoint, export, or folder or Hugging Face id of a model; hog needs no weights.")
    ],
    table: Table = None,
    pgvector: Pgvector = None,
    column: ColumnName = "video_embedding",
    num_frames: Annotated[int | None, typer.Option(min=1, envvar="NUM_FRAMES", help="Frames per clip.", show_default="the model's")] = None,
    strategy: Annotated[
        Strategy, typer.Option(help="Frames: spread over the clip (full), around its middle (centered), around a moment (window).")
    ] = Strategy.full,
    window_center: Annotated[
        str | None, typer.Option(metavar="SECONDS|COLUMN", help="Moment of a window, or the column of the source table that holds it.")
    ] = None,
    output: Annotated[Output, typer.Option(help="One vector per clip, one per time step (frames), or all tokens.")] = Output.clip,
    pool: Annotated[Pool | None, typer.Option(help="How tokens become the vector of a clip.", show_default="mean")] = None,
    stride: Annotated[float | None, typer.Option(metavar="SECONDS", help="Embed parts of each video too, this far apart.")] = None,
    length: Annotated[float | None, typer.Option(metavar="SECONDS", help="Length of a part.", show_default="the stride")] = None,
    uri_column: Annotated[str, typer.Option(help="Column of a source table with paths or URLs.")] = "uri",
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first videos.")] = None,
    on_error: Annotated[OnError, typer.Option(help="What stands for a video that cannot be used.")] = OnError.null,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if a video could not be used.")] = False,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the whole table to this Parquet file too.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray for the machines of a Ray cluster (pip install 'stjepa[ray]').")] = "local",
    ray_address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster.", show_default="start one here")] = None,
    block_size: Annotated[
        int | None,
        typer.Option(min=1, envvar="BLOCK_SIZE", metavar="BYTES", help="Bytes per request to a remote video.", show_default="the driver's"),
    ] = None,
    batch_size: options.BatchSize = 8,
    workers: options.Workers = 4,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> EmbedResult:
        from stjepa_cli.search.embed import EmbedRequest
        from stjepa_cli.search.embed import embed as run
        from stjepa_cli.search.embedding import Recipe
        from stjepa_cli.search.parts import Framing

        pooling = pool.value if pool is not None else "none" if output == Output.tokens else Pool.mean.value
        framing = Framing(strategy.value, stride, length)
        recipe = Recipe(column, output.value, pooling, framing, on_error.value, block_size)
        request = EmbedRequest(
            tuple(sources),
            model,
            _place(table, pgvector),
            recipe,
            num_frames,
            window_center,
            uri_column,
            limit,
            engine,
            ray_address,
            parquet,
        )
        return run(request, Runtime(device, workers, batch_size, progress))

    console.run_command(call, render=_show_embedded, as_json=as_json, succeeded=lambda result: not (strict and result.failed))


def index(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="LanceDB folder or folder/name; with --pgvector the name of a table.")],
    column: ColumnName = "video_embedding",
    pgvector: options.Pgvector = None,
    as_json: options.Json = False,
) -> None:
    def call(progress: Progress) -> IndexResult:
        from stjepa_cli.search.embed import build_index

        return build_index(options.table_place(table, pgvector), column)

    console.run_command(call, render=_show_index, as_json=as_json)


def _place(table: str | None, pgvector: str | None) -> str:
    """Return the place of the table that both options name."""
    from stjepa_cli.core.errors import ConfigError

    if pgvector is None:
        if table is None:
            raise ConfigError("there is no table to write to", fix="Add `--table FOLDER`, or `--pgvector DSN`.")
        return table
    return pgvector if table is None else f"{pgvector}#{table}"


def _show_embedded(result: EmbedResult) -> None:
    kinds = {"clip": "one vector per clip", "frames": "one vector per time step", "tokens": "all tokens"}
    pooling = f", {result.pool} of the tokens" if result.output == "clip" else ""
    pairs: dict[str, object] = {
        "table": f"{result.table} ({result.rows:,} rows)",
        "column": f"{result.column}: {kinds[result.output]}, {result.dim:,} channels{pooling}",
        "model": f"{result.model}, frames {result.strategy}",
        "written": f"{result.written:,}",
        "done already": f"{result.skipped:,}",
        "failed": f"{len(result.failed):,}",
    }
    if result.parquet is not None:
        pairs["Parquet"] = result.parquet
    console.show_pairs("Embedded", pairs | {"time": console.duration(result.seconds)})
    if result.failed:
        more = f"and {len(result.failed) - MAX_SHOWN} more (--json has all)" if len(result.failed) > MAX_SHOWN else None
        shown = [(failed.uri, failed.error) for failed in result.failed[:MAX_SHOWN]]
        console.show_table("Videos that could not be used", ("video", "why"), shown, caption=more)


def _show_index(result: IndexResult) -> None:
    kind = "none: searching everything is faster here" if result.kind == "exact" else result.kind
    console.show_pairs(
        "Index",
        {
            "table": result.table,
            "column": f"{result.column} ({result.rows:,} vectors)",
            "index": kind,
            "recall@10": f"{result.recall:.3f} against exact search",
            "time": console.duration(result.seconds),
        },
    )
