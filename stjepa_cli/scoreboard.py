"""Several encoders on several splits in one table, with intervals, and with what it takes to make it again."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stjepa_cli.datasets.base import Dataset
from stjepa_cli.encoders import Encoder
from stjepa_cli.evaluation import NO_SETTINGS, PROTOCOLS, EvaluationResult, Settings, score
from stjepa_cli.features import FeatureStore
from stjepa_cli.nouns import ClipSpec

ALL = "all"
RESAMPLES = 1000
CONFIDENCE = 0.95

Open = Callable[[ClipSpec | None], Encoder]
"""Opens an encoder; is given the clips of the first one, for those that take any."""


@dataclass(frozen=True)
class Entry:
    """One encoder.

    Attributes:
        results: one for each split.
        intervals: 95 % bootstrap interval over test videos of the first figure of each protocol; of the mean over the splits.
    """

    results: tuple[EvaluationResult, ...]
    intervals: dict[str, tuple[float, float]]

    @property
    def encoder(self) -> str:
        """Its name."""
        return self.results[0].checkpoint

    def figures(self) -> dict[str, dict[str, float]]:
        """Each protocol's figures, means over the splits."""
        return self._over_splits(statistics.fmean)

    def interval(self, protocol: str) -> str:
        """`[0.123, 0.456]`, for people."""
        return "[{:.3f}, {:.3f}]".format(*self.intervals[protocol]) if protocol in self.intervals else ""

    def deviations(self) -> dict[str, dict[str, float]]:
        """The sample deviation of each figure over the splits; nothing where there is one."""
        return self._over_splits(statistics.stdev) if len(self.results) > 1 else {}

    def _over_splits(self, combine: Callable[[list[float]], float]) -> dict[str, dict[str, float]]:
        return {
            name: {figure: combine([result.probes[name].figures[figure] for result in self.results]) for figure in probe.figures}
            for name, probe in self.results[0].probes.items()
        }

    def to_json(self) -> dict[str, Any]:
        """That of the only result; of several, means, deviations, and each result below `splits`."""
        intervals = {"intervals": {name: list(ends) for name, ends in self.intervals.items()}}
        if len(self.results) == 1:
            return self.results[0].to_json() | intervals
        first = self.results[0]
        return {
            "dataset": first.dataset,
            "split": ALL,
            "checkpoint": first.checkpoint,
            **self.figures(),
            "deviations": self.deviations(),
            **intervals,
            "chance": first.chance,
            "splits": [result.to_json() for result in self.results],
        }


@dataclass(frozen=True)
class Scoreboard:
    """What was compared, in the order in which it was named.

    Attributes:
        command: what makes it again, empty if no command made it.
    """

    entries: tuple[Entry, ...]
    command: str = ""

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows: each encoder, with the first figure of each protocol and its interval."""
        first = {name: next(iter(figures)) for name, figures in self.entries[0].figures().items()}
        rows = []
        for entry in self.entries:
            figures = entry.figures()
            cells = (f"{figures[name][figure]:.4f} {entry.interval(name)}".rstrip() for name, figure in first.items())
            rows.append((entry.encoder, *cells))
        return ("encoder", *(f"{name} {figure}" for name, figure in first.items())), rows

    def to_json(self) -> dict[str, Any]:
        """One entry as itself, several below `entries`."""
        made = {"resamples": RESAMPLES, "command": self.command}
        if len(self.entries) == 1:
            return self.entries[0].to_json() | made
        first = self.entries[0].to_json()
        return {"dataset": first["dataset"], "split": first["split"], "entries": [entry.to_json() for entry in self.entries]} | made


def contest(
    encoders: Sequence[Open],
    dataset: Dataset,
    open_store: Callable[[Encoder], FeatureStore],
    *,
    split: str | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    limit: int | None = None,
    seed: int = 0,
    settings: Settings = NO_SETTINGS,
    command: str = "",
) -> Scoreboard:
    """Score encoders on a split or, for `all`, on each that the data set has.

    Args:
        encoders: opened one after the other, so that only one is in memory.
        dataset: labelled.
        open_store: of an encoder's features.
        split: one of `dataset.pairs`, `all`, or None for the first.
        protocols: names of probes.
        limit: at most so many train and so many test videos of a split.
        seed: of what the probes and the intervals draw.
        settings: of protocols that are not to have their own, by name.
        command: what makes it again.

    Raises:
        StjepaError: as `evaluation.evaluate`.
    """
    splits = list(dataset.pairs) if split == ALL else [dataset.pair(split)[0]]
    clip: ClipSpec | None = None
    entries = []
    for open_encoder in encoders:
        encoder = open_encoder(clip)
        clip = clip or encoder.clip
        store = open_store(encoder)
        results = tuple(
            score(store, dataset, split=name, protocols=protocols, limit=limit, seed=seed, settings=settings) for name in splits
        )
        entries.append(Entry(results, _intervals(results, seed)))
    return Scoreboard(tuple(entries), command)


def bootstrap(hits: Sequence[Tensor], seed: int) -> tuple[float, float]:
    """The percentile interval of a share of hits, drawn again with replacement 1,000 times (Efron, 1979).

    Args:
        hits: bool or float (R,) of each split; the share is the mean over the splits.
        seed: of the draws; the same for every encoder, so that they are compared on the same draws.
    """
    generator = torch.Generator().manual_seed(seed)
    shares = torch.zeros(RESAMPLES, dtype=torch.float64)
    for i in range(RESAMPLES):
        draws = [part[torch.randint(len(part), (len(part),), generator=generator)] for part in hits]
        shares[i] = sum(draw.double().mean() for draw in draws) / len(draws)
    ends = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = shares.quantile(ends).tolist()
    return low, high


def _intervals(results: Sequence[EvaluationResult], seed: int) -> dict[str, tuple[float, float]]:
    """Of the first figure of each protocol."""
    hits = {name: [_hits(result, name) for result in results] for name in results[0].probes}
    return {name: bootstrap(parts, seed) for name, parts in hits.items()}


def _hits(result: EvaluationResult, protocol: str) -> Tensor:
    """What each test video contributes to the first figure, float64 (R,)."""
    probe = result.probes[protocol]
    if probe.hits is not None:
        return probe.hits.double()
    assert probe.scores is not None  # a protocol has one or the other
    best = probe.scores.sort(dim=1, descending=True, stable=True).indices[:, 0]
    return (best == torch.tensor(result.truths)).double()
