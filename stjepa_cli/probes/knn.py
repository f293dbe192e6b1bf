"""Weighted k nearest neighbours on cosine similarity (arXiv 1805.01978, with k and temperature of DINO, arXiv 2104.14294)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.probes.base import Features, Probe, ProbeResult, nearest, top_k_share

K = 20
TEMPERATURE = 0.07


class KnnProbe(Probe):
    """Each test video takes the votes of its k nearest train videos, weighted by exp(similarity / temperature)."""

    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        similarity, rows = nearest(F.normalize(test.values, dim=1), F.normalize(train.values, dim=1), K)
        scores = vote(similarity, train.labels[rows], num_classes)
        guesses = scores.masked_fill(scores == 0, -torch.inf)  # a class without a vote is no guess
        figures = {f"top{k}": top_k_share(guesses, test.labels, k) for k in (1, 5)}
        return ProbeResult(figures, scores, {"k": float(rows.shape[1]), "temperature": TEMPERATURE})


def vote(similarity: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Similarities (Q, k) and labels (Q, k) of neighbours to shares of votes (Q, C)."""
    weights = (similarity / TEMPERATURE).softmax(dim=1)
    return torch.zeros(len(similarity), num_classes).scatter_add_(1, labels, weights)


plugin = KnnProbe
