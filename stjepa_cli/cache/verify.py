"""Use case: check the files of a cache, its bytes, or that it belongs to these videos and this teacher."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from stjepa_cli.cache.request import Part
from stjepa_cli.cache.shard_checks import check_shard, origin_of, stray_files
from stjepa_cli.core.errors import CacheError, ConfigError, VideoError
from stjepa_cli.core.files import file_digest
from stjepa_cli.core.locations import Location, driver_errors
from stjepa_cli.core.places import dataset_root
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.data.video import decode
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.locks import CREATION, holding
from stjepa_cli.store.projection import Projection
from stjepa_cli.store.records import Fault, RowRecord
from stjepa_cli.store.shard_format import checksum
from stjepa_cli.teachers.base import Teacher, open_teacher

LEVELS = ("quick", "full", "recompute")
ALL_CORES = Runtime(workers=os.cpu_count() or 1)

TOLERANCE = 0.05
"""Largest relative L2 distance, over a clip, between recomputed and stored latents. Another precision or another kind of
processor gives up to 0.02, another teacher, projection or video about 1.4."""


@dataclass(frozen=True)
class Recompute:
    """The settings of the level `recompute`.

    Attributes:
        data_root: Folder or URL that the cache was built from; None for the usual place of its data set.
        sample: Clips to recompute, a random sample of those stored.
        seed: Seed of the sample.
        teacher: Name or folder of the teacher, None for the name in the header.
    """

    data_root: Location | None = None
    sample: int = 16
    seed: int = 0
    teacher: str | None = None


@dataclass(frozen=True)
class Gap:
    """The unfinished shards of a part, like `3 5-9`, their number of rows, and the command that fills them."""

    part: str
    shards: str
    rows: int
    command: str


@dataclass(frozen=True)
class VerifyResult:
    """The findings of a check.

    Attributes:
        ok: Nothing is missing, corrupt, foreign, unreadable or extra, and recomputed rows are the same.
        cache: The cache.
        level: Level of the check.
        teacher: Name of the teacher.
        licence: Licence of its weights.
        expected: Rows of the complete cache.
        present: Rows whose latents are there and pass.
        missing: Rows that are not there yet, or no longer.
        failed: Rows without latents because their videos could not be used, which is no error.
        corrupt: Names of the rows whose bytes are damaged.
        foreign: Names of the rows whose bytes are intact but belong to something else.
        extra: Files that do not belong into the cache.
        changed: Names of the rows that cannot be made again because the video, the decoder or the teacher is another.
        missing_ids: Names of the missing rows.
        gaps: Unfinished shards, by part.
        faults: All findings with their reasons.
        seconds: Duration of the check.
        recomputed: Rows that were recomputed.
        worst_error: Largest relative distance among them, None if there are none.
        tolerance: Largest distance that passes.
        unreadable: Names of the rows that are there and cannot be read, because of permissions or hardware.
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
    foreign: tuple[str, ...]
    extra: tuple[str, ...]
    changed: tuple[str, ...]
    missing_ids: tuple[str, ...]
    gaps: tuple[Gap, ...]
    faults: tuple[Fault, ...]
    seconds: float
    recomputed: int = 0
    worst_error: float | None = None
    tolerance: float = TOLERANCE
    unreadable: tuple[str, ...] = ()


