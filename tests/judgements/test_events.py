"""The log loses nothing, doubles nothing and changes nothing."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stjepa_cli.core.errors import ConfigError, StjepaError, UnreadableError
from stjepa_cli.judgements.events import EventLog
from tests.judgements.answers import answer, undo

WRITER = """
import sys
from pathlib import Path
from stjepa_cli.judgements.events import EventLog
from tests.judgements.answers import answer
with EventLog.open(Path(sys.argv[1]), create=True) as log:
    for number in range(40):
        event = answer(number, event_id=f"{sys.argv[2]}-{number}")
        log.append([event])
        print(event.event_id, flush=True)
"""


def test_events_come_back_as_they_were_in_the_order_of_arrival(tmp_path: Path) -> None:
    events = [answer(3), answer(1, judge="böb", selected=(), verdict="none"), answer(2, response_ms=None, mode="place"), undo(4)]
    with EventLog.open(tmp_path / "log", create=True) as log:
        assert log.append(events) == 4
        assert list(log.events()) == events
    with EventLog.open(tmp_path / "log") as log:
        assert list(log.events("place")) == [events[2]]
        assert log.modes() == ("place", "trick")


def test_the_same_event_twice_is_one_row_and_another_of_its_id_is_refused(tmp_path: Path) -> None:
    with EventLog.open(tmp_path / "log", create=True) as log:
        assert log.append([answer(1), answer(1)]) == 1
        assert log.append([answer(1)]) == 0
        with pytest.raises(ConfigError, match="another event of this id"):
            log.append([answer(2), answer(1, judge="bob")])
        assert list(log.events()) == [answer(1)]


def test_no_event_is_ever_changed_or_deleted(tmp_path: Path) -> None:
    with EventLog.open(tmp_path / "log", create=True) as log:
        log.append([answer(1)])
    database = sqlite3.connect(tmp_path / "log")
    for statement in ("DELETE FROM events", "UPDATE events SET judge = 'bob'"):
        with pytest.raises(sqlite3.IntegrityError, match="stay as they are"):
            database.execute(statement)
    database.close()


def test_writers_work_at_the_same_time_and_a_kill_loses_no_acknowledged_event(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, name], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        for name in "abc"
    ]
    assert writers[0].stdout is not None
    acknowledged = [writers[0].stdout.readline().strip() for _ in range(5)]
    writers[0].kill()
    rest = [writer.communicate(timeout=60)[0].split() for writer in writers]
    acknowledged += [each for part in rest for each in part]
    assert [writer.returncode for writer in writers[1:]] == [0, 0]
    with EventLog.open(path) as log:
        stored = [event.event_id for event in log.events()]
    assert set(acknowledged) <= set(stored)
    assert len(set(stored)) == len(stored)
    assert len(acknowledged) >= 85


@pytest.mark.parametrize("start", [b"no database at all " * 100, None])
def test_a_damaged_log_is_one_sentence(tmp_path: Path, start: bytes | None) -> None:
    path = tmp_path / "log"
    with EventLog.open(path, create=True) as log:
        log.append([answer(number) for number in range(500)])
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(start or bytes(data))
    with pytest.raises(UnreadableError, match=r"log is damaged .*recover"), EventLog.open(path) as log:
        list(log.events())


def test_a_full_disk_is_one_sentence_and_what_was_written_stays(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with EventLog.open(path, create=True) as log:
        log.append([answer(1)])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, limits[1]))
        try:
            with pytest.raises(StjepaError, match="what is in the log is safe"):
                log.append([answer(number) for number in range(2, 2000)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list(log.events()) == [answer(1)]
        assert log.append([answer(2)]) == 1


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no log of judgements"):
        EventLog.open(tmp_path / "nosuch")
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE mine (a)")
    other.close()
    with pytest.raises(ConfigError, match="another program"):
        EventLog.open(tmp_path / "other", create=True)
    with EventLog.open(tmp_path / "log", create=True):
        pass
    newer = sqlite3.connect(tmp_path / "log")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(UnreadableError, match="newer version"):
        EventLog.open(tmp_path / "log")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verdict": "maybe"}, "unknown verdict"),
        ({"judge": ""}, "needs a judge"),
        ({"selected": ("x",)}, "only candidates"),
        ({"selected": ()}, "a choice selects"),
        ({"verdict": "none"}, "a choice selects"),
        ({"candidates": ("b", "b")}, "shown once"),
        ({"anchor": ""}, "an anchor and candidates"),
        ({"rejected": ("b",)}, "not both"),
        ({"positions": (1,)}, "a value for each candidate"),
    ],
)
def test_an_event_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        answer(1, **changes)
