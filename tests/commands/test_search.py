"""`stjepa search`, `duplicates` and `map` as a user runs them, on both databases."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.test_cli import REPOSITORY, Program
from tests.search.postgres import running
from tests.search.tables import write_videos
from tests.zygote import Zygote


@pytest.fixture(scope="module")
def stjepa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The program in a folder with 7 videos, one of them twice."""
    folder = tmp_path_factory.mktemp("search")
    write_videos(folder / "videos")
    shutil.copy(folder / "videos" / "left" / "0.mp4", folder / "videos" / "down" / "copy.mp4")
    started = Zygote({**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")})
    yield Program(folder, started)
    started.close()


@pytest.fixture(scope="module", params=["lancedb", "pgvector"])
def place(request: pytest.FixtureRequest, stjepa: Program) -> Iterator[tuple[str, ...]]:
    """The table and the option that names its database, after `stjepa embed`."""
    if request.param == "lancedb":
        pytest.importorskip("lancedb")
        stjepa("embed", "videos", "--model", "hog", "--num-frames", 4, "--table", "table")
        yield ("table",)
        return
    with running() as dsn:
        stjepa("embed", "videos", "--model", "hog", "--num-frames", 4, "--table", "clips", "--pgvector", dsn)
        yield "clips", "--pgvector", dsn


def test_search_prints_json_and_writes_a_page(stjepa: Program, place: tuple[str, ...]) -> None:
    found = stjepa.json("search", *place, "videos/left/0.mp4", "--top", 3, "--html", "found.html")
    assert set(found) == {"table", "column", "model", "query", "where", "results", "seconds", "page", "not_shown"}
    assert {"id", "uri", "start_seconds", "end_seconds", "distance"} <= set(found["results"][0])
    assert {Path(hit["uri"]).name for hit in found["results"][:2]} == {"0.mp4", "copy.mp4"}
    assert len(found["results"]) == 3
    page = (stjepa.folder / "found.html").read_text()
    assert "stjepa search" in page
    assert "postgresql:" not in page  # a DSN may hold a password
    assert "--pgvector DSN" in page or len(place) == 1


def test_search_shows_a_table_to_people(stjepa: Program, place: tuple[str, ...]) -> None:
    shown = stjepa("search", *place, "videos/left/0.mp4", "--where", "uri like '%/down/%'")
    assert "copy.mp4" in shown.stdout
    assert "broken.mp4" not in shown.stdout
    nothing = stjepa("search", *place, "videos/left/0.mp4", "--where", "duration_seconds > 1000")
    assert "No row fits" in nothing.stderr


def test_duplicates_finds_the_copy(stjepa: Program, place: tuple[str, ...]) -> None:
    found = stjepa.json("duplicates", *place, "--threshold", 0.9999, "--html", "duplicates.html")
    assert [{Path(member["uri"]).name for member in group} for group in found["groups"]] == [{"0.mp4", "copy.mp4"}]
    assert (found["duplicates"], found["rows"], found["left_out"]) == (1, 7, 1)
    assert "Group 1: 2 rows" in (stjepa.folder / "duplicates.html").read_text()
    assert "copy.mp4" in stjepa("duplicates", *place, "--threshold", 0.9999).stdout


def test_map_draws_every_video(stjepa: Program, place: tuple[str, ...]) -> None:
    found = stjepa.json("map", *place, "--html", "map.html", "--color", "fps", "--thumbnails", 4)
    assert (found["points"], found["left_out"], found["thumbnails"], found["color"]) == (7, 1, 4, "fps")
    assert found["bytes"] == (stjepa.folder / "map.html").stat().st_size
    assert "7 of" in stjepa("map", *place, "--html", "map.html").stdout


@pytest.mark.parametrize("place", ["lancedb"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("search", "nosuch.mp4"), "no such file"),
        (("search", "videos/broken.mp4"), "cannot be searched for"),
        (("search", "videos/left/0.mp4", "--where", "1 = 1; DROP TABLE clips"), "cannot read the condition"),
        (("search", "videos/left/0.mp4", "--column", "nosuch"), "no column of vectors of this name"),
        (("search", "videos/left/0.mp4", "--model", "pixels"), "pixels is not the model"),
        (("search", "videos/left/0.mp4", "--html", "videos"), "cannot write videos"),
        (("duplicates", "--threshold", 2), "the threshold is a cosine similarity"),
        (("map", "--color", "nosuch"), "nothing to colour by"),
        (("map", "--where", "duration_seconds > 1000"), "has a vector"),
        (("map", "--method", "tsne"), "unknown method"),
    ],
)
def test_a_mistake_is_one_sentence(stjepa: Program, place: tuple[str, ...], arguments: tuple[object, ...], message: str) -> None:
    name, *others = arguments
    error = stjepa.error(name, *place[:1], *others, *place[1:])
    assert message in error


def test_a_table_or_server_that_is_not_there_is_one_sentence(stjepa: Program) -> None:
    for name in ("search", "duplicates", "map"):
        query = ("videos/left/0.mp4",) if name == "search" else ()
        assert "no table at this place" in stjepa.error(name, "nowhere", *query)
        unreachable = stjepa.error(name, "clips", *query, "--pgvector", "postgresql://me:secret@127.0.0.1:1/db")
        assert "does not answer" in unreachable
        assert "secret" not in unreachable
