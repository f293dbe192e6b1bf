"""95 % bootstrap intervals of metrics over test videos (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stjepa_cli.evaluation.confusion import best_class
from stjepa_cli.evaluation.results import EvaluationResult

RESAMPLES = 1000
CONFIDENCE = 0.95

Interval = tuple[float, float]


def bootstrap(hits: Sequence[Tensor], ids: Sequence[Sequence[str]], seed: int) -> Interval:
    """Return the percentile interval of a fraction of hits, from 1,000 resamples of the videos with replacement.

    Videos are resampled from all splits together, so a video that is in several splits is resampled for each of them.

    Args:
        hits: bool or float (R,) for each split. The metric is the mean over splits.
        ids: Names of the videos of each split.
        seed: Seed of the resamples. The same seed gives every encoder the same resamples.
    """
    index_of = {name: i for i, name in enumerate(dict.fromkeys(name for part in ids for name in part))}
    rows = [torch.tensor([index_of[name] for name in part]) for part in ids]
    generator, means = torch.Generator().manual_seed(seed), []
    for _ in range(RESAMPLES):
        sample = torch.randint(len(index_of), (len(index_of),), generator=generator)
        times = torch.bincount(sample, minlength=len(index_of)).double()
        counts = [times[part] for part in rows]
        parts = [float(count @ part.double() / count.sum()) for count, part in zip(counts, hits, strict=True) if count.sum() > 0]
        means.append(sum(parts) / len(parts))
    ends = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = torch.tensor(means, dtype=torch.float64).quantile(ends).tolist()
    return low, high


def intervals_of(results: Sequence[EvaluationResult], seed: int) -> dict[str, Interval]:
    """Return the interval of the first metric of each protocol, as a mean over the splits of `results`."""
    ids = [result.ids for result in results]
    return {name: bootstrap([hits_of(result, name) for result in results], ids, seed) for name in results[0].probes}


def hits_of(result: EvaluationResult, protocol: str) -> Tensor:
    """Return the contribution of each test video to the first metric of a protocol, float64 (R,)."""
    probe = result.probes[protocol]
    if probe.hits is not None:
        return probe.hits.double()
    assert probe.scores is not None  # a protocol has one or the other
    return (best_class(probe.scores) == torch.tensor(result.labels)).double()
