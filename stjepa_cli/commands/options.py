"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from stjepa_cli.core import plugins
from stjepa_cli.core.config import DEFAULT_TEACHER


def completing(values: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a function with which the shell completes the value of an option.

    Args:
        values: Returns the values; called only when the shell asks, so it may import what is heavy.
    """

    def complete(incomplete: str) -> list[str]:
        return [value for value in values() if value.startswith(incomplete)]

    return complete


def _recipes() -> Iterable[str]:
    from stjepa_cli.training.recipes import RECIPES

    return RECIPES


def _formats() -> Iterable[str]:
    from stjepa_cli.models.formats import FORMATS

    return FORMATS


complete_recipe, complete_format = completing(_recipes), completing(_formats)
complete_dataset = completing(lambda: plugins.names("data.datasets"))
complete_objective = completing(lambda: plugins.names("training.objectives"))
complete_protocol = completing(lambda: plugins.names("evaluation.probes"))
complete_engine = completing(lambda: plugins.names("cache.engines"))
complete_teacher = completing(lambda: ("hog", DEFAULT_TEACHER))
complete_device = completing(lambda: ("auto", "cpu", "cuda"))

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
Cache = Annotated[
    str | None,  # text: `config` turns it into a location inside the error boundary, where a missing driver is one sentence
    typer.Option(
        envvar="STJEPA_CACHE",
        metavar="PATH|URL",
        help="Latent cache, a folder or URL.",
        show_default="<data root>/cache_<teacher>_<dim>",
    ),
]
SSv2Root = Annotated[
    str | None,
    typer.Option(envvar="STJEPA_SSV2", metavar="PATH|URL", help="Something-Something v2, a folder or URL.", show_default="/mnt/ssv2"),
]
UCF101Root = Annotated[
    str | None, typer.Option(envvar="STJEPA_UCF101", metavar="PATH|URL", help="UCF-101, a folder or URL.", show_default="/mnt/ucf101")
]
Device = Annotated[str, typer.Option(autocompletion=complete_device, help="Device: auto, cpu, cuda or cuda:N.")]
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
