"""Fitting the projection: which clips are taken, and the map that their tokens give."""

from __future__ import annotations

from contextlib import closing

import torch

from stjepa_cli.cache.engines.base import Job
from stjepa_cli.core.errors import CacheError, VideoError
from stjepa_cli.core.prefetch import ordered_map
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.video import read_clip
from stjepa_cli.store.projection import Projection, ProjectionFit


def fit_projection(job: Job, kind: str) -> Projection:
    """Fit the projection on the centre views of the first clips; those that cannot be decoded are passed over.

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

    clips = ordered_map(pixels, job.items, num_workers=runtime.workers)
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
