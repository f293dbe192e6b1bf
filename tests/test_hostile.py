"""Whatever is typed, written in `run.toml` or found in a header: the program answers with a result or one sentence, never a traceback.

Hypothesis makes the inputs: the same ones on every run, a few seconds of them, and many more with `--slow`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stjepa_cli.commands import streams
from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.serialization import from_dict, to_dict, write_toml
from stjepa_cli.core.types import ClipSpec, TeacherCard, digest
from stjepa_cli.main import command_tree, main
from stjepa_cli.models.checkpoint import read_header
from stjepa_cli.models.student import load_student
from stjepa_cli.models.tensor_file import read_tensors, write_tensors
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.training.pretrain import pretrain
from stjepa_cli.training.recipes import resolve_run
from tests.caches import make_cache

PLACES = {"data_root": Path("nowhere"), "cache": Path("nowhere/cache"), "checkpoints": Path("nowhere/run")}

NUMBERS = st.sampled_from([0, 1, -1, 2, 7, -96, 2**31, 2**53, 2**63, 10**20, 10**400, 0.5, -0.0, 1e-320, 1e308])
NOT_FINITE = st.sampled_from([float("nan"), float("inf"), float("-inf")])
ODD = st.sampled_from([True, "", "x", "nan", "²", "../..", "[red]", "\x1b[31m", "\ud800", "n" * 300])
SCALARS = st.one_of(NUMBERS, NOT_FINITE, ODD, st.integers(), st.floats(), st.text(max_size=8), st.none())
NESTED = st.deferred(lambda: st.lists(VALUES, max_size=3) | st.dictionaries(st.text(max_size=4), VALUES, max_size=3))
VALUES: st.SearchStrategy[Any] = SCALARS | NESTED


@contextmanager
def at_most_one_sentence() -> Iterator[None]:
    """Let an error of the program pass if it is one line."""
    try:
        yield
    except StjepaError as error:
        if "\n" in error.sentence():
            pytest.fail(error.sentence())


def paths(data: object, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of every value inside nested tables and lists."""
    if isinstance(data, Mapping):
        for name, value in data.items():
            yield (*before, name)
            yield from paths(value, (*before, name))


def changed(data: dict[str, Any], place: tuple[str | int, ...], value: object) -> dict[str, Any]:
    """Return a copy in which the value at a place is another."""
    first, *rest = place
    return {**data, first: changed(data[str(first)], tuple(rest), value) if rest else value}  # type: ignore[dict-item]


def changes(data: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Tables with one value that is another, or one key more."""
    places = [*paths(data), ("unheard-of",)]
    return st.builds(lambda place, value: changed(data, place, value), st.sampled_from(places), VALUES)


# ---------------------------------------------------------------------------------------------------------- run.toml


@given(data=changes(to_dict(from_dict(RunConfig, {**PLACES, "clip": {"num_frames": 4}, "steps": 9, "max_steps": 3}, where="the run"))))
def test_any_run_toml_is_a_run_or_one_sentence(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("toml") / "run.toml"
    try:
        text = tomli_w.dumps(_writable(data))
    except (UnicodeEncodeError, TypeError, ValueError):
        return  # TOML has no such thing
    file.write_text(text, errors="surrogatepass")
    with at_most_one_sentence():
        run = resolve_run(PLACES, file=file)
        write_toml(file, run)
        assert resolve_run({}, file=file) == run


def _writable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _writable(item) for name, item in value.items() if item is not None}
    return [_writable(item) for item in value if item is not None] if isinstance(value, list) else value


@given(data=st.binary(max_size=60) | st.text(alphabet="[]{}=\"'.\n\\u019eaxinf-+_:", max_size=60).map(str.encode))
def test_any_bytes_as_run_toml_are_a_run_or_one_sentence(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("toml") / "run.toml"
    file.write_bytes(data)
    with at_most_one_sentence():
        resolve_run(PLACES, file=file)


# ----------------------------------------------------------------------------------------------------------- headers


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache of 30 clips, and a run of two steps on it."""
    folder = tmp_path_factory.mktemp("made")
    make_cache(folder / "cache", num_clips=30, frames=True, finite=True)
    student, predictor = {"dim": 8, "num_factorized": 1, "num_joint": 1, "num_heads": 2}, {"dim": 8, "depth": 1, "num_heads": 2}
    small = {"student": student, "predictor": predictor, "steps": 2, "batch_size": 4, "workers": 1, "device": "cpu"}
    pretrain(resolve_run({"data_root": folder, "cache": folder / "cache", "checkpoints": folder / "run"}, flags=small))
    return folder


def cache_headers() -> st.SearchStrategy[dict[str, Any]]:
    card = TeacherCard("tiny", "hog", "1", "0" * 64, "none", 12, ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16))
    about = {"kind": "pca", "digest": "0" * 64, "explained": 1.0, "num_fit_clips": 10}
    fields = {"num_clips": 30, "clips_digest": "0" * 64, "latent_dim": 6, "rows_per_shard": 64, "num_views": 1, "frames": True}
    return changes({"dataset": "ssv2", "split": "train", "teacher": to_dict(card), "projection": about, **fields, "schema": 1})


