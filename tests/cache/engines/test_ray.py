"""The same cache from the workers of a real local Ray instance, killed ones among them."""

from __future__ import annotations

import glob
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from stjepa_cli.cache.build import BuildRequest, build
from stjepa_cli.cache.engines.base import open_engine
from stjepa_cli.cache.engines.ray import Worker, _cluster, _share
from stjepa_cli.core.errors import CacheError, ConfigError, NotReadyError, StjepaError
from stjepa_cli.core.progress import SILENT
from stjepa_cli.core.types import ClipSpec

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)


class Listener:
    """Keeps the notes of a build."""

    task = staticmethod(SILENT.task)

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def request_(tiny_ssv2: Path, tmp_path: Path) -> BuildRequest:
    """12 videos, 2 views of each, 4 shards of 6 rows, each row safe by itself."""
    return BuildRequest(
        tiny_ssv2,
        tmp_path / "cache",
        teacher="hog",
        clip=SPEC,
        latent_dim=16,
        batch_size=1,
        workers=1,
        device="cpu",
        engine="ray",
        views=2,
        rows_per_shard=6,
    )


@pytest.fixture
def whole(request_: BuildRequest, tmp_path: Path) -> BuildRequest:
    """The same cache, built in this process."""
    here = replace(request_, engine="local", cache=tmp_path / "local")
    build(here)
    return here


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray instance that several builds use."""
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=10**8, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def files(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}


def writer_of(journal: Path) -> int | None:
    """The process that has a shard's journal open and has put rows into it."""
    with suppress(FileNotFoundError):
        if journal.stat().st_size == 0:
            return None
    for name in glob.iglob("/proc/[0-9]*/comm"):
        with suppress(OSError):
            process = Path(name).parent
            if not process.joinpath("comm").read_text().startswith("ray::Worker"):
                continue
            if any(os.readlink(link) == str(journal) for link in process.glob("fd/*")):
                return int(process.name)
    return None


def kill_in_the_midst(cache: Path, shard: int) -> bool:
    """Kill the process that is filling a shard, if there is one and it has not finished."""
    with suppress(ProcessLookupError):
        if (process := writer_of(cache / "work" / str(shard) / "journal")) is not None:
            os.kill(process, signal.SIGSTOP)
            finished = (cache / "marks" / f"{shard}.json").exists()
            os.kill(process, signal.SIGCONT if finished else signal.SIGKILL)
            return not finished
    return False


@contextmanager
def meanwhile(act: Callable[[], bool]) -> Iterator[None]:
    """Call a function again and again beside the block, until it says that it is done."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set() and not act():
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_worker_is_killed_midway_and_the_cache_is_the_one_that_one_process_writes(
    request_: BuildRequest, whole: BuildRequest, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray")
    listener = Listener()
    with meanwhile(lambda: any(kill_in_the_midst(tmp_path / "cache", shard) for shard in range(4))):
        result = build(request_, listener)
    assert sum(note.startswith("lost process ") and " at shard " in note for note in listener.notes) == 1
    assert (result.failed, result.missing) == ((), 0)
    assert files(tmp_path / "cache") == files(tmp_path / "local")
    assert not ray.is_initialized()


def test_a_machine_with_another_teacher_or_other_videos_says_so(whole: BuildRequest) -> None:
    said = Worker(replace(whole, limit=11), frozenset()).open()
    assert isinstance(said, CacheError)
    assert "would build another cache: num_clips differs: got 11, expected 12. Put the same data set" in str(said)


def test_every_gpu_gets_a_worker_that_sees_it_as_its_first(request_: BuildRequest) -> None:
    request, needs, count = _share(replace(request_, device="cuda:1", workers=8), [(32, 8), (64, 4), (16, 0)])
    assert (request.device, needs, count) == ("cuda", {"num_gpus": 1, "num_cpus": 4}, 12)


def test_without_gpus_workers_share_the_processors(request_: BuildRequest) -> None:
    request, needs, count = _share(replace(request_, device="auto", workers=4), [(0, 0), (16, 0), (3, 0)])
    assert (request.device, needs, count) == ("cpu", {"num_cpus": 3}, 5)


def test_gpus_that_the_cluster_does_not_have_are_refused(request_: BuildRequest) -> None:
    with pytest.raises(ConfigError, match="the Ray cluster has no GPU: got --device cuda"):
        _share(replace(request_, device="cuda"), [(2, 0)])
    with pytest.raises(ConfigError, match="no processors"):
        _share(request_, [])


def test_an_address_where_nobody_listens_is_an_error_at_once() -> None:
    pytest.importorskip("ray")
    with pytest.raises(NotReadyError, match=r"the Ray cluster at 127\.0\.0\.1:1 cannot be used: got .*refused"), _cluster("127.0.0.1:1"):
        pass


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(NotReadyError, match=r"Type `pip install 'stjepa\[ray\]'`"):
        open_engine("ray")


@pytest.mark.slow
def test_a_shard_that_keeps_costing_workers_ends_the_build_and_the_next_one_goes_on(
    cluster: None, request_: BuildRequest, tmp_path: Path
) -> None:
    killed: list[bool] = []

    def kill() -> bool:
        killed.extend([True] * kill_in_the_midst(tmp_path / "cache", 0))
        return len(killed) == 3

    with meanwhile(kill), pytest.raises(StjepaError, match="shard 0 has cost 3 workers: got "):
        build(replace(request_, rows_per_shard=24))
    result = build(replace(request_, rows_per_shard=24, engine="local"))
    assert (result.missing, result.skipped > 0) == (0, True)


@pytest.mark.slow
def test_what_a_worker_has_to_say_is_said_in_its_own_words(cluster: None, request_: BuildRequest, whole: BuildRequest) -> None:
    (whole.cache / "marks" / "1.json").unlink()
    (whole.cache / "work").mkdir()
    (whole.cache / "work" / "1").write_bytes(b"")
    with pytest.raises(StjepaError, match=r"^cannot write .*/work/1: a (part of the path is a file|file is in the way)"):
        build(replace(whole, engine="ray"))
