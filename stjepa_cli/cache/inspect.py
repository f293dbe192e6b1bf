"""Use case: describe a latent cache without running a model."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

import torch

from stjepa_cli.core.locations import Location
from stjepa_cli.core.serialization import to_dict
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.records import CacheHeader


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of each stored channel over a sample of rows, D numbers each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]


@dataclass(frozen=True)
class CacheReport:
    """The content of a cache.

    Attributes:
        path: The cache.
        header: Its header.
        rows: Clips times views.
        stored: Rows that hold latents.
        failed: Rows whose videos could not be used.
        missing: Rows that are not built yet.
        shards: Shards of the whole cache.
        shards_done: Finished shards.
        bytes: Size of all finished shards.
        sampled: Rows that the statistics are computed from.
        constant_channels: Channels that never change in the sample, like those beyond the width of a narrow teacher.
        mean_cosine: Mean cosine between the tokens of the sample and their mean; near 1, a constant answer is already good.
        channels: Statistics per channel, None if nothing is stored.
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
        """Return the report as JSON-able values."""
        return asdict(self) | {"header": to_dict(self.header), "digest": self.header.digest}


def inspect_cache(path: Location, *, sample: int = 64, seed: int = 0) -> CacheReport:
    """Read the header, the manifests and some of the rows of a cache.

    Args:
        path: The cache.
        sample: Rows to compute the statistics from.
        seed: Seed of their choice.

    Raises:
        CacheError: There is no cache, or a part that is read is damaged.
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
    """Return the statistics of tokens (rows * N, D)."""
    low, high = tokens.aminmax(dim=0)
    parts = (tokens.mean(0), tokens.std(0, correction=0), low, high)
    return ChannelStatistics(*(tuple(round(value, 5) + 0.0 for value in part.tolist()) for part in parts))
