"""Clips that are held out of training: their loss, and whether the student's features still tell clips apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.devices import autocast
from stjepa_cli.data.loader import ClipFeed, Request, on_device
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.training.objectives.base import Objective

MAX_CLIPS = 512
TOKENS_PER_CLIP = 16

LEAST_STD, LEAST_RANK = 0.05, 3.0
"""Below these a warning is given: features of all clips point the same way, or span hardly any directions."""

Clips = list[tuple[int, ...]]


def hold_out(store: LatentStore, clips: Clips, share: float) -> tuple[Clips, Clips]:
    """Split clips into those to train on and those held out: the same ones in every run on the same clips.

    Args:
        store: their cache.
        clips: the rows of each.
        share: of the clips to hold out; at most MAX_CLIPS of them, and never all.
    """
    count = min(MAX_CLIPS, int(share * len(clips)))
    ids = [store.clip_of(views[0])[0].id for views in clips]
    order = sorted(range(len(clips)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())
    held = set(order[:count])
    return [views for i, views in enumerate(clips) if i not in held], [clips[i] for i in sorted(held)]


@torch.no_grad()
def validate(objective: Objective, feed: ClipFeed, clips: Clips, batch_size: int, device: torch.device, seed: int) -> dict[str, float]:
    """Loss and feature statistics of held-out clips, centre views, with the same masks every time.

    Returns:
        `val_loss` and `val_constant_loss` (that of answering every token with the mean target), `feature_std`, the mean
        standard deviation of unit features times the square root of their width (1 when they point everywhere, 0 when all
        point the same way; SimSiam, arXiv 2011.10566), and `effective_rank`, the exponential of the entropy of the
        features' singular values (RankMe, arXiv 2210.02885).
    """
    was_training = objective.training
    objective.eval()
    sums: dict[str, float] = {}
    features: list[Tensor] = []
    for number, batch in enumerate(on_device(feed.batches(_requests(clips, batch_size)), device)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        with autocast(device):
            loss = objective(batch, generator)
            tokens = objective.student(batch.clips)
        chosen = torch.linspace(0, tokens.shape[1] - 1, min(TOKENS_PER_CLIP, tokens.shape[1])).long()
        features.append(tokens[:, chosen.to(device)].float().cpu().flatten(0, 1))
        found = {"val_loss": loss.total, **{f"val_{name}": value for name, value in loss.monitors.items() if "loss" in name}}
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(batch.rows)
    objective.train(was_training)
    means = {name: total / len(clips) for name, total in sums.items()}
    return means | statistics(torch.cat(features))


def _requests(clips: Sequence[Sequence[int]], batch_size: int) -> Iterator[Request]:
    rows = [views[0] for views in clips]
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        yield Request(part, 0, len(part))


def statistics(features: Tensor) -> dict[str, float]:
    """`feature_std` and `effective_rank` of features (M, D); both 0 where they are all the same."""
    unit = F.normalize(features.double(), dim=-1)
    spread = unit.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5
    centred = features.double() - features.double().mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0).sqrt()
    total = values.sum()
    shares = values / total if total > 0 else values
    entropy = -(shares[shares > 0] * shares[shares > 0].log()).sum()
    return {"feature_std": float(spread), "effective_rank": float(entropy.exp()) if total > 0 else 0.0}


def alarm(figures: dict[str, float]) -> str | None:
    """A warning, if the features have collapsed or are about to."""
    if not (figures["feature_std"] < LEAST_STD or figures["effective_rank"] < LEAST_RANK):
        return None
    return (
        f"warning: the student's features are collapsing: feature_std {figures['feature_std']:.3f} (1 is spread out, 0 all the same), "
        f"effective_rank {figures['effective_rank']:.1f}. A lower --lr or a longer warm-up usually helps."
    )
