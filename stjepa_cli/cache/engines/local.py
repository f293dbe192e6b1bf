"""Fill shards in this process."""

from __future__ import annotations

from collections.abc import Sequence

from stjepa_cli.cache.engines.base import Engine, Job
from stjepa_cli.cache.shard_builder import BuildCounts, OnBatch


class Local(Engine):
    """One process, one device."""

    def run(self, job: Job, shards: Sequence[int], on_batch: OnBatch) -> BuildCounts:
        return job.builder().run(shards, on_batch)


plugin = Local
