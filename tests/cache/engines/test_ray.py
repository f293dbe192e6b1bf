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
from pathlib import Path

import pytest

from stjepa_cli.cache.build import BuildRequest, build
from stjepa_cli.cache.engines._workers import Worker, plan_workers
from stjepa_cli.cache.engines.base import open_engine
from stjepa_cli.core.cluster import connected
from stjepa_cli.core.errors import CacheError, ConfigError, NotReadyError, StjepaError
from stjepa_cli.core.progress import SILENT
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec

RUNTIME = Runtime("cpu", workers=1, batch_size=1)
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
    return BuildRequest.of(tiny_ssv2, tmp_path / "cache", teacher="hog", clip=SPEC, latent_dim=16, engine="ray", views=2, rows_per_shard=6)


@pytest.fixture
def whole(request_: BuildRequest, tmp_path: Path) -> BuildRequest:
    """The same cache, built in this process."""
    here = request_.replace(engine="local", cache=tmp_path / "local")
    build(here, RUNTIME)
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
        result = build(request_, Runtime("cpu", 1, 1, listener))
    assert sum(note.startswith("lost process ") and " at shard " in note for note in listener.notes) == 1
    assert (result.failed, result.missing) == ((), 0)
    assert files(tmp_path / "cache") == files(tmp_path / "local")
    assert not ray.is_initialized()


def test_a_machine_with_another_teacher_or_other_videos_says_so(whole: BuildRequest) -> None:
    said = Worker(whole.replace(limit=11), RUNTIME, frozenset()).open()
    assert isinstance(said, CacheError)
    assert "would build another cache: num_clips differs: got 11, expected 12. Put the same data set" in str(said)


def test_every_gpu_gets_a_worker_that_sees_it_as_its_first(request_: BuildRequest) -> None:
    plan = plan_workers(request_, Runtime("cuda:1", workers=8), [(32, 8), (64, 4), (16, 0)])
    assert (plan.runtime.device, plan.needs, plan.count) == ("cuda", {"num_gpus": 1, "num_cpus": 4}, 12)


def test_without_gpus_workers_share_the_processors(request_: BuildRequest) -> None:
    plan = plan_workers(request_, Runtime("auto", workers=4), [(0, 0), (16, 0), (3, 0)])
    assert (plan.runtime.device, plan.needs, plan.count) == ("cpu", {"num_cpus": 3}, 5)


def test_gpus_that_the_cluster_does_not_have_are_refused(request_: BuildRequest) -> None:
    with pytest.raises(ConfigError, match="the Ray cluster has no GPU: got --device cuda"):
        plan_workers(request_, Runtime("cuda"), [(2, 0)])
    with pytest.raises(ConfigError, match="no processors"):
        plan_workers(request_, Runtime(), [])


def test_an_address_where_nobody_listens_is_an_error_at_once() -> None:
    pytest.importorskip("ray")
    with pytest.raises(NotReadyError, match=r"the Ray cluster at 127\.0\.0\.1:1 cannot be used: got .*refused"), connected("127.0.0.1:1"):
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
        build(request_.replace(rows_per_shard=24), RUNTIME)
    result = build(request_.replace(rows_per_shard=24, engine="local"), RUNTIME)
    assert (result.missing, result.skipped > 0) == (0, True)
