"""Fills shards in this process."""

from __future__ import annotations

from collections.abc import Sequence

from stjepa_cli.cache.engines.base import Engine, Job
from stjepa_cli.cache.shard_builder import BuildCounts, OnBatch
from stjepa_cli.store.latent_store import LatentStore


class Local(Engine):
    """One process and one device."""

    def run(
        self, job: Job, store: LatentStore, shards: Sequence[int], on_batch: OnBatch, retry: frozenset[int] = frozenset()
    ) -> BuildCounts:
        return job.builder(store, retry).run(shards, on_batch)


plugin = Local
