"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
Cache = Annotated[
    str | None,  # text: `config` turns it into a location inside the error boundary, where a missing driver is one sentence
    typer.Option(
        envvar="STJEPA_CACHE",
        metavar="PATH|URL",
        help="Latent cache, a folder or URL.",
        show_default="<data root>/cache_videomae_huge_384",
    ),
]
SSv2Root = Annotated[
    str | None,
    typer.Option(envvar="STJEPA_SSV2", metavar="PATH|URL", help="Something-Something v2, a folder or URL.", show_default="/mnt/ssv2"),
]
UCF101Root = Annotated[
    str | None, typer.Option(envvar="STJEPA_UCF101", metavar="PATH|URL", help="UCF-101, a folder or URL.", show_default="/mnt/ucf101")
]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:N.")]
Workers = Annotated[int, typer.Option(min=1, help="Number of threads that decode videos.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Clips per forward pass of the encoder.")]
Pgvector = Annotated[
    str | None,
    typer.Option(metavar="DSN", help="PostgreSQL database with pgvector that holds the table (postgresql://user@host/database)."),
]
Column = Annotated[str | None, typer.Option(metavar="NAME", help="Column of vectors.", show_default="the only one, or video_embedding")]
Where = Annotated[str | None, typer.Option(metavar="CONDITION", help='Rows to take, such as "duration_seconds > 3".', show_default="all")]


def table_place(table: str, dsn: str | None) -> str:
    """Return the place of a table for `open_index`: a LanceDB folder, or a table of a database."""
    return table if dsn is None else f"{dsn}#{table}"
