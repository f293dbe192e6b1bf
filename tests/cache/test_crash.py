"""Builds that are killed, cut off from power, out of disk or run twice at once: nothing that was reported is lost.

Real processes: one that has everything imported (this file run as a program, see `serve`) forks a process for each build, so
that a kill meets the build and not the start of Python.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from stjepa_cli.cache.build import BuildRequest, build
from stjepa_cli.cache.request import WHOLE, Part
from stjepa_cli.cache.shard_builder import ShardBuilder
from stjepa_cli.cache.verify import verify
from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.progress import Progress
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.store.latent_store import LatentStore
from tests.media import write_text, write_tiny_ssv2

ROOT = Path(__file__).resolve().parents[2]
SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)
VIDEOS = "20bn-something-something-v2"
CLIPS, VIEWS, ROWS_PER_SHARD, BATCH = 6, 2, 5, 2
RUNTIME = Runtime("cpu", workers=2, batch_size=BATCH)
SHARDS = -(-CLIPS * VIEWS // ROWS_PER_SHARD)


def build_request(root: Path, folder: Path, part: Part = WHOLE) -> BuildRequest:
    """Twelve rows in three shards of two columns, batches of two that do not fill a shard evenly."""
    return BuildRequest.of(
        root,
        folder,
        teacher="hog",
        clip=SPEC,
        latent_dim=16,
        views=VIEWS,
        frames=True,
        rows_per_shard=ROWS_PER_SHARD,
        part=part,
    )


# ------------------------------------------------------------------------------------------- the process of one build


class Diary:
    """A file of what happened, one JSON a line: what it says survives any kill, since it is written by one `write`."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._write = os.write  # before anything is watched

    def __call__(self, what: str, value: object = None) -> None:
        self._write(self._file, json.dumps([what, value]).encode() + b"\n")


class Listener:
    """Writes down how many rows it was told of: they are the first ones of the shards that were not done."""

    def __init__(self, diary: Diary) -> None:
        self.diary, self.name = diary, ""

    def task(self, name: str, *, total: int | None, unit: str = "clips", completed: int = 0) -> Any:
        self.name = name
        if name == "fit projection":
            self.diary("fit")
        return nullcontext(self)

    def advance(self, count: int = 1, **figures: float) -> None:
        if self.name == "cache":
            self.diary("told", count)

    def note(self, text: str) -> None:
        pass