def verify(
    path: Location,
    *,
    level: str = "quick",
    repair: bool = False,
    parts: int = 1,
    recompute: Recompute = Recompute(),
    runtime: Runtime = ALL_CORES,
) -> VerifyResult:
    """Check a cache.

    Args:
        path: The cache.
        level: `quick` reads the header, the manifests, sizes, shard indexes and two checksums per shard; `full` compares every
            byte with its checksum; `recompute` does `quick`, then decodes some clips and runs the teacher again.
        repair: Set the manifests of damaged shards aside, so that the next build computes exactly those again; shards that
            cannot be read are left alone.
        parts: Group the unfinished shards by this number of parts.
        recompute: Settings of the level `recompute`.
        runtime: Device, threads, and the receiver of progress.

    Raises:
        CacheError: There is no cache, its header or clip list is damaged, or it is being built while it is to be repaired.
        TeacherError: The teacher for `recompute` cannot be loaded.
    """
    if level not in LEVELS:
        raise ConfigError("unknown level", got=repr(level), expected=", ".join(LEVELS[:-1]) + f" or {LEVELS[-1]}")
    if parts < 1:
        raise ConfigError("parts must be at least 1", got=parts)
    started = time.monotonic()
    store = LatentStore.open(path)
    projection = store.projection()
    with ExitStack() as stack:
        if repair:
            stack.enter_context(holding(store.work / "lock", range(CREATION), f"the cache {path}"))
        faults = _check_all(store, runtime, every_byte=level == "full")
        if repair:
            unreadable = {fault.shard for fault in faults if fault.kind == "unreadable"}
            for shard in {fault.shard for fault in faults if fault.shard is not None} - unreadable:
                store.manifests.set_aside(shard)
    if repair:
        store.tidy()
    again = _Recomputed()
    if level == "recompute":
        again = _recompute(store, projection, recompute, {fault.id for fault in faults}, runtime)
    return _result(store, level, [*faults, *again.faults], again, _gaps(store, parts), started)


def _check_all(store: LatentStore, runtime: Runtime, *, every_byte: bool) -> list[Fault]:
    faults: list[Fault] = []
    shards = range(store.header.num_shards)
    with runtime.progress.task("verify full" if every_byte else "verify quick", total=len(shards), unit="shards") as task:
        for found in ordered_map(lambda shard: check_shard(store, shard, every_byte=every_byte), shards, num_workers=runtime.workers):
            faults += found
            task.advance(1, faults=len(faults))
    return origin_of(store, faults) + stray_files(store)


def _rows(store: LatentStore, shard: int) -> Sequence[RowRecord]:
    """Return the records of a shard, or none if its manifest is unusable."""
    try:
        return store.manifest(shard).rows
    except CacheError:
        return ()


def _gaps(store: LatentStore, parts: int) -> tuple[Gap, ...]:
    """Group the unfinished shards by the parts that they belong to."""
    by_part: dict[int, list[int]] = {}
    for shard in store.pending():
        by_part.setdefault(Part.holding(shard, store.header.num_shards, parts).index, []).append(shard)
    gaps = []
    for index, shards in by_part.items():
        part = Part(index, parts)
        text = " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs_of(shards))
        command = f"stjepa cache build --cache {store.path}" + (f" --part {part}" if parts > 1 else "")
        gaps.append(Gap(str(part), text, sum(len(store.rows_of(shard)) for shard in shards), command))
    return tuple(gaps)


def runs_of(numbers: Sequence[int]) -> list[range]:
    """Return ascending numbers as ranges without gaps: 1 2 3 7 gives 1-3 and 7."""
    runs: list[range] = []
    for number in numbers:
        if runs and runs[-1].stop == number:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs


@dataclass
class _Recomputed:
    """The rows that were recomputed: those that changed, their number, and the largest distance."""

    faults: list[Fault] = field(default_factory=list)
    count: int = 0
    worst: float | None = None


