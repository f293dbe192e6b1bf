"""Embeds videos in this process."""

from __future__ import annotations

from collections.abc import Iterator

from stjepa_cli.search.embedding import Embedded, embed_items
from stjepa_cli.search.engines.base import Engine, Job


class Local(Engine):
    """Threads decode, and this thread runs the encoder."""

    def run(self, job: Job) -> Iterator[Embedded]:
        return embed_items(job.encoder, job.column, job.recipe, job.items, job.known)


plugin = Local
