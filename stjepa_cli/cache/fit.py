"""Fits the projection on a sample of clips spread over the whole list."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import torch

from stjepa_cli.cache.engines.base import Job
from stjepa_cli.core.errors import CacheError, VideoError
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.video import read_clip
from stjepa_cli.store.projection import Projection, ProjectionFit


def fit_projection(job: Job, kind: str) -> Projection:
    """Fit the projection on the centre views of a sample of clips; those that cannot be decoded are passed over.

    Raises:
        CacheError: No video can be used.
        TeacherError: The teacher gives tokens that are not finite.
    """
    storage, runtime, card = job.request.storage, job.runtime, job.teacher.card
    fit = ProjectionFit(card.dim, card.token_norm)
    wanted = min(storage.fit_clips, len(job.items))
    reason, batch = "no video", list[torch.Tensor]()

    def pixels(item: VideoItem) -> torch.Tensor | str:
        try:
            return read_clip(item.path, card.clip).pixels
        except VideoError as error:
            return error.reason

    candidates = (job.items[i] for i in spread_sample(len(job.items), wanted, storage.fit_seed))
    clips = ordered_map(pixels, candidates, num_workers=runtime.workers)
    with runtime.progress.task("fit projection", total=wanted) as task, closing(clips):
        for clip in clips:
            if isinstance(clip, str):
                reason = clip
                continue
            batch.append(clip)
            if len(batch) == min(runtime.batch_size, wanted - fit.num_clips):
                fit.add(job.teacher.encode(torch.stack(batch)))
                task.advance(len(batch))
                batch = []
            if fit.num_clips >= wanted:
                break
        if batch:
            fit.add(job.teacher.encode(torch.stack(batch)))
    if not fit.num_clips:
        raise CacheError(f"none of the {len(job.items)} videos can be used", got=reason, fix="Type `stjepa download-check --deep`.")
    return fit.finish(kind, storage.latent_dim)


def spread_sample(total: int, count: int, seed: int) -> Iterator[int]:
    """Yield a random order of `range(total)` whose first `count` numbers are spread evenly over it.

    The range is cut into `count` equal strata, and one number is taken from each: lists in the order of their classes give a
    sample of all classes. The other numbers follow in random order, to replace clips that cannot be decoded.

    ```text
    4 of 12:   . . 2 | . 4 . | 6 . . | . . 11 |  then  9 0 3 ...
    ```

    Args:
        total: Length of the list.
        count: Size of the sample, at most `total`.
        seed: Seed of the choice.
    """
    rng = random.Random(seed)  # its random() is the same on every version of Python
    edges = [i * total // count for i in range(count + 1)] if count else [0]
    sample = [start + int(rng.random() * (stop - start)) for start, stop in pairwise(edges)]
    yield from sample
    rest = sorted(set(range(total)) - set(sample))
    while rest:
        yield rest.pop(int(rng.random() * len(rest)))
