"""Use case: check a cache: its files, its bytes, or whether it belongs to these videos and this teacher."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from stjepa_cli.cache.shard_checks import check_shard, origin_of, stray_files
from stjepa_cli.core.devices import pick_device
from stjepa_cli.core.errors import CacheError, ConfigError, VideoError
from stjepa_cli.core.files import file_digest
from stjepa_cli.core.locations import Location, driver_errors
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.data.video import decode
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.locks import CREATION, holding
from stjepa_cli.store.projection import Projection
from stjepa_cli.store.records import Fault, Part, RowRecord, runs_of
from stjepa_cli.store.shard_format import checksum
from stjepa_cli.teachers.base import Teacher, open_teacher

LEVELS = ("quick", "full", "recompute")

TOLERANCE = 0.05
"""Relative L2 distance, over a clip, of latents computed again to those stored. Another precision or another kind of
processor gives up to 0.02, another teacher, projection or video about 1.4."""


@dataclass(frozen=True)
class Recompute:
    """What the level `recompute` needs.

    Attributes:
        data_root: the folder or URL that the cache was built from.
        sample: clips to compute again, drawn from those stored.
        seed: of the draw.
        teacher: where the teacher is, None for the name in the header.
        device: where it computes.
    """

    data_root: Location
    sample: int = 16
    seed: int = 0
    teacher: str | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Gap:
    """What is missing of a part: `3 5-9` are its shards that no build has finished, `command` fills them."""

    part: str
    shards: str
    rows: int
    command: str


@dataclass(frozen=True)
class VerifyResult:
    """What a check found.

    Attributes:
        ok: nothing is missing, corrupt, foreign or extra, and what was computed again is the same.
        expected: rows that the cache is for.
        present: rows whose latents are there and pass.
        missing: rows that are not there yet, or no longer.
        failed: rows that have no latents because their videos could not be used; known, not an error.
        corrupt: names of the rows whose bytes are damaged.
        foreign: names of the rows whose bytes are whole but of something else.
        extra: files that do not belong.
        changed: names of the rows that cannot be made again: another video, decoder or teacher.
        missing_ids: names of the missing rows.
        gaps: shards that are not built yet, by part.
        faults: all that is wrong, with reasons.
        recomputed: rows that were computed again.
        worst_error: largest relative distance among them, None if there are none.
        tolerance: what that may be.
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


def verify(
    path: Location,
    *,
    level: str = "quick",
    repair: bool = False,
    workers: int = os.cpu_count() or 1,
    parts: int = 1,
    recompute: Recompute | None = None,
    progress: Progress = SILENT,
) -> VerifyResult:
    """Check a cache.

    Args:
        path: the cache.
        level: `quick` reads header, marks, sizes, shard indexes and two checksums a shard; `full` reads every byte and checks
            its checksum; `recompute` does `quick`, then decodes some clips and runs the teacher again.
        repair: drop the marks of shards that are not whole, so that the next build computes exactly those again.
        workers: threads.
        parts: say what is missing by so many parts.
        recompute: for that level.
        progress: is told of every shard.

    Raises:
        CacheError: there is no cache, its header or clip list is damaged, or someone builds it while it is to be repaired.
        TeacherError: the teacher for `recompute` cannot be loaded.
    """
    if level not in LEVELS or (level == "recompute" and recompute is None):
        raise ConfigError("unknown level", got=repr(level), expected="quick, full or recompute with a data root")
    started = time.monotonic()
    store = LatentStore.open(path)
    projection = store.projection()
    with ExitStack() as stack:
        if repair:
            stack.enter_context(holding(store.work / "lock", range(CREATION), f"the cache {path}"))
        faults = _check_all(store, every_byte=level == "full", workers=workers, progress=progress)
        if repair:
            for shard in {fault.shard for fault in faults if fault.shard is not None}:
                store.unmark(shard)
    if repair:
        store.tidy()
    again, worst = (0, None)
    if recompute is not None and level == "recompute":
        more, again, worst = _recompute(store, projection, recompute, {fault.id for fault in faults}, workers, progress)
        faults += more
    failed = sum(row.error is not None for shard in sorted(store.done()) for row in _rows(store, shard))
    return _result(store, level, faults, failed, _gaps(store, parts), again, worst, started)


def _check_all(store: LatentStore, *, every_byte: bool, workers: int, progress: Progress) -> list[Fault]:
    faults: list[Fault] = []
    shards = range(store.header.num_shards)
    with progress.task("verify full" if every_byte else "verify quick", total=len(shards), unit="shards") as task:
        for found in ordered_map(lambda shard: check_shard(store, shard, every_byte=every_byte), shards, num_workers=workers):
            faults += found
            task.advance(1, faults=len(faults))
    return origin_of(store, faults) + stray_files(store)


