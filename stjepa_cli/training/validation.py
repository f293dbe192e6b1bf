"""Held-out clips: their loss, what trivial answers would lose, and whether the student's features still tell clips apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.devices import autocast
from stjepa_cli.data.loader import ClipFeed, Request, on_device
from stjepa_cli.data.training_clips import TrainingClips
from stjepa_cli.training.objectives.base import Objective

MAX_CLIPS = 512
TOKENS_PER_CLIP = 16

LEAST_STD, LEAST_RANK = 0.05, 3.0
"""A warning is given below these: features of all clips point the same way, or span hardly any directions."""

LEAST_CONTENT = 0.02
"""A warning is given below this fraction of variance: what is left of the features when their mean at each position is removed."""

Clips = list[tuple[int, ...]]


def hold_out(source: TrainingClips, fraction: float) -> tuple[Clips, Clips]:
    """Split clips into those to train on and those held out: the same ones in every run on the same clips.

    Args:
        source: The clips.
        fraction: Fraction of the clips to hold out; at most MAX_CLIPS of them, and never all.
    """
    clips = source.clips
    count = min(MAX_CLIPS, int(fraction * len(clips)))
    ids = [source.id_of(views[0]) for views in clips]
    order = sorted(range(len(clips)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())
    held = set(order[:count])
    return [views for i, views in enumerate(clips) if i not in held], [clips[i] for i in sorted(held)]


@torch.no_grad()
def validate(objective: Objective, feed: ClipFeed, clips: Clips, batch_size: int, device: torch.device, seed: int) -> dict[str, float]:
    """Return loss and feature statistics of held-out clips, centre views, with the same masks every time.

    Returns:
        `val_loss`, `val_<term>` for each term, `val_constant_loss` and `val_position_loss` (what trivial answers lose, see
        `objectives._distances.monitors`), and what `statistics` says of the student's tokens.
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
        features.append(tokens[:, chosen.to(device)].float().cpu())
        watched = {name: value for name, value in loss.monitors.items() if "loss" in name}
        for name, value in {"loss": loss.total, **loss.parts, **watched}.items():
            sums[f"val_{name}"] = sums.get(f"val_{name}", 0.0) + float(value) * len(batch.rows)
    objective.train(was_training)
    means = {name: total / len(clips) for name, total in sums.items()}
    return means | statistics(torch.cat(features))


def _requests(clips: Sequence[Sequence[int]], batch_size: int) -> Iterator[Request]:
    rows = [views[0] for views in clips]
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        yield Request(part, 0, len(part))


def statistics(features: Tensor) -> dict[str, float]:
    """Describe the spread of features (B, L, D): L tokens of B clips, at the same positions in each.

    Returns:
        `feature_std`, the mean standard deviation of unit features times the square root of their width (1 when they point
        everywhere, 0 when all point the same way; SimSiam, arXiv 2011.10566); `effective_rank`, the exponential of the entropy of
        their singular values (RankMe, arXiv 2210.02885); and `content_fraction`, the fraction of the features' variance
        that is left when the mean of each position is subtracted: 0 for a student whose tokens say where they lie and nothing
        else, about 1 where position says nothing.
    """
    tokens = features.flatten(0, 1).double()
    unit = F.normalize(tokens, dim=-1)
    spread = unit.std(dim=0, correction=0).mean() * tokens.shape[1] ** 0.5
    centred = tokens - tokens.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0).sqrt()
    total = values.sum()
    weights = values / total if total > 0 else values
    entropy = -(weights[weights > 0] * weights[weights > 0].log()).sum()
    by_position = features.double() - features.double().mean(dim=0)
    variance = centred.square().sum()
    return {
        "feature_std": float(spread),
        "effective_rank": float(entropy.exp()) if total > 0 else 0.0,
        "content_fraction": float(by_position.square().sum() / variance) if variance > 0 else 0.0,
    }


def alarm(metrics: dict[str, float], num_clips: int = MAX_CLIPS) -> str | None:
    """Return a warning if the features have collapsed or are about to.

    Args:
        metrics: What `validate` returned.
        num_clips: Held-out clips; of a single one it cannot be told what its content is.
    """
    if metrics["feature_std"] < LEAST_STD or metrics["effective_rank"] < LEAST_RANK:
        return (
            f"warning: the student's features are collapsing: feature_std {metrics['feature_std']:.3f} (1 is spread out, 0 all the same), "
            f"effective_rank {metrics['effective_rank']:.1f}. A lower --lr or a longer warm-up usually helps."
        )
    if num_clips > 1 and metrics["content_fraction"] < LEAST_CONTENT:
        return (
            "warning: the student's features say where a token lies and hardly anything of its pixels: content_fraction "
            f"{metrics['content_fraction']:.3f} (0 is position alone). `--recipe dense` or a lower --mask-ratio usually helps."
        )
    return None
