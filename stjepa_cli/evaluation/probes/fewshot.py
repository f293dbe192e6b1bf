"""Few-shot classification: nearest centroid of k videos per class (SimpleShot's CL2N, arXiv 1911.04623), over several samples.

Nothing is chosen: the mean of the sampled videos is subtracted, features are normalised to unit length, and the centroid of a class
is the mean of its videos.
"""

from __future__ import annotations

import random
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes.base import Probe, ProbeResult

SHOTS = (1, 5, 10)
NUM_SAMPLES = 5


class FewShotProbe(Probe):
    """Top-1 accuracy with k videos per class, for each k that every class of train has: mean and deviation over 5 samples."""

    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        fewest = int(torch.bincount(train.labels)[torch.unique(train.labels)].min())
        metrics, video_hits = dict[str, float](), list[Tensor]()
        for k in (k for k in SHOTS if k <= fewest):
            hits = torch.stack([correct(train.rows(sample(train, k, f"{seed}/{i}")), test) for i in range(NUM_SAMPLES)])
            accuracies = hits.mean(dim=1).tolist()
            metrics |= {f"k{k}": statistics.mean(accuracies), f"k{k}_std": statistics.stdev(accuracies)}
            video_hits.append(hits.mean(dim=0))
        return ProbeResult(metrics, chosen={"draws": float(NUM_SAMPLES)}, hits=video_hits[0].cpu())


def sample(train: Features, k: int, seed: str) -> Tensor:
    """Return rows of k random videos of each class, int64.

    They come from as many groups as possible: a group gives a second video only after every group of the class has given one.
    """
    rows_of: dict[int, dict[str, list[int]]] = {}
    for row, (label, group) in enumerate(zip(train.labels.tolist(), train.groups, strict=True)):
        rows_of.setdefault(label, {}).setdefault(group, []).append(row)
    rng, sampled = random.Random(seed), list[int]()
    for label in sorted(rows_of):
        groups = [rng.sample(rows, len(rows)) for _, rows in sorted(rows_of[label].items())]
        rng.shuffle(groups)
        turns = sorted((turn, place, row) for place, rows in enumerate(groups) for turn, row in enumerate(rows))
        sampled += [row for _, _, row in turns[:k]]
    return torch.tensor(sampled)


def correct(shots: Features, test: Features) -> Tensor:
    """Return float64 (R,), 1 for each test video whose nearest centroid is that of its class. Of equal ones the lower class wins."""
    mean = shots.values.mean(dim=0)
    unit = F.normalize(shots.values - mean, dim=1)
    classes, places = torch.unique(shots.labels, return_inverse=True)
    members = F.one_hot(places, len(classes)).T.to(unit)  # a matrix product, because scatter on a GPU adds in any order
    centroids = members @ unit / members.sum(dim=1, keepdim=True)
    nearness = F.normalize(test.values - mean, dim=1) @ centroids.T - centroids.square().sum(dim=1) / 2
    found: Tensor = classes[nearness.argmax(dim=1)] == test.labels
    return found.double()


plugin = FewShotProbe
