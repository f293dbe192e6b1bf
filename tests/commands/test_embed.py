"""`stjepa embed` and `stjepa index` as a user runs them: keys, exit codes, environment, and one sentence for what goes wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.test_cli import REPOSITORY, Program
from tests.media import write_empty
from tests.search.clips import DIM, MODEL, write_clips
from tests.zygote import Zygote

pytest.importorskip("lancedb")
KEYS = {"table", "rows", "written", "skipped", "failed", "column", "model", "dim", "seconds"}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    started = Zygote({**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"})
    yield started
    started.close()


@pytest.fixture
def stjepa(tmp_path: Path, zygote: Zygote) -> Program:
    write_clips(tmp_path / "clips", 3)
    program = Program(tmp_path, zygote)
    program.environment |= {"VJEPA_MODEL": MODEL}
    return program


def test_json_has_the_keys_that_scripts_rely_on(stjepa: Program) -> None:
    write_empty(stjepa.folder / "clips" / "empty.mp4")
    found = stjepa.json("embed", "clips", "--table", "db", "--device", "cpu")
    assert found.keys() >= KEYS
    assert (found["rows"], found["written"], found["skipped"], found["dim"], found["model"]) == (4, 3, 0, DIM, MODEL)
    assert found["failed"] == [{"uri": str(stjepa.folder / "clips" / "empty.mp4"), "error": "the file is empty"}]
    again = stjepa.json("embed", "clips", "--table", "db", "--strict", code=1)
    assert (again["written"], again["skipped"], len(again["failed"])) == (0, 3, 1)
    assert stjepa.json("index", "db").keys() >= {"table", "column", "kind", "rows", "recall", "seconds"}


def test_people_see_what_was_done_and_why_a_video_was_not(stjepa: Program) -> None:
    write_empty(stjepa.folder / "clips" / "empty.mp4")
    done = stjepa("embed", "clips", "--table", "db")
    assert "db/videos (4 rows)" in done.stdout
    assert "the file is empty" in done.stdout
    shown = stjepa("index", "db").stdout
    assert "recall@10" in shown
    assert "1.000 against exact search" in shown


def test_defaults_come_from_the_environment_and_flags_win(stjepa: Program) -> None:
    stjepa.environment |= {"VIDEO_EMBEDDING_COL": "mine", "VJEPA_MODEL": "hog", "NUM_FRAMES": "4", "BLOCK_SIZE": "65536"}
    found = stjepa.json("embed", "clips/000.mp4", "--table", "db")
    assert (found["column"], found["model"]) == ("mine", "hog")
    assert stjepa.json("embed", "clips/000.mp4", "--table", "db", "--column", "other")["column"] == "other"
    assert "holds other vectors" in stjepa.error("embed", "clips/001.mp4", "--table", "db", "--num-frames", 2)


def test_a_table_has_a_name_of_its_own(stjepa: Program) -> None:
    assert stjepa.json("embed", "clips", "--table", "db")["rows"] == 3
    assert stjepa.json("embed", "clips", "--table", "db/second", "--limit", 1)["rows"] == 1
    assert sorted(path.name for path in (stjepa.folder / "db").glob("*.lance")) == ["second.lance", "videos.lance"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.mp4", "--table", "db"), "there is no such video, folder or table: got none.mp4"),
        ((".", "--table", "db", "--limit", "1", "--model", "nosuch"), "nosuch"),
        (("clips",), "Add `--table FOLDER`, or `--pgvector DSN`"),
        (("clips", "--table", "db", "--length", "3"), "Add `--stride SECONDS`"),
        (("clips", "--table", "db", "--strategy", "window"), "Add `--window-center"),
        (("clips", "--table", "db", "--engine", "spark"), "unknown engine"),
        (("clips", "--table", "db", "--output", "tokens", "--pool", "max"), "this pooling does not make tokens: got max, expected none"),
        (("clips", "--table", "db", "--column", "a b"), "a column cannot have this name"),
        (("gs://bucket/clips", "--table", "db"), "gs://"),
        (("nosuch://bucket/clips", "--table", "db"), "unknown protocol"),
        (("clips", "--table", "clips/000.mp4"), "000.mp4"),
    ],
)
def test_what_goes_wrong_is_one_sentence(stjepa: Program, arguments: tuple[str, ...], message: str) -> None:
    assert message in stjepa.error("embed", *arguments)


def test_an_index_of_nothing_is_one_sentence(stjepa: Program) -> None:
    assert "there is no table at this place: got db" in stjepa.error("index", "db")
    stjepa("embed", "clips", "--table", "db", "--limit", 1, "--output", "tokens")
    assert "holds tokens, and a search needs one vector per clip" in stjepa.error("index", "db")
    assert "expected one of video_embedding" in stjepa.error("index", "db", "--column", "other")
