"""From a table and a log to a head, to a new column, to a report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stjepa_cli.core.errors import CheckpointError, ConfigError
from stjepa_cli.judgements.apply import apply
from stjepa_cli.judgements.events import Event, EventLog
from stjepa_cli.judgements.head_file import read_head
from stjepa_cli.judgements.report import report, write_page
from stjepa_cli.judgements.simulation import World, ask, make_world
from stjepa_cli.judgements.training import TrainRequest, train
from stjepa_cli.search.indexes.base import open_index
from stjepa_cli.search.records import Column, Row

pytest.importorskip("lancedb")

KEYS = {
    *("mode", "judgements", "triplets", "judges", "items", "agreement", "ceiling", "agreement_over_ceiling", "position_bias", "none_rate"),
    *("median_response_ms", "overlap_at_10", "gain_last_3_rounds", "converged", "other_task", "lambda", "encoder_digest", "log_digest"),
}
WORLD = make_world(300, 0, dim=16, signal=4)


def column(name: str = "video_embedding", *, digest: str = "a" * 64, kind: str = "clip") -> Column:
    return Column(name, kind, 16, "made up", digest, "mean" if kind == "clip" else "none")


def fill(place: Path, world: World, mine: Column) -> None:
    """Write the items of a world into a table, each as a video without a file."""
    vectors = world.vectors.numpy() if mine.kind == "clip" else np.repeat(world.vectors.numpy()[:, None], 2, 1)
    rows = [
        Row(f"/v/{name}.mp4", digest="d", model=mine.model, model_digest=mine.model_digest, vectors={mine.name: vector})
        for name, vector in zip(world.names, vectors, strict=True)
    ]
    with open_index(str(place), create=True) as index:
        index.add_column(mine)
        index.upsert(rows, mine.name)


def uris(events: list[Event]) -> list[Event]:
    """The same events about the videos of the table."""

    def uri(name: str) -> str:
        return f"/v/{name}.mp4"

    return [
        Event(**{**vars(e), "anchor": uri(e.anchor), "candidates": tuple(map(uri, e.candidates)), "selected": tuple(map(uri, e.selected))})
        for e in events
    ]


def log_of(path: Path, *groups: list[Event]) -> Path:
    with EventLog.open(path, create=True) as log:
        for events in groups:
            log.append(uris(events))
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 300 items; to read."""
    place = tmp_path_factory.mktemp("table") / "table"
    fill(place, WORLD, column())
    return place


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with 400 answers about one thing and 100 coin flips about another."""
    other = ask(WORLD, 100, 1, coin=True, mode="place")
    return log_of(tmp_path_factory.mktemp("log") / "log", ask(WORLD, 400, 0), other)


@pytest.fixture(scope="module")
def head(table: Path, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("head") / "trick.safetensors"
    train(TrainRequest(str(table), log, "trick", out))
    return out


def test_the_report_has_the_keys_of_the_contract_and_the_head_agrees_more_often(head: Path) -> None:
    found = json.loads(json.dumps(report(head).to_json()))
    assert set(found) == KEYS | {"keep_raw", "kind", "loss", "dim", "split_seed"}
    assert (found["mode"], found["judgements"], found["triplets"], found["judges"]) == ("trick", 400, 400, 1)
    assert found["agreement"]["head"] > found["agreement"]["raw"]
    assert found["agreement"]["interval"][0] > 0
    assert found["other_task"]["name"] == "place"
    assert 0 < found["overlap_at_10"] < 1
    assert (found["keep_raw"], found["encoder_digest"]) == (False, "a" * 64)


def test_the_page_says_what_the_report_says(head: Path, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", report(head), "stjepa head report <x>")
    page = (tmp_path / "page.html").read_text()
    assert "agrees with the judge in" in page
    assert "<x>" not in page


def test_the_same_log_and_seed_give_the_same_bytes(table: Path, log: Path, head: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 0), ("other", 1)):
        train(TrainRequest(str(table), log, "trick", tmp_path / name, seed=seed))
    assert (tmp_path / "again").read_bytes() == head.read_bytes()
    assert (tmp_path / "other").read_bytes() != head.read_bytes()


def test_undone_answers_leave_no_trace_in_the_head(table: Path, tmp_path: Path) -> None:
    answers = ask(WORLD, 120, 0)
    undo = Event("undo", "simulated", "simulated", "trick", selected=tuple(e.event_id for e in answers[:20]), verdict="undo")
    for name, groups in (("with", [answers]), ("without", [answers[20:]])):
        log_of(tmp_path / name, *groups)
    with EventLog.open(tmp_path / "with") as opened:
        opened.append([undo])
    for name in ("with", "without"):
        train(TrainRequest(str(table), tmp_path / name, "trick", tmp_path / f"{name}.head"))
    assert (tmp_path / "with.head").read_bytes() == (tmp_path / "without.head").read_bytes()


@pytest.mark.parametrize("num_answers", [0, 20, 50])
def test_coin_flips_are_answered_with_keep_raw(table: Path, tmp_path: Path, num_answers: int) -> None:
    log = log_of(tmp_path / "log", ask(WORLD, num_answers, 0, coin=True))
    header = train(TrainRequest(str(table), log, "trick", tmp_path / "head")).header
    assert header.keep_raw
    assert report(tmp_path / "head").verdict().startswith("Keep raw")
    assert header.report["agreement"]["raw"] == header.report["agreement"]["head"]
    vectors = torch.randn(3, 16)
    assert torch.equal(read_head(tmp_path / "head")[0](vectors), vectors)


def test_applying_writes_a_new_column_resumes_and_keeps_the_old_one(head: Path, tmp_path: Path) -> None:
    place = tmp_path / "table"
    fill(place, WORLD, column())
    first = apply(str(place), head, "trick")
    assert (first.source, first.written, first.skipped, first.index) == ("video_embedding", 300, 0, "exact")
    loaded, _ = read_head(head)
    with open_index(str(place)) as index:
        assert list(index.columns()) == ["video_embedding", "trick"]
        rows = list(index.rows(columns=("video_embedding", "trick"), only_ok=True))
        assert len(rows) == 300
        for row in rows:
            raw, new = row.vectors["video_embedding"], row.vectors["trick"]
            assert raw is not None
            assert new is not None
            np.testing.assert_allclose(new, loaded(torch.from_numpy(raw)).detach().numpy(), atol=1e-5)
        index.delete([rows[0].id])
        again = Row("/v/new.mp4", digest="d", vectors={"video_embedding": rows[0].vectors["video_embedding"]})
        index.upsert([again], "video_embedding")
    second = apply(str(place), head, "trick")
    assert (second.written, second.skipped) == (1, 299)


def test_a_head_for_another_encoder_is_refused_and_so_is_a_column_of_another_head(head: Path, log: Path, tmp_path: Path) -> None:
    place = tmp_path / "table"
    fill(place, WORLD, column(digest="b" * 64))
    with pytest.raises(ConfigError, match=r"another encoder.*bbbbbbbbbbbb.*aaaaaaaaaaaa"):
        apply(str(place), head, "trick")
    fill(place, WORLD, column("right"))
    apply(str(place), head, "trick", "right")
    train(TrainRequest(str(place), log, "trick", tmp_path / "other", column="right", seed=1))
    with pytest.raises(ConfigError, match="holds other vectors"):
        apply(str(place), tmp_path / "other", "trick", "right")
    with pytest.raises(ConfigError, match="a column of its own"):
        apply(str(place), head, "right", "right")


def test_attention_reads_tokens_and_a_narrower_head_has_fewer_channels(log: Path, table: Path, tmp_path: Path) -> None:
    place = tmp_path / "table"
    fill(place, WORLD, column("tokens", kind="tokens"))
    header = train(TrainRequest(str(place), log, "trick", tmp_path / "attention", kind="attention", dim=8)).header
    assert (header.dim, header.input_kind, header.keep_raw) == (8, "tokens", False)
    assert apply(str(place), tmp_path / "attention", "trick").dim == 8
    with pytest.raises(ConfigError, match="reads a column of frames or tokens"):
        train(TrainRequest(str(table), log, "trick", tmp_path / "none", kind="attention"))


def test_ids_of_rows_and_uris_are_the_same_item(table: Path, tmp_path: Path) -> None:
    events = uris(ask(WORLD, 60, 0))
    ids = [
        Event(
            **{
                **vars(e),
                "anchor": Row(e.anchor).id,
                "candidates": tuple(Row(c).id for c in e.candidates),
                "selected": (Row(e.selected[0]).id,),
            }
        )
        for e in events
    ]
    heads = []
    for name, group in (("uris", events), ("ids", ids)):
        with EventLog.open(tmp_path / name, create=True) as opened:
            opened.append(group)
        heads.append(train(TrainRequest(str(table), tmp_path / name, "trick", tmp_path / f"{name}.head")))
    first, second = (read_head(each.head)[0].state_dict() for each in heads)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_mistakes_are_one_sentence(table: Path, log: Path, head: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"mode": "nosuch"}, "no judgements of this mode: got nosuch, expected one of place, trick"),
        ({"kind": "deep"}, "unknown kind of head"),
        ({"loss": "deep"}, "unknown loss"),
        ({"dim": 17}, "cannot have this width"),
        ({"column": "nosuch"}, "no column of vectors of this name"),
    ):
        values = {"table": str(table), "log": log, "mode": "trick", "out": tmp_path / "out", **changes}
        with pytest.raises(ConfigError, match=message):
            train(TrainRequest(**values))  # type: ignore[arg-type]
    strangers = tmp_path / "strangers"
    with EventLog.open(strangers, create=True) as opened:
        opened.append(ask(WORLD, 5, 0))
    with pytest.raises(ConfigError, match="none of the judgements is about rows of"):
        train(TrainRequest(str(table), strangers, "trick", tmp_path / "out"))
    with pytest.raises(ConfigError, match="there is no head"):
        report(tmp_path / "nosuch")
    (tmp_path / "damaged").write_bytes(head.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        apply(str(table), tmp_path / "damaged", "new")
