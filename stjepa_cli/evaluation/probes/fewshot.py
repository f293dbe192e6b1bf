"""Few shots: nearest centroid from k videos a class (SimpleShot's CL2N, arXiv 1911.04623), over several draws.

There is nothing to choose: features lose the mean of the videos drawn, are brought to unit length, and a class is the mean of
its own.
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
NUM_DRAWS = 5


class FewShotProbe(Probe):
    """Top-1 share from k videos a class, for each k that every class of train has: mean and deviation over 5 draws."""

    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        fewest = int(torch.bincount(train.labels)[torch.unique(train.labels)].min())
        figures, of_videos = dict[str, float](), list[Tensor]()
        for k in (k for k in SHOTS if k <= fewest):
            hits = torch.stack([correct(train.rows(draw(train, k, f"{seed}/{i}")), test) for i in range(NUM_DRAWS)])
            shares = hits.mean(dim=1).tolist()
            figures |= {f"k{k}": statistics.mean(shares), f"k{k}_std": statistics.stdev(shares)}
            of_videos.append(hits.mean(dim=0))
        return ProbeResult(figures, chosen={"draws": float(NUM_DRAWS)}, hits=of_videos[0].cpu())


def draw(train: Features, k: int, seed: str) -> Tensor:
    """Rows of k videos of each class, int64: from as many groups as there are, a second of a group only when all gave one."""
    rows_of: dict[int, dict[str, list[int]]] = {}
    for row, (label, group) in enumerate(zip(train.labels.tolist(), train.groups, strict=True)):
        rows_of.setdefault(label, {}).setdefault(group, []).append(row)
    chance, drawn = random.Random(seed), list[int]()
    for label in sorted(rows_of):
        groups = [chance.sample(rows, len(rows)) for _, rows in sorted(rows_of[label].items())]
        chance.shuffle(groups)
        turns = sorted((turn, place, row) for place, rows in enumerate(groups) for turn, row in enumerate(rows))
        drawn += [row for _, _, row in turns[:k]]
    return torch.tensor(drawn)


def correct(shots: Features, test: Features) -> Tensor:
    """float64 (R,): 1 for test videos whose nearest centroid is their class's, else 0; of equally near ones the lower class."""
    mean = shots.values.mean(dim=0)
    unit = F.normalize(shots.values - mean, dim=1)
    classes, places = torch.unique(shots.labels, return_inverse=True)
    members = F.one_hot(places, len(classes)).T.to(unit)  # a product, since a GPU adds scattered numbers in any order
    centroids = members @ unit / members.sum(dim=1, keepdim=True)
    nearness = F.normalize(test.values - mean, dim=1) @ centroids.T - centroids.square().sum(dim=1) / 2
    found: Tensor = classes[nearness.argmax(dim=1)] == test.labels
    return found.double()


plugin = FewShotProbe
