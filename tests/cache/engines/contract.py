"""The contract of an engine: a test class that every plug-in of `cache/engines` is run through without being listed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from stjepa_cli.cache.build import BuildRequest, build
from stjepa_cli.cache.engines.base import Engine, Job
from stjepa_cli.cache.shard_builder import BuildCounts
from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.store.latent_store import LatentStore
from tests.media import write_empty, write_tiny_ssv2

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)
RUNTIME = Runtime("cpu", workers=1, batch_size=4)


class EngineContract:
    """A subclass supplies the fixture `engine`."""

    @pytest.fixture
    def job(self, tmp_path: Path) -> Job:
        """Twelve rows in two shards; one of the six videos is empty, and the first shard is unfinished."""
        root = write_tiny_ssv2(tmp_path / "ssv2", train=6, validation=1, test=1)
        write_empty(root / "20bn-something-something-v2" / "5.webm")
        request = BuildRequest.of(root, tmp_path / "cache", teacher="hog", clip=SPEC, latent_dim=16, views=2, rows_per_shard=6)
        build(request, RUNTIME)
        return Job(request, RUNTIME)

    @pytest.fixture
    def store(self, job: Job) -> LatentStore:
        return LatentStore.open(job.request.cache)

    def test_it_fills_the_shards_with_the_same_bytes_and_counts_every_row(self, engine: Engine, job: Job, store: LatentStore) -> None:
        whole = files(store)
        store.manifests.discard(0)
        store.manifests.discard(1)
        counted, threads = BuildCounts(), set[int]()

        def on_batch(counts: BuildCounts) -> None:
            counted.add(counts)
            threads.add(threading.get_ident())

        total = engine.run(job, store, [0, 1], on_batch)
        assert (total.written, total.failed, total.kept) == (10, 2, 0)
        assert (counted, threads) == (total, {threading.get_ident()})
        assert files(LatentStore.open(store.path)) == whole

    def test_it_fills_only_the_shards_that_are_asked_for(self, engine: Engine, job: Job, store: LatentStore) -> None:
        store.manifests.discard(0)
        store.manifests.discard(1)
        assert engine.run(job, store, [1], lambda _: None).written == 4
        assert store.pending() == [0]

    def test_no_shards_are_no_work(self, engine: Engine, job: Job, store: LatentStore) -> None:
        assert engine.run(job, store, [], lambda _: None) == BuildCounts()

    def test_an_error_arrives_as_one_sentence(self, engine: Engine, job: Job, store: LatentStore) -> None:
        store.manifests.discard(1)
        store.work.mkdir()
        (store.work / "1").write_bytes(b"")  # a file where the folder of the shard should be
        with pytest.raises(StjepaError, match=r"^cannot write .*/work/1: a (part of the path is a file|file is in the way)"):
            engine.run(job, store, [1], lambda _: None)


def files(store: LatentStore) -> dict[str, bytes]:
    """Everything in a cache but unfinished work."""
    found = (path for path in sorted(Path(str(store.path)).rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() for path in found if "work" not in path.parts}
