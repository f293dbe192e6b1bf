"""Streams: one sentence or one JSON object, whatever the terminal, the pipe and the names are. Without torch, so that it is quick."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stjepa_cli.commands.streams import json_text, visible

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from dataclasses import dataclass
from stjepa_cli.commands import console, streams
from stjepa_cli.core.errors import StjepaError

@dataclass(frozen=True)
class Result:
    name: str

def call(progress):
    progress.note("a note")
    with progress.task("work", total=3, unit="steps") as task:
        task.advance(3, loss=0.5)
    what = sys.argv[2]
    if what == "error":
        raise StjepaError(f"cannot use {sys.argv[1]}", fix="Type `x`.")
    if what == "bug":
        raise ValueError("a bug")
    if what == "memory":
        raise MemoryError
    if what == "import":
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")
    if what == "system":
        open("/nowhere/at/all")
    if what == "stop":
        raise KeyboardInterrupt
    return Result(sys.argv[1])

def render(result):
    console.show_table(result.name, (result.name, "n"), [(result.name, 1)], caption=result.name)
    console.show_pairs(result.name, {result.name: result.name})
    console.show_lines(result.name, [result.name])

streams.prepare()
streams.output.quiet = "-q" in sys.argv
streams.output.verbose = "-v" in sys.argv
if "--log" in sys.argv:
    from pathlib import Path
    streams.output.open_log(Path("log.txt"))
console.run_command(call, render=render, as_json="--json" in sys.argv, distributed="--distributed" in sys.argv)
"""


