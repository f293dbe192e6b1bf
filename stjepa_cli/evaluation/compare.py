"""Several encoders on several splits in one table, with intervals, and with what it takes to make it again."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import Dataset
from stjepa_cli.encoders.base import Encoder
from stjepa_cli.encoders.feature_store import FeatureStore
from stjepa_cli.evaluation.confusion import best
from stjepa_cli.evaluation.evaluate import PROTOCOLS, EvaluationResult, Settings, score, suited_probes

ALL = "all"
RESAMPLES = 1000
CONFIDENCE = 0.95

Open = Callable[[ClipSpec | None], Encoder]
"""Opens an encoder; is given the clips of the first one, for those that take any."""


@dataclass(frozen=True)
class ComparisonRow:
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
            name: {
                figure: combine([result.probes[name].figures[figure] for result in self.results])
                for figure in probe.figures
                if all(figure in result.probes[name].figures for result in self.results)  # few-shot: a split may lack videos
            }
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
class Comparison:
    """What was compared, in the order in which it was named.

    Attributes:
        command: what makes it again, empty if no command made it.
    """

    entries: tuple[ComparisonRow, ...]
    command: str = ""

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows: each encoder, with the first figure of each protocol, its deviation over splits, and its interval."""
        first = {name: next(iter(figures)) for name, figures in self.entries[0].figures().items()}
        rows = []
        for entry in self.entries:
            figures, deviations = entry.figures(), entry.deviations()
            cells = []
            for name, figure in first.items():
                around = f" ± {deviations[name][figure]:.4f}" if deviations else ""
                cells.append(f"{figures[name][figure]:.4f}{around} {entry.interval(name)}".rstrip())
            rows.append((entry.encoder, *cells))
        return ("encoder", *(f"{name} {figure}" for name, figure in first.items())), rows

    def to_json(self) -> dict[str, Any]:
        """One entry as itself, several below `entries`."""
        made = {"resamples": RESAMPLES, "command": self.command}
        if len(self.entries) == 1:
            return self.entries[0].to_json() | made
        first = self.entries[0].to_json()
        return {"dataset": first["dataset"], "split": first["split"], "entries": [entry.to_json() for entry in self.entries]} | made


@dataclass(frozen=True)
class ComparisonSettings:
    """What all encoders are scored by.

    Attributes:
        dataset: labelled.
        split: one of `dataset.pairs`, `all`, or None for the first.
        protocols: names of probes.
        limit: at most so many train and so many test videos of a split.
        seed: of what the probes and the intervals draw.
        settings: of protocols that are not to have their own, by name.
    """

    dataset: Dataset
    split: str | None = None
    protocols: tuple[str, ...] = PROTOCOLS
    limit: int | None = None
    seed: int = 0
    settings: Settings = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that are asked for."""
        return tuple(self.dataset.pairs) if self.split == ALL else (self.dataset.pair(self.split)[0],)


def compare_encoders(
    encoders: Sequence[Open], rules: ComparisonSettings, open_store: Callable[[Encoder], FeatureStore]
) -> Iterator[ComparisonRow]:
    """Score encoders one after the other, so that only one is in memory; each entry is there before the next encoder is opened.

    All that can be told without extracting is told first: where there are several, each is opened once for that.

    Args:
        encoders: that open them.
        rules: by which.
        open_store: of an encoder's features.

    Raises:
        StjepaError: as `evaluation.evaluate`.
    """
    splits = rules.splits
    clip: ClipSpec | None = None
    for open_encoder in encoders if len(encoders) > 1 else ():
        clip = _suits(open_encoder, clip, rules, open_store)
    for open_encoder in encoders:
        entry, clip = _entry(open_encoder, clip, rules, splits, open_store)
        yield entry


def _suits(open_encoder: Open, clip: ClipSpec | None, rules: ComparisonSettings, open_store: Callable[[Encoder], FeatureStore]) -> ClipSpec:
    encoder = open_encoder(clip)
    suited_probes(rules.protocols, open_store(encoder), rules.settings)
    return clip or encoder.clip


def _entry(
    open_encoder: Open,
    clip: ClipSpec | None,
    rules: ComparisonSettings,
    splits: Sequence[str],
    open_store: Callable[[Encoder], FeatureStore],
) -> tuple[ComparisonRow, ClipSpec]:
    encoder = open_encoder(clip)
    store = open_store(encoder)
    results = tuple(
        score(store, rules.dataset, split=name, protocols=rules.protocols, limit=rules.limit, seed=rules.seed, settings=rules.settings)
        for name in splits
    )
    return ComparisonRow(results, intervals_of(results, rules.seed)), clip or encoder.clip


def bootstrap(hits: Sequence[Tensor], ids: Sequence[Sequence[str]], seed: int) -> tuple[float, float]:
    """The percentile interval of a share of hits, with videos drawn again with replacement 1,000 times (Efron, 1979).

    Videos are drawn from all splits together: one that is in several is drawn for each of them.

    Args:
        hits: bool or float (R,) of each split; the share is the mean over the splits.
        ids: the videos' names.
        seed: of the draws; the same for every encoder, so that they are compared on the same draws.
    """
    places = {name: i for i, name in enumerate(dict.fromkeys(name for part in ids for name in part))}
    rows = [torch.tensor([places[name] for name in part]) for part in ids]
    generator, shares = torch.Generator().manual_seed(seed), []
    for _ in range(RESAMPLES):
        drawn = torch.bincount(torch.randint(len(places), (len(places),), generator=generator), minlength=len(places)).double()
        counts = [drawn[part] for part in rows]
        parts = [float(count @ part.double() / count.sum()) for count, part in zip(counts, hits, strict=True) if count.sum() > 0]
        shares.append(sum(parts) / len(parts))
    ends = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = torch.tensor(shares, dtype=torch.float64).quantile(ends).tolist()
    return low, high


def intervals_of(results: Sequence[EvaluationResult], seed: int) -> dict[str, tuple[float, float]]:
    """Of the first figure of each protocol."""
    hits = {name: [_hits(result, name) for result in results] for name in results[0].probes}
    ids = [result.ids for result in results]
    return {name: bootstrap(parts, ids, seed) for name, parts in hits.items()}


def _hits(result: EvaluationResult, protocol: str) -> Tensor:
    """What each test video contributes to the first figure, float64 (R,)."""
    probe = result.probes[protocol]
    if probe.hits is not None:
        return probe.hits.double()
    assert probe.scores is not None  # a protocol has one or the other
    return (best(probe.scores) == torch.tensor(result.truths)).double()
