"""Small caches with made-up numbers: no video and no teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from stjepa_cli.core.locations import Location
from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.store import frames, quantization
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.projection import Projection, ProjectionFit
from stjepa_cli.store.records import CacheHeader, ClipRow, RowRecord, clips_digest
from stjepa_cli.store.shard_format import Latents
from stjepa_cli.store.shard_writer import NewRow

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)
NUM_CLIPS, DIM, FAILED = 100, 6, 5


def fitted_projection() -> Projection:
    """Some map from 12 to DIM channels."""
    fit = ProjectionFit(12, "layernorm")
    fit.add(torch.randn(10, 8, 12, generator=torch.Generator().manual_seed(0)))
    return fit.finish("pca", DIM)


def clip_rows(num_clips: int = NUM_CLIPS, first: int = 1000) -> list[ClipRow]:
    """Clips 1000, 1001, ..."""
    return [ClipRow(str(first + i), f"{first + i}.webm") for i in range(num_clips)]


def cache_header(clips: Sequence[ClipRow], fitted: Projection, **more: object) -> CacheHeader:
    """A header; `more` are its optional fields."""
    card = TeacherCard("tiny", "hog", "1", "0" * 64, "none", 12, SPEC)
    about = {"kind": fitted.kind, "digest": fitted.digest, "explained": fitted.explained, "num_fit_clips": 10}
    return CacheHeader("ssv2", "train", len(clips), clips_digest(clips), card, DIM, about, **more)  # type: ignore[arg-type]


def row_values(num_rows: int = NUM_CLIPS, seed: int = 0) -> Latents:
    """Latents of rows, with NaNs that carry payloads, and -0.0."""
    values = np.random.default_rng(seed).standard_normal((num_rows, SPEC.grid.num_tokens, DIM)).astype(np.float16)
    values[min(3, num_rows - 1), 0, :3] = np.array([0x7E01, 0xFE55, 0x8000], np.uint16).view(np.float16)
    return values


def row_pixels(row: int) -> torch.Tensor:
    """The clip of a row, uint8 (T, 3, S, S), smooth enough for a JPEG."""
    side = torch.arange(SPEC.size_px)
    ramp = (side[:, None] + side[None, :] + 5 * row) % 200
    return ramp.to(torch.uint8).expand(SPEC.num_frames, 3, SPEC.size_px, SPEC.size_px).contiguous()


def make_cache(
    path: Location, *, num_clips: int = NUM_CLIPS, first: int = 1000, seed: int = 0, finite: bool = False, **more: object
) -> LatentStore:
    """A finished cache; row FAILED failed, unless there are few clips. `more` are optional fields of the header."""
    fitted, clips = fitted_projection(), clip_rows(num_clips, first)
    store = LatentStore.create(path, cache_header(clips, fitted, **more), clips, fitted)
    values = row_values(store.header.num_rows, seed)
    for shard in store.pending():
        fill_shard(store, shard, np.nan_to_num(values) if finite else values)
    store.write_failures()
    store.tidy()
    return store


def fill_shard(store: LatentStore, shard: int, values: Latents, records: Sequence[RowRecord] | None = None) -> None:
    """Write one shard of made-up rows, or of these records."""
    with store.writing(shard) as writer:
        members = store.rows_of(shard)[len(writer.rows) :]
        for start in range(0, len(members), 7):
            rows = [new_row(store, row, values[row]) for row in members[start : start + 7]]
            if records is not None:
                rows = [NewRow(replace(record, chunks={}), row.data) for record, row in zip(records[start : start + 7], rows, strict=True)]
            writer.append(rows)
        store.publish(writer)


def new_row(store: LatentStore, row: int, values: Latents) -> NewRow:
    """A row with its bytes."""
    clip, view = store.clip_of(row)
    if row == FAILED and store.header.num_clips > 8:
        return NewRow(RowRecord(clip.id, view, error="the file is empty"), {})
    if store.header.dtype == "float16":
        data = {"latents": values.tobytes()}  # as they are, NaN payloads included
    else:
        data = quantization.encode(torch.from_numpy(np.nan_to_num(values)).float().unsqueeze(0), store.header.dtype)[0]
    if store.header.frames:
        data["frames"] = frames.encode_clip(row_pixels(row))
    return NewRow(RowRecord(clip.id, view, "ab" * 32, (0, 1, 2, 3), (0, 8, 48, 48), 17), data)