def run(folder: Path, *arguments: str | bytes, shell: str = "", code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the little program; `shell` is a redirection."""
    (folder / "program.py").write_text(PROGRAM)
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "RANK", "WORLD_SIZE")} | environment
    env["PYTHONPATH"] = str(REPOSITORY)
    command: list[str | bytes] = [sys.executable, "program.py", *arguments]
    if shell:
        command = ["bash", "-c", f'"$@" {shell}', "bash", *command]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, errors="surrogateescape")
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_results_go_to_stdout_and_everything_else_to_stderr(tmp_path: Path) -> None:
    done = run(tmp_path, "name", "ok")
    assert done.stdout.count("name") == 9
    assert done.stderr.splitlines() == ["a note", "work: 3/3 steps in 0.0 s, loss 0.5"]
    assert json.loads(run(tmp_path, "name", "ok", "--json").stdout) == {"name": "name"}


def test_quiet_shows_results_and_errors_only(tmp_path: Path) -> None:
    assert run(tmp_path, "name", "ok", "-q").stderr == ""
    assert run(tmp_path, "name", "error", "-q", code=1).stderr == "error: cannot use name. Type `x`.\n"


def test_verbose_adds_timings_and_tracebacks(tmp_path: Path) -> None:
    assert "took 0." in run(tmp_path, "name", "ok", "-v").stderr
    told = run(tmp_path, "name", "error", "-v", code=1).stderr
    assert "Traceback" in told
    assert told.splitlines()[-1] == "error: cannot use name. Type `x`."
    assert "Traceback" not in run(tmp_path, "name", "error", code=1).stderr


def test_the_log_file_has_messages_progress_results_and_errors_with_the_time(tmp_path: Path) -> None:
    run(tmp_path, "first", "ok", "--log", "-q")
    run(tmp_path, "second", "error", "--log", code=1)
    text = (tmp_path / "log.txt").read_text()
    for part in ("$ program.py first ok", "a note", "work: 3/3 steps", "first", "error: cannot use second. Type `x`."):
        assert part in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("error", 1, "cannot use name. Type `x`."),
        ("memory", 1, "not enough memory"),
        ("import", 1, "not enough memory"),
        ("system", 1, "/nowhere/at/all: No such file or directory"),
        ("stop", 130, "stopped"),
        ("bug", 1, "internal error: ValueError: a bug"),
    ],
)
def test_every_error_is_one_json_object_and_only_a_bug_has_a_traceback(tmp_path: Path, what: str, code: int, message: str) -> None:
    done = run(tmp_path, "name", what, "--json", code=code)
    found = json.loads(done.stdout)
    assert found["ok"] is False
    assert message in found["error"]
    assert ("Traceback" in done.stderr) == (what == "bug")


@pytest.mark.parametrize("as_json", [(), ("--json",)])
@pytest.mark.parametrize(("shell", "message"), [("> /dev/full", "No space left on device"), (">&-", "it is closed")])
def test_a_result_that_cannot_be_written_is_an_error(tmp_path: Path, as_json: tuple[str, ...], shell: str, message: str) -> None:
    done = run(tmp_path, "name", "ok", "-q", *as_json, shell=shell, code=1)
    assert done.stderr == f"error: cannot write the result to standard output: got {message}\n"


@pytest.mark.parametrize("shell", ["2>&-", "2> /dev/full"])
def test_a_closed_or_full_stderr_does_no_harm(tmp_path: Path, shell: str) -> None:
    assert json.loads(run(tmp_path, "name", "ok", "--json", shell=shell).stdout) == {"name": "name"}
    assert json.loads(run(tmp_path, "name", "error", "--json", shell=shell, code=1).stdout)["ok"] is False


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    done = run(tmp_path, "x" * 100_000, "ok", "-q", shell="| head -c 10")
    assert done.stderr == ""


NAMES = [b"caf\xc3\xa9", b"\xff\xfe", b"\x1b[31mred\x1b[0m", b"\xc2\x9b31m", b"[bold]", b"a\nb", b"\x07\x7f"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_any_name_can_be_shown_on_any_stream_and_moves_no_cursor(tmp_path: Path, name: bytes, encoding: str) -> None:
    shown = run(tmp_path, name, "ok", PYTHONIOENCODING=encoding).stdout
    assert not set(shown) & {chr(code) for code in (*range(9), *range(11, 32), 127, *range(128, 160))}
    found = json.loads(run(tmp_path, name, "ok", "--json", PYTHONIOENCODING=encoding).stdout)
    assert os.fsencode(found["name"]) == name
    assert "\x1b" not in run(tmp_path, name, "error", code=1, PYTHONIOENCODING=encoding).stderr


@pytest.mark.parametrize("columns", ["²", "x", "-5", "0", "9" * 5000, "", "1", "40"])
def test_odd_widths_do_no_harm(tmp_path: Path, columns: str) -> None:
    assert run(tmp_path, "name", "ok", COLUMNS=columns).stdout
    done = subprocess.run(
        [sys.executable, "-m", "stjepa_cli", "--help"],
        env=os.environ | {"COLUMNS": columns, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_only_a_process_of_torchrun_that_does_not_lead_is_silent(tmp_path: Path) -> None:
    for rank, size in (("1", ""), ("1", "1"), ("0", "2"), ("x", "y"), ("", "2"), ("1", "-2")):
        assert run(tmp_path, "name", "ok", "--distributed", RANK=rank, WORLD_SIZE=size).stdout
    assert run(tmp_path, "name", "ok", "--distributed", RANK="1", WORLD_SIZE="2").stdout == ""
    assert run(tmp_path, "name", "ok", RANK="1", WORLD_SIZE="2").stdout  # torchrun starts no command but pretrain


def test_markup_and_controls_are_text() -> None:
    assert visible("a\x1b[1m\tb\nc\x9b") == "a\\x1b[1m\tb\nc\\x9b"
    assert json_text({"a": "é\x9b\udcff"}) == '{\n  "a": "é\\u009b\\udcff"\n}'
    assert json_text({"a": "é"}, encoding="ascii") == '{\n  "a": "\\u00e9"\n}'


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("--help >&-", 1, "it is closed"),
        ("-V > /dev/full", 1, "No space left on device"),
        ("pretrain --epochs x --json > /dev/full", 2, "Invalid value for '--epochs'"),
        ("pretrain --epochs x --json >&-", 2, "Invalid value for '--epochs'"),
        ("pretrain --epochs x 2> /dev/full", 2, ""),
        ("pretrain --epochs x 2>&-", 2, ""),
    ],
)
def test_help_and_usage_errors_keep_their_exit_code_on_closed_and_full_streams(command: str, code: int, message: str) -> None:
    words = f"{sys.executable} -m stjepa_cli {command}"
    done = subprocess.run(["bash", "-c", words], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_numbers_that_json_does_not_have_are_null() -> None:
    assert json.loads(json_text({"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": (float("inf"),)}})) == {
        "a": None,
        "b": [1.5, None],
        "c": {"d": [None]},
    }
