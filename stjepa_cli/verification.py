"""Use case: check a cache, without the teacher or the videos."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from stjepa_cli.errors import CacheError, ConfigError
from stjepa_cli.prefetch import ordered_map
from stjepa_cli.progress import SILENT, Progress
from stjepa_cli.records import Fault
from stjepa_cli.store import LatentStore


@dataclass(frozen=True)
class VerifyResult:
    """What a check found.

    Attributes:
        ok: nothing is missing and nothing is corrupt.
        expected: clips that the cache is for.
        present: clips whose latents are there and pass.
        missing: clips that are not there yet, or no longer.
        failed: clips that have no latents because their videos could not be used; known, not an error.
        corrupt: ids of the clips whose bytes are damaged.
        missing_ids: ids of the missing clips.
        faults: all that is wrong, with reasons.
    """

    ok: bool
    cache: str
    level: str
    teacher: str
    licence: str
    expected: int
    present: int
    missing: int
    failed: int
    corrupt: tuple[str, ...]
    missing_ids: tuple[str, ...]
    faults: tuple[Fault, ...]
    seconds: float


def verify(path: Path, *, level: str = "quick", repair: bool = False, workers: int = 2, progress: Progress = SILENT) -> VerifyResult:
    """Check a cache without the teacher or the videos.

    Args:
        path: the cache.
        level: `quick` reads header, marks, sizes and shard indexes; `full` reads every byte and checks its checksum.
        repair: drop the marks of shards that are not whole, so that the next build computes exactly those again.
        workers: threads.
        progress: is told of every shard.

    Raises:
        CacheError: there is no cache, or its header or clip list is damaged.
    """
    if level not in ("quick", "full"):
        raise ConfigError("unknown level", got=repr(level), expected="quick or full")
    started = time.monotonic()
    store = LatentStore.open(path)
    store.projection()
    faults: list[Fault] = []
    failed = 0
    shards = range(store.header.num_shards)
    with progress.task(f"verify {level}", total=len(shards), unit="shards") as task:
        checked = ordered_map(lambda shard: store.check(shard, every_byte=level == "full"), shards, num_workers=workers)
        for shard, found in zip(shards, checked, strict=True):
            faults += found
            failed += _num_failed(store, shard)
            if found and repair:
                store.unmark(shard)
            task.advance(1, faults=len(faults))
    missing = tuple(fault.id for fault in faults if fault.kind == "missing")
    corrupt = tuple(fault.id for fault in faults if fault.kind == "corrupt")
    return VerifyResult(
        ok=not faults,
        cache=str(path),
        level=level,
        teacher=store.header.teacher.name,
        licence=store.header.teacher.licence,
        expected=store.header.num_clips,
        present=store.header.num_clips - len(faults) - failed,
        missing=len(missing),
        failed=failed,
        corrupt=corrupt,
        missing_ids=missing,
        faults=tuple(faults),
        seconds=round(time.monotonic() - started, 3),
    )


def _num_failed(store: LatentStore, shard: int) -> int:
    """Clips of a shard that are known to have failed; none where that cannot be known."""
    try:
        return sum(record.error is not None for record in store.records(shard))
    except CacheError:
        return 0
