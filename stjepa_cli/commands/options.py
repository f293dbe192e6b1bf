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
