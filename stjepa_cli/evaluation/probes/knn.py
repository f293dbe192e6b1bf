"""Weighted k nearest neighbours on cosine similarity (arXiv 1805.01978, with k and temperature of DINO, arXiv 2104.14294).

The headline is that of fixed k and temperature. Beside it stands what k and temperature that suit train best give.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes.base import ROWS_AT_ONCE, Probe, ProbeResult, highest, nearest, top_k_accuracy

K = 20
TEMPERATURE = 0.07
NEIGHBOURS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.02, 0.04, 0.07, 0.15, 0.5)
MAX_ASKING = 20_000  # train videos that are left out to choose; more of them change nothing but the time


class KnnProbe(Probe):
    """Each clip of a test video takes the votes of its k nearest train videos, weighted by exp(similarity / temperature)."""

    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        gallery = F.normalize(train.values, dim=1)
        similarity, rows = nearest(F.normalize(test.by_clip().values, dim=1), gallery, max(NEIGHBOURS))
        labels = train.labels[rows]

        def votes(k: int, temperature: float) -> Tensor:
            of_clips = vote(similarity[:, :k], labels[:, :k], num_classes, temperature)
            return of_clips.view(len(test), -1, num_classes).mean(dim=1)

        scores = votes(K, TEMPERATURE)
        k, temperature, told = choose(train, gallery, num_classes, seed)
        best = votes(k, temperature)
        figures = {f"top{n}": top_k_accuracy(_guesses(scores), test.labels, n) for n in (1, 5)}
        figures["top1_chosen"] = top_k_accuracy(_guesses(best), test.labels, 1)
        fixed = {"k": float(min(K, len(train))), "temperature": TEMPERATURE}
        return ProbeResult(figures, scores, {**fixed, "k_chosen": float(k), "temperature_chosen": temperature, **told})


def choose(train: Features, gallery: Tensor, num_classes: int, seed: int) -> tuple[int, float, dict[str, float]]:
    """Take the k and temperature with the most hits on train when no video may ask its own group; next to the fixed ones of equal.

    Args:
        train: R rows.
        gallery: float32 (R, F), their unit rows.
        num_classes: C.
        seed: of which videos ask, where train has more than 20,000.

    Returns:
        k, temperature, and on how many videos of how many groups they were chosen with what share of hits; the fixed ones
        and 0 videos where there is a single group.
    """
    number_of = {group: i for i, group in enumerate(sorted(set(train.groups)))}
    if len(number_of) == 1:
        return min(K, len(train)), TEMPERATURE, {"left_out_videos": 0.0}
    groups = torch.tensor([number_of[group] for group in train.groups], device=gallery.device)
    asking = torch.tensor(sorted(random.Random(seed).sample(range(len(train)), min(MAX_ASKING, len(train)))))
    ks = sorted({min(k, len(train)) for k in NEIGHBOURS})
    grid = sorted(((k, t) for k in ks for t in TEMPERATURES), key=lambda pair: (abs(pair[0] - K), abs(pair[1] - TEMPERATURE)))
    hits = dict.fromkeys(grid, 0)
    for part in torch.split(asking.to(gallery.device), ROWS_AT_ONCE):
        forbidden = groups[part][:, None] == groups
        similarity, rows = highest((gallery[part] @ gallery.T).masked_fill_(forbidden, -torch.inf), ks[-1])
        for t in TEMPERATURES:
            for k, best in zip(ks, winners(similarity, train.labels[rows], num_classes, ks, t), strict=True):
                hits[k, t] += int((best == train.labels[part]).sum())
    k, t = max(grid, key=lambda pair: hits[pair])  # the first of equal ones
    return (
        k,
        t,
        {"left_out_videos": float(len(asking)), "left_out_groups": float(len(number_of)), "left_out_top1": hits[k, t] / len(asking)},
    )


def winners(similarity: Tensor, labels: Tensor, num_classes: int, ks: list[int], temperature: float) -> Iterator[Tensor]:
    """The class int64 (Q,) with the most votes of the k nearest, for rising k: votes are counted on, not again."""
    weights = ((similarity - similarity[:, :1]) / temperature).exp().double()  # a GPU adds in any order
    votes, counted = weights.new_zeros(len(similarity), num_classes), 0
    for k in ks:
        yield votes.scatter_add_(1, labels[:, counted:k], weights[:, counted:k]).argmax(dim=1)
        counted = k


def vote(similarity: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Similarities (Q, k) and labels (Q, k) of neighbours to shares of votes (Q, C); a similarity of -inf is no vote."""
    weights = (similarity / temperature).softmax(dim=1).double()
    return weights.new_zeros(len(similarity), num_classes).scatter_add_(1, labels, weights).float()


def _guesses(scores: Tensor) -> Tensor:
    return scores.masked_fill(scores == 0, -torch.inf)  # a class without a vote is no guess


plugin = KnnProbe
