"""The command-line program: the tree of commands. Nothing heavy is imported here, so that `--help` is fast."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from stjepa_cli import __version__
from stjepa_cli.commands import (
    benchmark,
    cache,
    console,
    demo,
    download_check,
    embed,
    export,
    head,
    infer,
    inspect,
    judgements,
    pretrain,
    report,
    search,
    search_pages,
    streams,
)
from stjepa_cli.core import threads
from stjepa_cli.core.errors import StjepaError

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
    version: Annotated[bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and exit.")] = False,
) -> None:
    pass


download_check.register(app)
app.add_typer(cache.app, name="cache")
pretrain.register(app)
app.add_typer(infer.app, name="infer")
app.add_typer(inspect.app, name="inspect")
report.register(app)
export.register(app)
embed.register(app)
search.register(app)
search_pages.register(app)
app.add_typer(judgements.app, name="judgements")
app.add_typer(head.app, name="head")
demo.register(app)
app.add_typer(benchmark.app, name="benchmark")


# ---------------------------------------------------------------------------------------- options of every command


def _quiet(value: bool) -> None:
    streams.output.quiet = value


def _verbose(value: bool) -> None:
    streams.output.verbose = value


def _log_file(value: Path | None) -> None:
    if value is None:
        return
    try:
        streams.output.open_log(value)
    except StjepaError as error:
        raise typer.BadParameter(error.sentence()) from error


def _threads(value: int | None) -> None:
    threads.prepare_environment(value)


def _shared(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", callback=_quiet, help="Show results and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", callback=_verbose, help="Show timings and tracebacks too.")] = False,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", callback=_log_file, help="Append messages, progress and results to this file too.")
    ] = None,
    num_threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, max=1024, callback=_threads, help="Intra-op threads of torch.", show_default="by cores and model"),
    ] = None,
) -> None:
    pass


def shared_options() -> list[Any]:
    """Return the options that every command takes; their callbacks use the values."""
    holder = typer.Typer()
    holder.command()(_shared)
    options = [option for option in typer.main.get_command(holder).params if option.name in ("quiet", "verbose", "log_file", "num_threads")]
    for option in options:
        option.expose_value = False
    return options


def command_tree() -> Any:
    """Return the tree of commands, with the options that all of them take."""
    tree, options = typer.main.get_command(app), shared_options()
    for command in _leaves(tree):
        command.params += options
    return tree


def _leaves(command: Any) -> Iterator[Any]:
    children = getattr(command, "commands", {})
    for child in children.values():
        yield from _leaves(child)
    if not children:
        yield command


def _escape_brackets(command: Any) -> None:
    """Keep the brackets of `stjepa[ray]` in help texts: typer takes them for markup of rich."""
    for part in (command, *command.params):
        if getattr(part, "help", None):
            part.help = console.escape_markup(part.help)
    for child in getattr(command, "commands", {}).values():
        _escape_brackets(child)


def main() -> None:
    """Run the program: entry point of the console script."""
    streams.prepare()
    tree = command_tree()
    _escape_brackets(tree)
    as_json = "--json" in sys.argv[1:]
    try:
        with streams.writing_results():  # help and version too
            sys.exit(tree(prog_name="stjepa", standalone_mode=not as_json))
    except StjepaError as error:
        console.say(f"error: {error.sentence()}", style="bold red")
        sys.exit(1)
    except Exception as error:
        message = getattr(error, "format_message", None)  # of usage errors; typer's version decides whether the class is click's
        if message is None:
            raise
        with suppress(StjepaError):  # stdout may be full or closed
            streams.print_json({"ok": False, "error": message()})
        console.say(f"error: {message()}", style="bold red")
        sys.exit(getattr(error, "exit_code", 2))
