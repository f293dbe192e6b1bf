"""The command-line program: the tree of commands. Nothing heavy is imported here, so that --help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from stjepa_cli import __version__
from stjepa_cli.commands import benchmark, cache, demo, download_check, export, infer, inspect, pretrain, report

app = typer.Typer(
    name="stjepa",
    help="Compact video encoders learned from the cached latents of large frozen ones.\n\nExample: stjepa demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"stjepa {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")] = False,
) -> None:
    pass


download_check.register(app)
app.add_typer(cache.app, name="cache")
pretrain.register(app)
app.add_typer(infer.app, name="infer")
app.add_typer(inspect.app, name="inspect")
report.register(app)
export.register(app)
demo.register(app)
app.add_typer(benchmark.app, name="benchmark")


def main() -> None:
    """Entry point of the console script."""
    app()