def _recompute(store: LatentStore, projection: Projection, settings: Recompute, bad: set[str], runtime: Runtime) -> _Recomputed:
    """Decode some rows and run the teacher over them again; rows in `bad` are left out."""
    teacher, found = _same_teacher(store, settings, runtime), _Recomputed()
    data_root = dataset_root(store.header.dataset, settings.data_root)
    rows = [row for row in store.usable_rows() if store.record(row).name not in bad]
    chosen = sorted(random.Random(settings.seed).sample(rows, min(settings.sample, len(rows))))
    with runtime.progress.task("recompute", total=len(chosen)) as task:
        loaded = ordered_map(lambda row: _pixels(store, row, data_root), chosen, num_workers=runtime.workers)
        for row, pixels in zip(chosen, loaded, strict=True):
            reason = pixels if isinstance(pixels, str) else ""
            if not isinstance(pixels, str):
                made = projection(teacher.encode(pixels.unsqueeze(0)))[0].cpu()
                error = _distance(made, torch.from_numpy(store.read([row])[0]))
                found.count, found.worst = found.count + 1, max(error, found.worst or 0.0)
                if not error <= TOLERANCE:
                    reason = f"the teacher gives other latents: relative distance {error:.3g}, tolerance {TOLERANCE}"
            if reason:
                found.faults.append(Fault(store.record(row).name, "changed", reason, row // store.header.rows_per_shard))
            task.advance(1, changed=len(found.faults))
    return found


def _same_teacher(store: LatentStore, settings: Recompute, runtime: Runtime) -> Teacher:
    """Load the teacher of the cache and refuse another one."""
    card, name = store.header.teacher, settings.teacher or store.header.teacher.name
    teacher = open_teacher(name, clip=card.clip, layers=card.layers, device=runtime.torch_device, progress=runtime.progress)
    if teacher.card.weights_digest != card.weights_digest:
        raise CacheError(
            f"the teacher {teacher.card.name} is not the one that made {store.path}: its weights differ",
            got=teacher.card.weights_digest[:12],
            expected=f"{card.weights_digest[:12]} of {card.name}",
            fix="Name the right one with --teacher.",
        )
    return teacher


def _pixels(store: LatentStore, row: int, data_root: Location) -> torch.Tensor | str:
    """Decode the clip of a row, or return a clause that says why it is not what the teacher saw."""
    record, ref = store.record(row), store.ref(row, data_root)
    try:
        with driver_errors():
            if file_digest(ref.path) != record.source_digest:
                return f"its video is no longer the file that was cached: {ref.path}"
        pixels = decode(ref)
    except FileNotFoundError:
        return f"its video is gone: {ref.path}"
    except OSError as error:
        return f"its video cannot be read ({error.strerror or error}): {ref.path}"
    except VideoError as error:
        return f"its video cannot be used any more: {error.reason}"
    if checksum(pixels.numpy()) != record.pixels_crc:
        return f"its video decodes to other pixels than the teacher saw: {ref.path}"
    return pixels


def _distance(found: torch.Tensor, stored: torch.Tensor) -> float:
    """Return the relative L2 distance between recomputed and stored latents (N, D)."""
    found, stored = found.double(), stored.double()
    return float((found - stored).norm() / stored.norm().clamp_min(1e-12))


def _result(store: LatentStore, level: str, faults: list[Fault], again: _Recomputed, gaps: tuple[Gap, ...], started: float) -> VerifyResult:
    kinds = ("missing", "corrupt", "foreign", "unreadable", "extra", "changed")
    names = {kind: tuple(fault.id for fault in faults if fault.kind == kind) for kind in kinds}
    bad = sum(len(names[kind]) for kind in kinds[:4])
    failed = sum(row.error is not None for shard in sorted(store.done()) for row in _rows(store, shard))
    return VerifyResult(
        ok=not faults,
        cache=str(store.path),
        level=level,
        teacher=store.header.teacher.name,
        licence=store.header.teacher.licence,
        expected=store.header.num_rows,
        present=store.header.num_rows - bad - failed,
        missing=len(names["missing"]),
        failed=failed,
        corrupt=names["corrupt"],
        foreign=names["foreign"],
        extra=names["extra"],
        changed=names["changed"],
        missing_ids=names["missing"],
        gaps=gaps,
        faults=tuple(faults),
        seconds=round(time.monotonic() - started, 3),
        recomputed=again.count,
        worst_error=again.worst,
        unreadable=names["unreadable"],
    )
