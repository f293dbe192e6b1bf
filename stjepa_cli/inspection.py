"""Use case: look into a file without running anything."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from stjepa_cli.checkpoint import CheckpointHeader, TensorInfo, list_tensors, newest_checkpoint, read_header, read_tensors
from stjepa_cli.config import to_dict
from stjepa_cli.locations import Location
from stjepa_cli.records import CacheHeader
from stjepa_cli.store import LatentStore


@dataclass(frozen=True)
class TensorStatistics:
    """Of the finite numbers of one tensor; None where there are none.

    Attributes:
        nonfinite: how many are a NaN or an infinity.
    """

    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    nonfinite: int


@dataclass(frozen=True)
class CheckpointReport:
    """What a checkpoint holds.

    Attributes:
        parameters: numbers in the file.
        student_parameters: numbers of the encoder among them.
        tensors: names, shapes and types.
        statistics: by tensor; None if no tensor was loaded.
    """

    path: Path
    header: CheckpointHeader
    parameters: int
    student_parameters: int
    tensors: tuple[TensorInfo, ...]
    statistics: Mapping[str, TensorStatistics] | None = None

    @property
    def finite(self) -> bool | None:
        """No tensor holds a NaN or an infinity; None if that was not looked at."""
        return None if self.statistics is None else all(found.nonfinite == 0 for found in self.statistics.values())

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        header = to_dict(self.header)
        return {
            "path": str(self.path),
            "step": self.header.step,
            "epoch": self.header.epoch,
            "parameters": self.parameters,
            "student_parameters": self.student_parameters,
            "config": header["run"],
            "clip": header["clip"],
            "teacher": header["teacher"],
            "dataset": self.header.dataset,
            "cache_digest": self.header.cache_digest,
            "software": header["software"],
            "finite": self.finite,
            "tensors": [
                {"name": t.name, "shape": list(t.shape), "dtype": t.dtype} | (asdict(self.statistics[t.name]) if self.statistics else {})
                for t in self.tensors
            ],
        }


def inspect_checkpoint(path: Path, *, stats: bool = False) -> CheckpointReport:
    """Read a checkpoint, or the newest of a folder.

    Args:
        path: a checkpoint or a folder of them.
        stats: load the tensors too, for their statistics; without it only the header is read.

    Raises:
        CheckpointError: missing, truncated, or not a checkpoint of stjepa.
    """
    file = newest_checkpoint(path) if path.is_dir() else path
    header, tensors = read_header(file), list_tensors(file)
    sizes = {tensor.name: math.prod(tensor.shape) for tensor in tensors}
    return CheckpointReport(
        path=file,
        header=header,
        parameters=sum(sizes.values()),
        student_parameters=sum(size for name, size in sizes.items() if name.startswith("student.")),
        tensors=tensors,
        statistics={name: _statistics(tensor) for name, tensor in read_tensors(file).items()} if stats else None,
    )


def _statistics(tensor: torch.Tensor) -> TensorStatistics:
    values = tensor.double().flatten()
    finite = values[values.isfinite()]
    nonfinite = len(values) - len(finite)
    if not len(finite):
        return TensorStatistics(None, None, None, None, nonfinite)
    low, high = finite.aminmax()
    return TensorStatistics(float(finite.mean()), float(finite.std(correction=0)), float(low), float(high), nonfinite)


@dataclass(frozen=True)
class ChannelStatistics:
    """Of each stored channel over a sample of rows: D numbers each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]


@dataclass(frozen=True)
class CacheReport:
    """What a cache holds.

    Attributes:
        rows: clips times views.
        stored: rows that hold latents.
        failed: rows whose videos could not be used.
        missing: rows that are not built yet.
        bytes: of all finished shards.
        sampled: rows that the statistics are of.
        constant_channels: channels that never change in the sample, as those beyond a narrow teacher's width.
        mean_cosine: between the tokens of the sample and their mean: near 1, a constant answer would already be a good one.
        channels: None if nothing is stored.
    """

    path: str
    header: CacheHeader
    rows: int
    stored: int
    failed: int
    missing: int
    shards: int
    shards_done: int
    bytes: int
    sampled: int
    constant_channels: int
    mean_cosine: float | None
    channels: ChannelStatistics | None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return asdict(self) | {"header": to_dict(self.header), "digest": self.header.digest}


def inspect_cache(path: Location, *, sample: int = 64, seed: int = 0) -> CacheReport:
    """Read a cache's header, marks and some of its rows.

    Args:
        path: the cache.
        sample: rows that the statistics are of.
        seed: of their choice.

    Raises:
        CacheError: there is no cache, or a part of what is read is damaged.
    """
    store = LatentStore.open(path)
    header, rows, done = store.header, store.usable_rows(), store.done()
    chosen = sorted(random.Random(seed).sample(rows, min(sample, len(rows))))
    tokens = torch.from_numpy(store.read(chosen)).float().flatten(0, 1)
    channels = _channels(tokens) if chosen else None
    cosine = torch.nn.functional.cosine_similarity(tokens, tokens.mean(0, keepdim=True), dim=-1).mean() if chosen else None
    return CacheReport(
        path=str(path),
        header=header,
        rows=header.num_rows,
        stored=len(rows),
        failed=len(store.failures()),
        missing=sum(len(store.rows_of(shard)) for shard in store.pending()),
        shards=header.num_shards,
        shards_done=len(done),
        bytes=store.num_bytes(),
        sampled=len(chosen),
        constant_channels=sum(low == high for low, high in zip(channels.minimum, channels.maximum, strict=True)) if channels else 0,
        mean_cosine=None if cosine is None else round(float(cosine), 4),
        channels=channels,
    )


def _channels(tokens: torch.Tensor) -> ChannelStatistics:
    """Of tokens (rows * N, D)."""
    low, high = tokens.aminmax(dim=0)
    parts = (tokens.mean(0), tokens.std(0, correction=0), low, high)
    return ChannelStatistics(*(tuple(round(value, 5) + 0.0 for value in part.tolist()) for part in parts))