@given(header=cache_headers())
def test_any_header_of_a_cache_opens_or_is_one_sentence(
    header: dict[str, Any], made: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    for name in ("clips.jsonl", "latents", "frames", "marks", "projection"):
        (cache / name).symlink_to(made / "cache" / name)
    data = json.loads((made / "cache" / "zarr.json").read_text())
    kept = ("clips_digest", "projection")
    whole = {**data["attributes"]["stjepa"], **{name: value for name, value in header.items() if name not in kept}}
    try:
        sealed = {"stjepa": whole, "stjepa_digest": digest(whole)}
    except ValueError:
        sealed = {"stjepa": whole, "stjepa_digest": "0" * 64}
    (cache / "zarr.json").write_text(json.dumps({**data, "attributes": sealed}), errors="surrogatepass")
    with at_most_one_sentence():
        store = LatentStore.open(cache)
        store.read(store.usable_rows()[:1])


@given(data=st.data())
def test_any_header_of_a_checkpoint_opens_or_is_one_sentence(
    data: st.DataObject, made: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint_step2.safetensors"
    written = made / "run" / path.name
    header = to_dict(read_header(written))
    found: Any = data.draw(st.one_of(changes(header), VALUES))
    write_tensors(path, read_tensors(written), {"stjepa": json.dumps(found)})
    with at_most_one_sentence():
        load_student(path, torch.device("cpu"))


# ----------------------------------------------------------------------------------------------------------- options

COMMANDS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("pretrain",): ("--cache", "nowhere"),
    ("cache", "build"): ("--data-root", "nowhere", "--teacher", "hog"),
    ("cache", "verify"): ("--cache", "cache"),
    ("inspect", "cache"): ("cache",),
    ("inspect", "checkpoint"): ("run",),
    ("infer", "ucf101"): ("--data-root", "nowhere", "--teacher", "hog"),
    ("infer", "video"): ("nowhere.mp4",),
    ("report",): ("run",),
    ("export",): ("run", "--out", "cache"),
    ("demo",): ("--out", "run"),
    ("benchmark", "motion"): ("--out", "run/run.toml"),
}
"""Each command with arguments with which it ends soon, whatever its options are."""

_NEVER = {"--help", "-h", "--log-file", "--threads", "--out", "--checkpoints", "--features", "--json", "--cache", "--data-root"}


def options_of(command: tuple[str, ...]) -> list[tuple[str, bool]]:
    """Return the options of a command, and whether they take a value."""
    node = command_tree()
    for name in command:
        node = node.commands[name]
    found = [(flag, not option.is_flag) for option in node.params if option.param_type_name == "option" for flag in option.opts]
    return [(flag, takes) for flag, takes in found if flag not in _NEVER]


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(sorted(COMMANDS)))
    words = [*command, *COMMANDS[command]]
    for flag, takes in draw(st.lists(st.sampled_from(options_of(command)), min_size=1, max_size=3)):
        words += [flag, str(draw(SCALARS)).replace("/", "").replace("\0", "")[:5000]] if takes else [flag]
    return words


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without places, and without a machine to reach."""
    for name in list(os.environ):
        if name.startswith("STJEPA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run_program(words: list[str], folder: Path) -> tuple[int, str, str]:
    """Run the program in this process, in a folder; returns exit code, stdout and stderr."""
    out, err, before = StringIO(), StringIO(), sys.argv
    sys.argv, streams.output.quiet, streams.output.verbose = ["stjepa", *words], False, False
    try:
        with chdir(folder), redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return code, out.getvalue(), err.getvalue()
    finally:
        sys.argv = before
    return 0, out.getvalue(), err.getvalue()


@pytest.mark.usefixtures("undisturbed")
@settings(max_examples=settings().max_examples // 3)
@given(words=command_lines())
def test_any_command_line_gives_one_json_object_and_an_exit_code(
    words: list[str], made: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("program") / "files"
    shutil.copytree(made, folder)
    code, out, err = run_program([*words, "--json"], folder)
    assert code in (0, 1, 2)
    assert isinstance(json.loads(out), dict)
    assert "internal error" not in out + err
    assert "Traceback" not in err or {"--verbose", "-v"} & set(words)
    shutil.rmtree(folder)