class Disk:
    """Watches what a build does to its folder, in order, and can end it at one of these calls.

    A power cut is stood in for as file systems allow it: what was not synced of a file is lost, a name that was given, moved
    or removed since its folder was synced is as it was. Folders themselves stay.

    Args:
        folder: the cache.
        call: the number of the call before which the process ends; a `write` is half done. 0 for never.
        how: `kill`, `power` or `stop` (SIGSTOP; goes on after SIGCONT).
        diary: is told every call; None tells nobody.
    """

    def __init__(self, folder: Path, call: int, how: str, diary: Diary | None) -> None:
        self.folder, self.call, self.how, self.diary = folder, call, how, diary
        self.calls, self.lock = 0, threading.RLock()
        self.grave = folder.with_name(f"{folder.name}.grave")
        self.sizes: dict[int, int] = {}
        self.names: dict[Path, dict[str, int]] = {}
        for path, folders, _ in os.walk(folder):
            self._note_folder(Path(path))
            for entry in os.scandir(path):
                self.sizes[entry.inode()] = entry.stat().st_size
            del folders

    def watch(self) -> None:
        for name in ("fsync", "fdatasync", "write"):
            setattr(os, name, self._watched(name, getattr(os, name)))
        sys.addaudithook(self._audit)

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *data: Any) -> Any:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if not path.is_relative_to(self.folder):
                return real(descriptor, *data)
            half = (lambda: real(descriptor, bytes(data[0])[: len(data[0]) // 2])) if data else None
            self._step(name, path, first=half)
            done = real(descriptor, *data)
            if name != "write":
                self._synced(descriptor, path)
            return done

        return call

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._step("open", self._path(arguments[0]))
        elif event in ("os.remove", "os.mkdir", "os.rmdir"):
            path = self._path(arguments[0], arguments[-1])
            if event == "os.remove":
                self._bury(path)
            self._step(event.removeprefix("os."), path)
        elif event == "os.rename":
            self._bury(self._path(arguments[1]))
            self._step("rename", self._path(arguments[0]), self._path(arguments[1]))
        elif event == "os.truncate":
            self._step("truncate", self._path(arguments[0]))

    def _path(self, path: Any, folder: int = -1) -> Path:
        if isinstance(path, int):
            return Path(os.readlink(f"/proc/self/fd/{path}"))
        base = Path(os.readlink(f"/proc/self/fd/{folder}")) if folder >= 0 else Path.cwd()
        return base / os.fsdecode(path)

    def _step(self, what: str, path: Path, target: Path | None = None, first: Callable[[], object] | None = None) -> None:
        if not path.is_relative_to(self.folder) or path.name == "lock":
            return
        with self.lock:  # held for ever by the thread that ends the process
            self.calls += 1
            if self.diary:
                self.diary(what, [str(p.relative_to(self.folder)) for p in (path, target) if p is not None])
            if self.calls == self.call:
                if first and self.how != "stop":
                    first()
                self._end()

    def _end(self) -> None:
        if self.how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        if self.how == "power":
            self.call = 0
            time.sleep(0.02)  # for calls of other threads that are under way
            self._lose_power()
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    # ---- what is durable ----------------------------------------------------------------------------------------

    def _note_folder(self, path: Path) -> None:
        self.names.pop(path, None)  # the latest comes last: a moved file is where it was seen last
        self.names[path] = {entry.name: entry.inode() for entry in os.scandir(path) if not entry.is_dir()}

    def _synced(self, descriptor: int, path: Path) -> None:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self._note_folder(path)
        else:
            self.sizes[found.st_ino] = found.st_size

    def _bury(self, path: Path) -> None:
        """Keep a file that is to lose its name, for if that is undone."""
        if self.how == "power" and path.is_relative_to(self.folder) and path.is_file():
            self.grave.mkdir(exist_ok=True)
            with suppress(FileExistsError):
                os.link(path, self.grave / str(path.stat().st_ino))

    def _lose_power(self) -> None:
        self.folder = Path("/nothing")  # what follows is not the build's
        files = [Path(path) / name for folder in self.names for path, _, names in os.walk(folder) for name in names]
        there = {path.stat().st_ino: path for path in files if path.name != "lock"}
        places = {ino: folder / name for folder, names in self.names.items() for name, ino in names.items()}
        self.grave.mkdir(exist_ok=True)
        for ino, path in there.items():
            os.truncate(path, min(path.stat().st_size, self.sizes.get(ino, 0)))
            with suppress(FileExistsError):
                os.link(path, self.grave / str(ino))
            path.unlink()
        for ino, path in places.items():
            if path.name != "lock" and (self.grave / str(ino)).exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(self.grave / str(ino), path)
        shutil.rmtree(self.grave)


def run_build(plan: dict[str, Any]) -> int:
    """One build, watched as its plan says."""
    diary = Diary(Path(plan["diary"]))
    real_encode = ShardBuilder.encode

    def encode(self: ShardBuilder, batch: Any) -> Any:
        diary("encode", [[entry.record.id, entry.record.view] for entry in batch if entry.pixels is not None])
        return real_encode(self, batch)

    ShardBuilder.encode = encode  # type: ignore[method-assign]
    request = build_request(Path(plan["root"]), Path(plan["cache"]), Part.parse(plan.get("part", "1/1")))
    request = request.replace(retry_failed=plan.get("retry_failed", False), overwrite=plan.get("overwrite", False))
    disk = Disk(request.cache, plan.get("call", 0), plan.get("how", "kill"), diary if plan.get("trace") else None)  # type: ignore[arg-type]
    disk.watch()
    listener: Progress = Listener(diary)
    try:
        result = build(request, Runtime(RUNTIME.device, RUNTIME.workers, RUNTIME.batch_size, listener))
    except StjepaError as error:
        diary("error", str(error))
        return 1
    finally:
        diary("calls", disk.calls)
    diary("written", result.written)
    return 0


def serve() -> None:
    """Fork a build for every line of input: a line with its process id, and when asked, one with how it ended."""
    torch.set_num_threads(1)
    plan = json.loads(sys.stdin.readline())
    build(build_request(Path(plan["root"]), Path(plan["cache"])), RUNTIME)  # the uninterrupted one, which also warms up everything
    print("ready", flush=True)
    for line in sys.stdin:
        plan = json.loads(line)
        if "wait" in plan:
            print(os.waitstatus_to_exitcode(os.waitpid(plan["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = run_build(plan)
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)


# ------------------------------------------------------------------------------------------------------ its test side


class Builds:
    """Starts builds of one data set in forked processes.

    Attributes:
        root: of the data set.
        finished: a cache that was built without interruption.
        whole: everything in it.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.finished = root, folder / "whole"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "-m", "tests.cache.test_crash"]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        assert self._ask({"root": str(root), "cache": str(self.finished)}) == "ready"
        self.whole = tree(self.finished)

    def _ask(self, plan: dict[str, Any]) -> str:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(plan) + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline().strip()

    def start(self, folder: Path, diary: Path, **plan: Any) -> int:
        """The process id of a new build."""
        return int(self._ask({"root": str(self.root), "cache": str(folder), "diary": str(diary)} | plan))

    def wait(self, process: int) -> int:
        """How it ended: its exit code, or minus the signal."""
        return int(self._ask({"wait": process}))

    def run(self, folder: Path, diary: Path, **plan: Any) -> int:
        return self.wait(self.start(folder, diary, **plan))

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(30)
        assert self.server.stdout is not None
        self.server.stdout.close()


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builds]:
    """Builds of six videos, one of which is no video."""
    folder = tmp_path_factory.mktemp("crash")
    root = write_tiny_ssv2(folder / "ssv2", train=CLIPS, validation=1, test=1)
    write_text(root / VIDEOS / f"{broken(root)}.webm")
    with closing(Builds(root, folder)) as started:
        yield started


def broken(root: Path) -> str:
    """The id of the video that is broken: the fourth of the list."""
    return str(json.loads((root / "train.json").read_text())[3]["id"])


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: bytes of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def told_in(diary: Path) -> list[tuple[str, Any]]:
    return [tuple(json.loads(line)) for line in diary.read_text().splitlines()] if diary.exists() else []


class Course:
    """A build that is begun again and again until it ends, and what was said on the way.

    Attributes:
        kills: times that it was killed.
        safe: rows that were reported as written, by clip and view.
    """

    def __init__(self, builds: Builds, folder: Path) -> None:
        self.builds, self.cache = builds, folder / "cache"
        self.kills, self.fits, self.number = 0, 0, 0
        self.safe: set[tuple[str, int]] = set()
        ids = [entry["id"] for entry in json.loads((builds.root / "train.json").read_text())]
        self.rows = [(str(name), view) for name in ids for view in range(VIEWS)]

    def go(self, delay: float | None = None, **plan: Any) -> int:
        """One more build, killed after a delay if it has not ended; checks what it computes."""
        self.number += 1
        diary, pending = self.cache.with_name(f"{self.cache.name}.diary{self.number}"), self._pending()
        process = self.builds.start(self.cache, diary, **plan)
        if delay is not None:
            time.sleep(delay)
            os.kill(process, signal.SIGKILL)  # not reaped yet: the id is still its own
        code = self.builds.wait(process)
        self.kills += code == -signal.SIGKILL
        self._check(told_in(diary), pending)
        assert code in (0, -signal.SIGKILL), told_in(diary)
        return code

    def _pending(self) -> list[tuple[str, int]]:
        marks = self.cache / "marks"
        done = {path.name for path in marks.iterdir()} if marks.is_dir() else set()
        shards = [shard for shard in range(SHARDS) if f"{shard}.json" not in done]
        return [row for shard in shards for row in self.rows[shard * ROWS_PER_SHARD : (shard + 1) * ROWS_PER_SHARD]]

    def _check(self, diary: list[tuple[str, Any]], pending: list[tuple[str, int]]) -> None:
        computed = [(str(name), view) for what, rows in diary if what == "encode" for name, view in rows]
        assert len(set(computed)) == len(computed)
        assert not self.safe & set(computed), "a batch that was reported as written was computed again"
        self.safe |= set(pending[: sum(count for what, count in diary if what == "told")])
        self.fits += sum(what == "fit" for what, _ in diary)

    def finish(self) -> None:
        assert self.go() == 0
        assert tree(self.cache) == self.builds.whole
        assert set(self.rows) == self.safe or not self._pending()


def seconds_of_a_build(builds: Builds, folder: Path) -> float:
    started = time.monotonic()
    assert builds.run(folder / "timed", folder / "timed.diary") == 0
    return time.monotonic() - started


def calls_of_a_build(builds: Builds, folder: Path) -> int:
    assert builds.run(folder / "counted", folder / "counted.diary") == 0
    return next(int(value) for what, value in told_in(folder / "counted.diary") if what == "calls")


# -------------------------------------------------------------------------------------------------------------- kills


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_build_killed_at_random_instants_ends_as_an_uninterrupted_one(builds: Builds, tmp_path: Path, kills: int) -> None:
    rng, longest, done, number = random.Random(kills), seconds_of_a_build(builds, tmp_path), 0, 0
    while done < kills:
        (tmp_path / str(number)).mkdir()
        course = Course(builds, tmp_path / str(number))
        while done + course.kills < kills and course.go(delay=rng.uniform(0, longest)) != 0:
            pass
        course.finish()
        done, number = done + course.kills, number + 1


@pytest.mark.parametrize("how", ["kill", "power"])
@pytest.mark.parametrize("points", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_a_build_that_ends_at_any_call_that_changes_the_disk_loses_nothing(builds: Builds, tmp_path: Path, points: int, how: str) -> None:
    """All calls if `points` is 0, else some; after a power cut too, which loses what was not synced."""
    calls = calls_of_a_build(builds, tmp_path)
    assert calls > 100
    chosen = random.Random(7).sample(range(1, calls + 1), points) if points else range(1, calls + 1)
    failed = {}
    for call in chosen:
        (tmp_path / str(call)).mkdir()
        course = Course(builds, tmp_path / str(call))
        try:
            course.go(call=call, how=how)
            course.finish()
            shutil.rmtree(tmp_path / str(call))
        except AssertionError as error:
            failed[call] = str(error)[:600]
    assert not failed, f"{len(failed)} of {len(chosen)}: {failed}"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "power"])
def test_a_build_that_ends_again_and_again_after_a_few_calls_comes_to_its_end(builds: Builds, tmp_path: Path, how: str) -> None:
    rng, course = random.Random(3), Course(builds, tmp_path)
    for _ in range(200):
        if course.go(call=rng.randint(1, 60), how=how) == 0:
            break
    course.finish()
    assert course.kills > 5


@pytest.mark.slow
def test_the_command_itself_can_be_killed_at_any_time(builds: Builds, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "stjepa_cli",
        "cache",
        "build",
        "--data-root",
        builds.root,
        "--cache",
        tmp_path / "cache",
        "--teacher",
        "hog",
    ]
    command += [
        "--dim",
        "16",
        "--num-frames",
        "4",
        "--size",
        "32",
        "--tubelet",
        "2",
        "--patch",
        "16",
        "--batch-size",
        "1",
        "--device",
        "cpu",
    ]
    rng = random.Random(5)
    for attempt in range(12):
        with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT) as process:
            deadline = time.monotonic() + 60
            while process.poll() is None and not (tmp_path / "cache" / "work").is_dir() and time.monotonic() < deadline:
                time.sleep(0.005)
            if attempt < 6:
                time.sleep(rng.uniform(0, 1))
                process.kill()
            assert process.stdout is not None
            said = process.stdout.read().decode()
        if process.returncode == 0:
            break
    assert process.returncode == 0, said
    assert verify(tmp_path / "cache", level="full").ok
    assert not (tmp_path / "cache" / "work").exists()


@pytest.mark.parametrize("points", [2, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["kill", "power"])
def test_a_retry_that_is_killed_leaves_the_shard_as_it_was_or_as_it_is_to_be(builds: Builds, tmp_path: Path, how: str, points: int) -> None:
    """The broken video is put right; whenever the retry ends, no row of the cache is wrong and the same command completes it."""
    root = tmp_path / "ssv2"
    shutil.copytree(builds.root, root)
    name = broken(root)
    assert builds.run(tmp_path / "before", tmp_path / "before.diary", root=str(root)) == 0
    shutil.copy(root / VIDEOS / "1.webm", root / VIDEOS / f"{name}.webm")
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    assert builds.run(tmp_path / "after", tmp_path / "after.diary", root=str(root), retry_failed=True) == 0
    after = tree(tmp_path / "after")
    calls = next(int(value) for what, value in told_in(tmp_path / "after.diary") if what == "calls")
    failed = {}
    for call in random.Random(7).sample(range(1, calls + 1), points) if points else range(1, calls + 1):
        place = tmp_path / f"{how}{call}"
        shutil.copytree(tmp_path / "before", place)
        builds.run(place, tmp_path / "retry.diary", root=str(root), retry_failed=True, call=call, how=how)
        found = verify(place, level="full")
        if found.corrupt or found.foreign:
            failed[call] = f"{found.corrupt} {found.foreign}"
        again = builds.run(place, tmp_path / "retry.diary", root=str(root), retry_failed=True)
        if again != 0 or tree(place) != after:
            failed[call] = f"{again} {tree(place).keys() ^ after.keys()}"
        shutil.rmtree(place)
    assert not failed, f"{len(failed)} of {calls}: {failed}"


# ----------------------------------------------------------------------------------------------------- order of calls


def test_everything_is_synced_before_what_says_that_it_is_there(builds: Builds, tmp_path: Path) -> None:
    assert builds.run(tmp_path / "cache", tmp_path / "diary", trace=True) == 0
    kinds = ("write", "fsync", "fdatasync", "rename", "remove", "rmdir", "open")
    calls = [(what, *paths) for what, paths in told_in(tmp_path / "diary") if what in kinds]
    for shard in range(SHARDS):
        columns = {name: f"work/{shard}/{name}" for name in ("latents", "frames")}
        journal, manifest = f"work/{shard}/journal", f"marks/{shard}.json"
        lines = [i for i, call in enumerate(calls) if call == ("write", journal)]
        assert len(lines) == -(-min(ROWS_PER_SHARD, CLIPS * VIEWS - shard * ROWS_PER_SHARD) // BATCH)
        for line in lines:
            for file in columns.values():  # data before the line, whatever was written of them
                assert last(calls, line, "fdatasync", file) > last(calls, line, "write", file)
            assert after(calls, line, "fdatasync", journal) < after(calls, line, "write", journal)
        finished_at = next(i for i, call in enumerate(calls) if call[0] == "rename" and call[2] == manifest)
        for name, file in columns.items():
            target = f"{name}/c/{shard}/0/0" if name == "latents" else f"{name}/c/{shard}/0"
            moved = calls.index(("rename", file, target))
            assert last(calls, moved, "fsync", file) > last(calls, moved, "write", file)
            for folder in Path(target).parents[:-1]:
                assert moved < after(calls, moved, "fsync", str(folder)) < finished_at
        temporary = calls[finished_at][1]
        assert last(calls, finished_at, "fsync", temporary) > last(calls, finished_at, "open", temporary)
        opened = next(i for i, call in enumerate(calls) if call == ("open", temporary))
        assert opened > max(i for i, call in enumerate(calls[:finished_at]) if call[0] == "rename" and call[1] in columns.values())
        gone = min(i for i, call in enumerate(calls) if call[0] in ("remove", "rmdir") and call[1].startswith(f"work/{shard}"))
        assert finished_at < after(calls, finished_at, "fsync", "marks") < gone
    made = next(i for i, call in enumerate(calls) if call[0] == "rename" and call[2] == "zarr.json")
    assert made < after(calls, made, "fsync", ".") < calls.index(("write", "work/0/journal"))


def last(calls: list[tuple[Any, ...]], before: int, *call: str) -> int:
    """The last place of a call before another; -1 if there is none."""
    return max((i for i in range(before) if calls[i] == call), default=-1)


def after(calls: list[tuple[Any, ...]], start: int, *call: str) -> int:
    """The first place of a call after another; past the end if there is none."""
    return next((i for i in range(start + 1, len(calls)) if calls[i] == call), len(calls))


# ---------------------------------------------------------------------------------------------------------- full disk


class Tmpfs:
    """A small file system of its own, in memory."""

    def __init__(self, folder: Path, kilobytes: int) -> None:
        self.folder = folder
        folder.mkdir()
        options = f"size={kilobytes}k,huge=never"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")

    def grow(self, kilobytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(self.folder)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.mark.parametrize("shares", [(0.75,), pytest.param(tuple(i / 40 for i in range(8, 40)), marks=pytest.mark.slow)])
def test_a_full_disk_ends_in_one_sentence_and_with_more_room_the_build_goes_on(
    builds: Builds, tmp_path: Path, shares: tuple[float, ...]
) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    needed = sum(4 * -(-len(data) // 4096) for data in builds.whole.values() if data is not None)
    for share in shares:
        place = tmp_path / f"{share}"
        place.mkdir()
        with closing(Tmpfs(place / "disk", int(needed * share))) as disk:
            course = Course(builds, disk.folder)
            diary = place / "diary"
            assert builds.run(course.cache, diary) == 1, told_in(diary)
            (error,) = [value for what, value in told_in(diary) if what == "error"]
            assert error.count("\n") == 0
            assert "the disk is full. Free some space" in error or "has no room for the cache" in error
            if len(shares) == 1:
                assert LatentStore.open(course.cache).done()
            course._check(told_in(diary), course.rows)
            disk.grow(needed * 4)
            course.cache.with_name("cache.diary1").unlink(missing_ok=True)
            course.finish()


# -------------------------------------------------------------------------------------------------------- many writers


def test_of_two_builds_of_one_part_the_second_is_told_who_holds_it(builds: Builds, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = builds.start(folder, tmp_path / "first", call=120, how="stop")
    wait_until_stopped(first)
    assert builds.run(folder, tmp_path / "second") == 1
    (error,) = [value for what, value in told_in(tmp_path / "second") if what == "error"]
    assert f"another build holds part 1/1 of {folder}: got process {first} on " in error
    assert builds.run(folder, tmp_path / "half", part="1/2") == 1
    os.kill(first, signal.SIGCONT)
    assert builds.wait(first) == 0
    assert tree(folder) == builds.whole


def test_a_build_that_is_refused_before_there_is_a_cache_leaves_the_lock_of_the_other_alone(builds: Builds, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first = builds.start(folder, tmp_path / "first", call=6, how="stop")
    wait_until_stopped(first)
    assert not LatentStore.exists(folder)
    for diary in (tmp_path / "second", tmp_path / "third"):
        assert builds.run(folder, diary) == 1
        assert f"got process {first} on " in told_in(diary)[-2][1]
    os.kill(first, signal.SIGCONT)
    assert builds.wait(first) == 0
    assert tree(folder) == builds.whole


def wait_until_stopped(process: int) -> None:
    for _ in range(3000):
        if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.01)
    raise AssertionError("the build did not come so far")


@pytest.mark.parametrize("times", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_two_parts_at_once_fit_one_projection_and_give_the_same_store(builds: Builds, tmp_path: Path, times: int) -> None:
    for number in range(times):
        folder, diaries = tmp_path / str(number), [tmp_path / f"{number}.{part}" for part in (1, 2)]
        processes = [builds.start(folder, diary, part=f"{part}/2") for part, diary in enumerate(diaries, 1)]
        assert [builds.wait(process) for process in processes] == [0, 0], [told_in(diary) for diary in diaries]
        assert tree(folder) == builds.whole
        assert sum(what == "fit" for diary in diaries for what, _ in told_in(diary)) == 1


@pytest.mark.slow
def test_parts_at_once_that_are_killed_and_begun_again_give_the_same_store(builds: Builds, tmp_path: Path) -> None:
    rng, kills, number, longest = random.Random(2), 0, 0, seconds_of_a_build(builds, tmp_path)
    while kills < 30:
        number += 1
        folder, left, begun = tmp_path / str(number), {1, 2, 3}, 0
        while left:
            begun += 1
            running = {part: builds.start(folder, tmp_path / f"{number}.{part}.{begun}", part=f"{part}/3") for part in left}
            time.sleep(rng.uniform(0, longest))
            for part in rng.sample(sorted(left), len(left) - 1 if begun < 8 else 0):
                os.kill(running[part], signal.SIGKILL)
            for part, process in running.items():
                code = builds.wait(process)
                assert code in (0, -signal.SIGKILL), told_in(tmp_path / f"{number}.{part}.{begun}")
                kills += code != 0
                left -= {part} if code == 0 else set()
        assert builds.run(folder, tmp_path / f"{number}.last") == 0
        assert tree(folder) == builds.whole


# ----------------------------------------------------------------------------------------------------------- leftovers


def test_a_reader_removes_nothing_and_the_next_build_all_that_was_left(builds: Builds, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(builds.finished, folder)
    (folder / "marks" / "1.json").unlink()
    for name in ("marks/.0.json.123", "marks/.1.json.123", ".failures.jsonl.123", "work/0/latents", "work/0/journal", "work/lock"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"left by a build that was killed")
    before = tree(folder)
    store = LatentStore.open(folder)
    store.read([0, 1, 11])
    store.read_frames([0, 11])
    verify(folder)
    assert tree(folder) == before
    assert builds.run(folder, tmp_path / "diary") == 0
    assert tree(folder) == builds.whole


def test_what_a_kill_after_the_last_manifest_left_is_done_by_the_next_build(builds: Builds, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(builds.finished, folder)
    (folder / "failures.jsonl").unlink()
    (folder / "work" / "2").mkdir(parents=True)
    (folder / "work" / "2" / "journal").write_bytes(b"")
    assert builds.run(folder, tmp_path / "diary") == 0
    assert tree(folder) == builds.whole
    assert not [what for what, _ in told_in(tmp_path / "diary") if what == "encode"]


if __name__ == "__main__":
    serve()
