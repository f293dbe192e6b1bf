"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
Cache = Annotated[Path | None, typer.Option(envvar="STJEPA_CACHE", help="The latent cache. [default: <data root>/cache_videomae_huge_384]")]
SSv2Root = Annotated[Path | None, typer.Option(envvar="STJEPA_SSV2", help="Folder of Something-Something v2. [default: /mnt/ssv2]")]
UCF101Root = Annotated[Path | None, typer.Option(envvar="STJEPA_UCF101", help="Folder of UCF-101. [default: /mnt/ucf101]")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Workers = Annotated[int, typer.Option(min=1, help="Threads that decode videos.")]
