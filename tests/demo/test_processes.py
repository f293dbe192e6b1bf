"""Functions in processes of their own: what they say arrives, what goes wrong is one sentence, nobody stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.demo.processes import Job, Say, in_processes

REPOSITORY = Path(__file__).resolve().parents[2]
HERE = "tests.demo.test_processes"


def count(job: Job, say: Say) -> None:
    """Say numbers below `job["to"]`, then what the job asks for."""
    for i in range(job["to"]):
        say({"number": i, "pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]})
    if job.get("fail"):
        raise StjepaError("it failed", got=job["fail"])
    if job.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    while job.get("for_ever"):
        time.sleep(0.05)
        say({"pid": os.getpid()})


def _gone(pid: int) -> bool:
    """Whether a process ends within some seconds; one that waits to be reaped counts as gone."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def test_every_line_arrives_with_the_number_of_its_job() -> None:
    lines = list(in_processes(f"{HERE}:count", [{"to": 3}, {"to": 0}, {"to": 2}], threads=2))
    assert [line["number"] for number, line in lines if number == 0] == [0, 1, 2]
    assert [line["number"] for number, line in lines if number == 2] == [0, 1]
    assert {line["threads"] for _, line in lines} == {"2"}
    assert len({line["pid"] for _, line in lines} - {os.getpid()}) == 2


def test_an_error_of_one_ends_all_with_its_sentence() -> None:
    pids: set[int] = set()
    lines = in_processes(f"{HERE}:count", [{"to": 1, "fail": 7}, {"to": 1, "for_ever": True}])
    with pytest.raises(StjepaError, match="it failed: got 7"):
        pids.update(line["pid"] for _, line in lines)
    assert all(_gone(pid) for pid in pids)


def test_a_process_that_is_killed_is_one_sentence() -> None:
    with pytest.raises(StjepaError, match=r"a worker process ended early: got signal 9\. Run the same command again"):
        list(in_processes(f"{HERE}:count", [{"to": 1, "die": True}]))


def test_workers_end_when_whoever_started_them_is_killed() -> None:
    code = (
        f"from stjepa_cli.demo.processes import in_processes\n"
        f"for _, line in in_processes('{HERE}:count', [dict(to=1, for_ever=True)] * 2):\n"
        "    print(line['pid'], flush=True)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pids: set[int] = set()
    while len(pids) < 2:
        pids.add(int(starter.stdout.readline()))
    starter.send_signal(signal.SIGKILL)
    with starter:
        pass
    assert all(_gone(pid) for pid in pids)
