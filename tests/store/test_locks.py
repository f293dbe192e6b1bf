"""Ranges of a lock file: who overlaps waits or is told who holds it, and a holder that dies holds nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from stjepa_cli.core.errors import CacheError
from stjepa_cli.store.locks import CREATION, SLOT, WRITING, holding

ROOT = Path(__file__).resolve().parents[2]

HOLDER = """
import sys
from pathlib import Path
from stjepa_cli.store.locks import holding
with holding(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])), "it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(file: Path, numbers: range) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a range until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(file), str(numbers.start), str(numbers.stop)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "work" / "lock"


def is_free(file: Path, numbers: range) -> bool:
    try:
        with holding(file, numbers, "it"):
            return True
    except CacheError:
        return False


def test_overlapping_ranges_exclude_each_other_between_processes_and_others_do_not(file: Path) -> None:
    with another_process(file, range(4, 8)):
        for taken in (range(4, 8), range(0, 5), range(7, 9), range(5, 6), range(0, 100), range(CREATION)):
            assert not is_free(file, taken), taken
        for free in (range(0, 4), range(8, 12), range(0), range(CREATION, CREATION + 1), range(WRITING + 5, WRITING + 6)):
            assert is_free(file, free), free
    assert is_free(file, range(0, 100))


def test_overlapping_ranges_exclude_each_other_between_threads(file: Path) -> None:
    with holding(file, range(4, 8), "it"), ThreadPoolExecutor(2) as pool:
        tried = [range(0, 5), range(7, 8), range(0, 4), range(8, 9)]
        assert [pool.submit(is_free, file, numbers).result() for numbers in tried] == [False, False, True, True]
    assert is_free(file, range(4, 8))


def test_one_thread_may_hold_many_ranges_but_none_twice(file: Path) -> None:
    with ExitStack() as stack:
        for numbers in (
            range(0, 4),
            range(4, 8),
            range(CREATION, CREATION + 1),
            range(WRITING, WRITING + 1),
            range(WRITING + 1, WRITING + 2),
        ):
            assert stack.enter_context(holding(file, numbers, "it"))
        with pytest.raises(CacheError):
            stack.enter_context(holding(file, range(3, 5), "it"))


def test_the_error_names_the_process_and_the_host_that_hold_the_range(file: Path) -> None:
    with another_process(file, range(4, 8)) as holder:
        wanted = rf"another build holds part 1/2 of it: got process {holder.pid} on {socket.gethostname()[:60]}, since \d{{4}}-.* UTC"
        for numbers in (range(4, 5), range(7, 8), range(0, 100)):  # wherever the two ranges meet
            with pytest.raises(CacheError, match=wanted), holding(file, numbers, "part 1/2 of it"):
                pass
    with (
        holding(file, range(3), "it"),
        pytest.raises(CacheError, match=f"got process {os.getpid()} on .* --part"),
        holding(file, range(2, 3), "it"),
    ):
        pass


def test_the_name_is_gone_with_its_holder(file: Path) -> None:
    with holding(file, range(2, 4), "it"):
        assert f"process {os.getpid()} on ".encode() in file.read_bytes()[2 * SLOT : 3 * SLOT]
    assert file.read_bytes().strip(b"\0") == b""


@pytest.mark.parametrize("number", [CREATION, WRITING, WRITING + 10**6])
def test_what_lies_past_every_shard_excludes_too_and_does_not_grow_the_file(file: Path, number: int) -> None:
    with holding(file, range(number, number + 1), "it"):
        with pytest.raises(CacheError, match="got a process that is running now"), holding(file, range(number, number + 1), "it"):
            pass
        assert is_free(file, range(number + 1, number + 2))
        assert is_free(file, range(10))
    assert file.stat().st_size <= 2 * SLOT


def test_what_a_killed_process_held_is_free_at_once(file: Path) -> None:
    with another_process(file, range(4)) as holder:
        assert not is_free(file, range(4))
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert is_free(file, range(4))


def test_a_dead_holder_is_never_named_for_a_living_one(file: Path) -> None:
    with another_process(file, range(4)) as dead:
        dead.kill()
        dead.wait()
    with (
        another_process(file, range(2, 6)) as holder,
        pytest.raises(CacheError, match=f"got process {holder.pid} on"),
        holding(file, range(6), "it"),
    ):
        pass


def test_waiting_ends_when_the_holder_lets_go(file: Path) -> None:
    with another_process(file, range(4)) as holder:
        timer = threading.Timer(0.3, holder.kill)
        timer.start()
        started = time.monotonic()
        with holding(file, range(4), "it", wait_s=30):
            assert 0.2 < time.monotonic() - started < 20
        timer.join()


def test_waiting_in_vain_ends_too(file: Path) -> None:
    with holding(file, range(4), "it"):
        started = time.monotonic()
        with pytest.raises(CacheError, match="another build holds"), holding(file, range(4), "it", wait_s=0.25):
            pass
        assert time.monotonic() - started >= 0.25


def test_waiters_hold_one_after_the_other(file: Path) -> None:
    inside, most, order = 0, 0, []

    def work(number: int) -> None:
        nonlocal inside, most
        with holding(file, range(CREATION, CREATION + 1), "it", wait_s=float("inf")):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1
            order.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, sorted(order)) == (1, [0, 1, 2, 3])


def test_a_lock_file_that_is_removed_and_made_again_under_a_waiter_does_not_let_two_in(file: Path) -> None:
    """A finished cache removes the lock file while it holds it; the waiter must end up with the file that others see."""
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        with holding(file, range(4), "it", wait_s=30):
            entered.set()
            leave.wait(30)

    with holding(file, range(4), "it"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.15)
        assert not entered.is_set()
        file.unlink()
        file.parent.rmdir()
    assert entered.wait(30)
    assert not is_free(file, range(4))
    leave.set()
    waiter.join()
    assert is_free(file, range(4))


def test_a_lock_on_a_file_that_was_replaced_meanwhile_is_taken_anew(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, its holder removes it and a third party makes a new one and holds that."""
    real, calls = fcntl.fcntl, 0

    def late(descriptor: int, command: int, argument: bytes) -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            file.unlink()
            file.touch()
        return real(descriptor, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", late)
    with holding(file, range(4), "it"):
        monkeypatch.undo()
        assert calls == 2
        assert not is_free(file, range(4))


def test_a_folder_that_is_removed_while_the_file_is_opened_is_made_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.open, 0

    def late(path: Path, *arguments: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            file.parent.rmdir()
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", late)
    with holding(file, range(4), "it") as locked:
        assert (locked, calls) == (True, 2)


def test_a_full_disk_takes_the_name_but_not_the_lock(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    open_files = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "pwrite", full)
    with holding(file, range(4), "it"), pytest.raises(CacheError, match="a process that is running now"), holding(file, range(4), "it"):
        pass
    assert len(os.listdir("/proc/self/fd")) == open_files


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_says_so(file: Path, monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    def none(*_: object) -> int:
        raise OSError(reason, "no locks")

    monkeypatch.setattr(fcntl, "fcntl", none)
    with holding(file, range(4), "it") as locked:
        assert not locked


def test_an_error_inside_lets_go(file: Path) -> None:
    with pytest.raises(ZeroDivisionError), holding(file, range(4), "it"):
        _ = 1 / 0
    assert is_free(file, range(4))


def test_no_shards_need_no_lock_and_make_no_file(file: Path) -> None:
    with holding(file, range(5, 5), "it") as locked:
        assert locked
    assert not file.exists()
