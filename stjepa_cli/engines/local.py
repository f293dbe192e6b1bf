"""Fill shards in this process."""

from __future__ import annotations

from collections.abc import Sequence

from stjepa_cli.building import OnBatch, Tally
from stjepa_cli.engines.base import Engine, Job


class Local(Engine):
    """One process, one device."""

    def run(self, job: Job, shards: Sequence[int], on_batch: OnBatch) -> Tally:
        return job.builder().run(shards, on_batch)


plugin = Local
