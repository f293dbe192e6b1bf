"""`stjepa judgements` and `stjepa head` as a user runs them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.commands.test_cli import REPOSITORY, Program
from tests.search.postgres import running
from tests.search.tables import FOLDERS, write_videos
from tests.zygote import Zygote


@pytest.fixture(scope="module")
def stjepa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The program in a folder with a table of 6 videos of three labels, and their labels."""
    pytest.importorskip("lancedb")
    folder = tmp_path_factory.mktemp("judgements")
    videos = write_videos(folder / "videos")
    lines = [f"{path},{path.parent.name}" for path in videos if path.parent.name in FOLDERS]
    (folder / "labels.csv").write_text("\n".join(["item,label", *lines]))
    started = Zygote({**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")})
    program = Program(folder, started)
    program("embed", "videos", "--model", "hog", "--num-frames", 4, "--table", "table")
    yield program
    started.close()


def test_from_labels_to_a_column_that_can_be_searched(stjepa: Program) -> None:
    imported = stjepa.json("judgements", "import", "labels.csv", "--log", "log", "--mode", "motion")
    assert (imported["read"], imported["new"], imported["mode"]) == (6, 6, "motion")
    assert stjepa.json("judgements", "import", "labels.csv", "--log", "log", "--mode", "motion")["new"] == 0
    trained = stjepa.json("head", "train", "table", "--log", "log", "--mode", "motion", "--out", "motion.head")
    assert (trained["judgements"], trained["keep_raw"], trained["left_out"]) == (6, True, 0)
    reported = stjepa.json("head", "report", "motion.head", "--html", "motion.html")
    assert {key: value for key, value in trained.items() if key in reported} == reported
    assert "Keep raw" in (stjepa.folder / "motion.html").read_text()
    applied = stjepa.json("head", "apply", "table", "motion.head", "--column", "motion")
    assert (applied["written"], applied["skipped"], applied["keep_raw"]) == (6, 0, True)
    row = stjepa.json("search", "table", "videos/left/0.mp4", "--column", "video_embedding", "--top", 1)["results"][0]["id"]
    found = [stjepa.json("search", "table", row, "--column", column)["results"] for column in ("motion", "video_embedding")]
    assert [hit["id"] for hit in found[0]] == [hit["id"] for hit in found[1]]


def test_people_are_told_what_happened(stjepa: Program) -> None:
    assert "known already" in stjepa("judgements", "import", "labels.csv", "--log", "shown", "--mode", "motion").stdout
    shown = stjepa("head", "train", "table", "--log", "shown", "--mode", "motion", "--out", "shown.head")
    assert "held-out items" in shown.stdout
    assert "are too few to learn from" in shown.stderr
    assert "learned nothing" in stjepa("head", "apply", "table", "shown.head", "--column", "shown").stderr
    assert "events" in stjepa("judgements", "export", "shown", "shown.jsonl").stdout
    assert len([json.loads(line) for line in (stjepa.folder / "shown.jsonl").read_text().splitlines()]) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("judgements", "import", "nosuch.jsonl", "--log", "x", "--mode", "m"), "no such file"),
        (("judgements", "export", "nosuch", "x.jsonl"), "no log of judgements"),
        (("head", "train", "table", "--log", "nosuch", "--mode", "m", "--out", "x"), "no log of judgements"),
        (("head", "train", "nowhere", "--log", "log", "--mode", "m", "--out", "x", "--loss", "deep"), "unknown loss"),
        (("head", "report", "nosuch"), "there is no head"),
        (("head", "apply", "table", "nosuch", "--column", "x"), "there is no head"),
    ],
)
def test_a_mistake_is_one_sentence(stjepa: Program, arguments: tuple[object, ...], message: str) -> None:
    assert message in stjepa.error(*arguments)


def test_a_video_cannot_be_searched_for_in_the_column_of_a_head(stjepa: Program) -> None:
    stjepa("judgements", "import", "labels.csv", "--log", "video", "--mode", "motion")
    stjepa("head", "train", "table", "--log", "video", "--mode", "motion", "--out", "video.head")
    stjepa("head", "apply", "table", "video.head", "--column", "by_video")
    assert "written by a head" in stjepa.error("search", "table", "videos/left/0.mp4", "--column", "by_video")


def test_heads_work_on_a_table_in_postgresql(stjepa: Program) -> None:
    with running() as dsn:
        place = ("clips", "--pgvector", dsn)
        stjepa("embed", "videos", "--model", "hog", "--num-frames", 4, "--table", *place)
        stjepa("judgements", "import", "labels.csv", "--log", "server", "--mode", "motion")
        stjepa("head", "train", *place, "--log", "server", "--mode", "motion", "--out", "server.head")
        assert stjepa.json("head", "apply", "clips", "server.head", "--column", "motion", *place[1:])["written"] == 6
        assert stjepa.json("head", "apply", "clips", "server.head", "--column", "motion", *place[1:])["skipped"] == 6
