"""Weighted k nearest neighbours with cosine similarity (arXiv 1805.01978; k and temperature of DINO, arXiv 2104.14294).

The headline metric uses a fixed k and temperature. Beside it stands the accuracy with the k and temperature chosen on train.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes._nearest import ROWS_AT_ONCE, highest, nearest
from stjepa_cli.evaluation.probes.base import Probe, ProbeResult, top_k_accuracy

K = 20
TEMPERATURE = 0.07
NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.02, 0.04, 0.07, 0.15, 0.5)
MAX_QUERIES = 20_000  # train videos that are left out to choose; more of them take time and change nothing


class KnnProbe(Probe):
    """Each clip of a test video takes the votes of its k nearest train videos, weighted by exp(similarity / temperature)."""

    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        gallery = F.normalize(train.values, dim=1)
        similarity, rows = nearest(F.normalize(test.by_clip().values, dim=1), gallery, max(NEIGHBOURS))
        labels = train.labels[rows]

        def votes(k: int, temperature: float) -> Tensor:
            clip_votes = vote(similarity[:, :k], labels[:, :k], num_classes, temperature)
            return clip_votes.view(len(test), -1, num_classes).mean(dim=1)

        scores = votes(K, TEMPERATURE)
        k, temperature, choice = choose(train, gallery, num_classes, seed)
        metrics = {f"top{n}": top_k_accuracy(_without_zeros(scores), test.labels, n) for n in (1, 5)}
        metrics["top1_chosen"] = top_k_accuracy(_without_zeros(votes(k, temperature)), test.labels, 1)
        fixed = {"k": float(min(K, len(train))), "temperature": TEMPERATURE}
        return ProbeResult(metrics, scores, {**fixed, "k_chosen": float(k), "temperature_chosen": temperature, **choice})


def choose(train: Features, gallery: Tensor, num_classes: int, seed: int) -> tuple[int, float, dict[str, float]]:
    """Choose k and temperature on train, where the neighbours of a video never include its own group.

    Args:
        train: R rows.
        gallery: float32 (R, F), their unit vectors.
        num_classes: C.
        seed: Selects the videos to classify, if train has more than 20,000.

    Returns:
        k, temperature, and what they were chosen on: numbers of videos and groups, and the accuracy there. Of equally good pairs
        the one nearest to the fixed pair is taken. With a single group the fixed pair is returned, and 0 videos.
    """
    number_of = {group: i for i, group in enumerate(sorted(set(train.groups)))}
    if len(number_of) == 1:
        return min(K, len(train)), TEMPERATURE, {"left_out_videos": 0.0}
    groups = torch.tensor([number_of[group] for group in train.groups], device=gallery.device)
    queries = torch.tensor(sorted(random.Random(seed).sample(range(len(train)), min(MAX_QUERIES, len(train)))))
    ks = sorted({min(k, len(train)) for k in NEIGHBOURS})
    grid = sorted(((k, t) for k in ks for t in TEMPERATURES), key=lambda pair: (abs(pair[0] - K), abs(pair[1] - TEMPERATURE)))
    hits = dict.fromkeys(grid, 0)
    for part in torch.split(queries.to(gallery.device), ROWS_AT_ONCE):
        same_group = groups[part][:, None] == groups
        similarity, rows = highest((gallery[part] @ gallery.T).masked_fill_(same_group, -torch.inf), ks[-1])
        for t in TEMPERATURES:
            for k, best in zip(ks, winners(similarity, train.labels[rows], num_classes, ks, t), strict=True):
                hits[k, t] += int((best == train.labels[part]).sum())
    k, t = max(grid, key=lambda pair: hits[pair])  # the first of equal ones
    choice = {"left_out_videos": float(len(queries)), "left_out_groups": float(len(number_of)), "left_out_top1": hits[k, t] / len(queries)}
    return k, t, choice


def winners(similarity: Tensor, labels: Tensor, num_classes: int, ks: list[int], temperature: float) -> Iterator[Tensor]:
    """Yield the class int64 (Q,) with the most votes of the k nearest, for each of the rising `ks`."""
    weights = ((similarity - similarity[:, :1]) / temperature).exp().double()  # a GPU adds in any order
    votes, counted = weights.new_zeros(len(similarity), num_classes), 0
    for k in ks:  # votes are added to those of the smaller k
        yield votes.scatter_add_(1, labels[:, counted:k], weights[:, counted:k]).argmax(dim=1)
        counted = k


def vote(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Return fractions of votes (Q, C) from similarities (Q, k) and labels (Q, k). A similarity of -inf is no vote."""
    weights = (similarity / temperature).softmax(dim=1).double()
    return weights.new_zeros(len(similarity), num_classes).scatter_add_(1, labels, weights).float()


def _without_zeros(scores: Tensor) -> Tensor:
    """Return scores where a class without a vote is never a guess."""
    return scores.masked_fill(scores == 0, -torch.inf)


plugin = KnnProbe
