"""Judgements go into a log and come out as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stjepa_cli.core.errors import ConfigError
from stjepa_cli.judgements.events import EventLog
from stjepa_cli.judgements.files import export_file, import_file, read_events
from stjepa_cli.judgements.triplets import Triplet, judgements, triplets
from tests.judgements.answers import answer, undo

LEAST = {"judge": "ann", "anchor": "a", "candidates": ["b", "c"], "selected": ["b"], "verdict": "choice"}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_log_that_is_exported_and_imported_is_the_same_log(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    events = [answer(1), answer(2, response_ms=None, mode="place"), undo(3), answer(4, selected=(), verdict="none", judge="böb")]
    with EventLog.open(tmp_path / "log", create=True) as log:
        log.append(events)
    assert export_file(tmp_path / "log", tmp_path / f"all{suffix}").events == 4
    assert import_file(tmp_path / f"all{suffix}", tmp_path / "copy", "other").new == 4
    with EventLog.open(tmp_path / "copy") as log:
        assert list(log.events()) == events
    assert export_file(tmp_path / "log", tmp_path / f"some{suffix}", "place").events == 1


def test_the_least_that_a_line_says_is_enough_and_the_same_file_again_adds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    lines = [LEAST, LEAST, {"judge": "ann", "verdict": "undo"}, {**LEAST, "judge": "bob", "mode": "place"}]
    file.write_text("\n\n".join(map(json.dumps, lines)))
    first = import_file(file, tmp_path / "log", "trick")
    assert (first.read, first.new) == (4, 4)
    file.write_text(file.read_text() + "\n" + json.dumps({**LEAST, "selected": ["c"]}))
    assert import_file(file, tmp_path / "log", "trick").new == 1
    with EventLog.open(tmp_path / "log") as log:
        assert [event.selected for event in judgements(log.events("trick"))].count(("b",)) == 1
        assert [event.judge for event in log.events("place")] == ["bob"]


def test_triplets_are_imported_from_csv(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("anchor,positive,negative,judge\na,b,c,ann\nb,a,d,\n")
    events = list(read_events(tmp_path / "t.csv", "trick"))
    assert list(triplets(events)) == [Triplet("a", "b", ("c",)), Triplet("b", "a", ("d",))]
    assert [event.judge for event in events] == ["ann", "triplets"]


def test_labels_become_questions_that_they_answer(tmp_path: Path) -> None:
    labels = {f"{label}{i}": label for label in ("x", "y") for i in range(6)} | {"alone": "z"}
    lines = [f"{item},{label}" for item, label in labels.items()]
    (tmp_path / "a.csv").write_text("\n".join(["item,label", *lines]))
    (tmp_path / "b.csv").write_text("\n".join(["item,label", *reversed(lines)]))
    events = list(read_events(tmp_path / "a.csv", "trick"))
    assert len(events) == 12
    for event in events:
        assert [each for each in event.candidates if labels[each] == labels[event.anchor]] == list(event.selected)
        assert len(event.candidates) == 8
    assert events == list(read_events(tmp_path / "b.csv", "trick"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "{", "line 1 of .* is no JSON"),
        ("a.jsonl", "[]", "line 1 of .* is no judgement"),
        ("a.jsonl", '{"judge": "ann"}', "judgement 1 of .*: a judgement is incomplete: got no anchor"),
        ("a.jsonl", json.dumps({**LEAST, "selected": ["z"]}), "only candidates can be selected"),
        ("a.jsonl", json.dumps({**LEAST, "colour": 1}), "unknown key"),
        ("a.jsonl", json.dumps({**LEAST, "candidates": "b"}), "expected a list"),
        ("a.jsonl", "", "no judgements"),
        ("a.csv", "x,y\n1,2", "other columns"),
        ("a.txt", "x", "does not say how to read it"),
    ],
)
def test_a_bad_file_is_one_sentence_and_leaves_the_log_alone(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        import_file(tmp_path / name, tmp_path / "log", "trick")
    assert not (tmp_path / "log").exists()
    with pytest.raises(ConfigError, match="no such file"):
        import_file(tmp_path / "nosuch.jsonl", tmp_path / "log", "trick")
