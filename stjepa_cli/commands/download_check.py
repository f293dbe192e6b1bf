"""`stjepa download-check`: check that everything is there."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from stjepa_cli.commands import console, options
from stjepa_cli.core import config, places
from stjepa_cli.core.progress import Progress
from stjepa_cli.core.runtime import Runtime


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("download-check", help="Show what is there, what is missing and how to get it; downloads nothing.\n\n" + _EXAMPLE)(
        download_check
    )


_EXAMPLE = "Example: stjepa download-check --ssv2 /data/ssv2 --deep"


def download_check(
    ssv2: options.SSv2Root = None,
    ucf101: options.UCF101Root = None,
    cache: options.Cache = None,
    teacher: Annotated[
        str, typer.Option(autocompletion=options.complete_teacher, help="Hugging Face id, local folder or built-in name.")
    ] = config.DEFAULT_TEACHER,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every video instead of a sample.")] = False,
    as_json: options.Json = False,
) -> None:
    from stjepa_cli.cache.preflight import PreflightReport, preflight

    def call(progress: Progress) -> PreflightReport:
        root = places.ssv2_root(ssv2)
        place = places.cache_path(cache, root)
        runtime = Runtime(workers=os.cpu_count() or 1, progress=progress)
        return preflight(root, places.ucf101_root(ucf101), place, teacher, deep=deep, runtime=runtime)

    def render(result: PreflightReport) -> None:
        rows = [
            ("ok" if check.ok else "NO", check.name, check.detail + (f"\n-> {check.fix}" if check.fix else "")) for check in result.checks
        ]
        console.show_table("What is there", ("", "check", "found, and what to do"), rows)

    console.run_command(
        call,
        render=render,
        as_json=as_json,
        succeeded=lambda result: result.ok,
    )