def _rows(store: LatentStore, shard: int) -> Sequence[RowRecord]:
    """The records of a shard, none where its mark cannot be read."""
    try:
        return store.mark(shard).rows
    except CacheError:
        return ()


def _gaps(store: LatentStore, parts: int) -> tuple[Gap, ...]:
    pending = set(store.pending())
    gaps = []
    for part in (Part(i, parts) for i in range(1, parts + 1)):
        shards = [shard for shard in part.shards(store.header.num_shards) if shard in pending]
        if shards:
            text = " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs_of(shards))
            command = f"stjepa cache build --cache {store.path}" + (f" --part {part}" if parts > 1 else "")
            gaps.append(Gap(str(part), text, sum(len(store.rows_of(shard)) for shard in shards), command))
    return tuple(gaps)


def _recompute(
    store: LatentStore, projection: Projection, request: Recompute, bad: set[str], workers: int, progress: Progress
) -> tuple[list[Fault], int, float | None]:
    """Make some rows again; returns what is not as it was, how many were made, and the largest distance."""
    teacher = _same_teacher(store, request, progress)
    rows = [row for row in store.usable_rows() if store.record(row).name not in bad]
    chosen = sorted(random.Random(request.seed).sample(rows, min(request.sample, len(rows))))
    faults: list[Fault] = []
    errors: list[float] = []
    with progress.task("recompute", total=len(chosen)) as task:
        loaded = ordered_map(lambda row: _pixels(store, row, request.data_root), chosen, num_workers=workers)
        for row, pixels in zip(chosen, loaded, strict=True):
            record = store.record(row)
            if isinstance(pixels, str):
                faults.append(Fault(record.name, "changed", pixels, row // store.header.rows_per_shard))
            else:
                errors.append(_distance(projection(teacher.encode(pixels.unsqueeze(0)))[0].cpu(), torch.from_numpy(store.read([row])[0])))
                if not errors[-1] <= TOLERANCE:
                    reason = f"the teacher gives other latents: relative distance {errors[-1]:.3g}, tolerance {TOLERANCE}"
                    faults.append(Fault(record.name, "changed", reason, row // store.header.rows_per_shard))
            task.advance(1, changed=len(faults))
    return faults, len(errors), max(errors, default=None)


def _same_teacher(store: LatentStore, request: Recompute, progress: Progress) -> Teacher:
    card = store.header.teacher
    clip = card.clip
    teacher = open_teacher(request.teacher or card.name, clip=clip, device=pick_device(request.device), progress=progress)
    if teacher.card.weights_digest != card.weights_digest:
        raise CacheError(
            f"the teacher {teacher.card.name} is not the one that made {store.path}: its weights differ",
            got=teacher.card.weights_digest[:12],
            expected=f"{card.weights_digest[:12]} of {card.name}",
            fix="Name the right one with --teacher.",
        )
    return teacher


def _pixels(store: LatentStore, row: int, data_root: Location) -> torch.Tensor | str:
    """The clip of a row from its video, or why it is no longer what the teacher saw."""
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
    """Relative L2 distance of latents (N, D) to those stored."""
    found, stored = found.double(), stored.double()
    return float((found - stored).norm() / stored.norm().clamp_min(1e-12))


def _result(
    store: LatentStore,
    level: str,
    faults: list[Fault],
    failed: int,
    gaps: tuple[Gap, ...],
    again: int,
    worst: float | None,
    started: float,
) -> VerifyResult:
    of = {kind: tuple(fault.id for fault in faults if fault.kind == kind) for kind in ("missing", "corrupt", "foreign", "extra", "changed")}
    bad = len(of["missing"]) + len(of["corrupt"]) + len(of["foreign"])
    return VerifyResult(
        ok=not faults,
        cache=str(store.path),
        level=level,
        teacher=store.header.teacher.name,
        licence=store.header.teacher.licence,
        expected=store.header.num_rows,
        present=store.header.num_rows - bad - failed,
        missing=len(of["missing"]),
        failed=failed,
        corrupt=of["corrupt"],
        foreign=of["foreign"],
        extra=of["extra"],
        changed=of["changed"],
        missing_ids=of["missing"],
        gaps=gaps,
        faults=tuple(faults),
        seconds=round(time.monotonic() - started, 3),
        recomputed=again,
        worst_error=worst,
    )
