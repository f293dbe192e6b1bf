"""Several encoders on one or several splits, in one table with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import Dataset
from stjepa_cli.encoders.base import Encoder, EncoderCard
from stjepa_cli.encoders.extraction import DEFAULT, Extraction
from stjepa_cli.encoders.feature_store import FeatureStore
from stjepa_cli.evaluation.evaluate import PROTOCOLS, Settings, check_protocols, score
from stjepa_cli.evaluation.intervals import RESAMPLES, Difference, Differences, Interval, differences_of, intervals_of
from stjepa_cli.evaluation.results import EvaluationResult

ALL = "all"


class EncoderSource(Protocol):
    """An encoder that is not loaded yet, usually a `NamedEncoder`."""

    def card(self, clip: ClipSpec | None = None) -> EncoderCard:
        """Return what is known without loading weights; `clip` is for the encoders that take any clips."""

    def open(self, device: torch.device, clip: ClipSpec | None = None) -> Encoder:
        """Load the encoder; `clip` is for the encoders that take any clips."""


@dataclass(frozen=True)
class ComparisonRow:
    """The results of one encoder.

    Attributes:
        results: One result for each split.
        intervals: 95 % bootstrap interval of the first metric of each protocol, as a mean over the splits.
        differences: Paired differences of the same metrics from the first encoder of the comparison; None for that encoder.
    """

    results: tuple[EvaluationResult, ...]
    intervals: dict[str, Interval]
    differences: Differences | None = None

    @property
    def encoder(self) -> str:
        """Name of the encoder."""
        return self.results[0].encoder

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the metrics of each protocol, as means over the splits."""
        return self._over_splits(statistics.fmean)

    def deviations(self) -> dict[str, dict[str, float]]:
        """Return the sample deviation of each metric over the splits, or nothing if there is one split."""
        return self._over_splits(statistics.stdev) if len(self.results) > 1 else {}

    def interval(self, protocol: str, *, percent: bool = False) -> str:
        """Return an interval as text, `[0.123, 0.456]` or `[12.3%, 45.6%]`, or an empty string."""
        form = "[{:.1%}, {:.1%}]" if percent else "[{:.3f}, {:.3f}]"
        return form.format(*self.intervals[protocol]) if protocol in self.intervals else ""

    def _over_splits(self, combine: Callable[[list[float]], float]) -> dict[str, dict[str, float]]:
        return {
            name: {
                metric: combine([result.probes[name].metrics[metric] for result in self.results])
                for metric in probe.metrics
                if all(metric in result.probes[name].metrics for result in self.results)  # few-shot: a split may have too few videos
            }
            for name, probe in self.results[0].probes.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain values: the only result, or means and deviations with the results of all splits under `splits`."""
        intervals: dict[str, Any] = {"intervals": {name: list(ends) for name, ends in self.intervals.items()}}
        if self.differences is not None:
            intervals |= self.differences.to_json()
        if len(self.results) == 1:
            return self.results[0].to_json() | intervals
        first = self.results[0]
        return {
            "dataset": first.dataset,
            "split": ALL,
            "checkpoint": first.encoder,
            **self.metrics(),
            "deviations": self.deviations(),
            **intervals,
            "chance": first.chance,
            "saw_labels": first.saw_labels.encoder,
            "teacher_saw_labels": first.saw_labels.teacher,
            "splits": [result.to_json() for result in self.results],
        }


@dataclass(frozen=True)
class Comparison:
    """The rows of a table, in the order in which the encoders were named.

    Attributes:
        rows: One row for each encoder.
        command: The command that repeats the comparison, or an empty string.
        files: Files of the reports.
    """

    rows: tuple[ComparisonRow, ...]
    command: str = ""
    files: tuple[Path, ...] = ()

    def table(self, *, percent: bool = False) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return column names and cells: whether labels were used to train each encoder, and the first metric of each protocol.

        A metric stands with its deviation over splits and its interval, as a fraction or in percent.
        """
        form = "{:.1%}" if percent else "{:.4f}"
        first = {name: next(iter(metrics)) for name, metrics in self.rows[0].metrics().items()}
        cells = []
        for row in self.rows:
            metrics, deviations = row.metrics(), row.deviations()
            values = []
            for name, metric in first.items():
                deviation = f" ± {form.format(deviations[name][metric])}" if deviations else ""
                values.append(f"{form.format(metrics[name][metric])}{deviation} {row.interval(name, percent=percent)}".rstrip())
            cells.append((row.encoder, str(row.results[0].saw_labels), *values))
        return ("encoder", "saw labels", *(f"{name} {metric}" for name, metric in first.items())), cells

    def difference_table(self, *, percent: bool = False) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return column names and cells of the paired differences from the first encoder, without cells if there is one encoder.

        A difference is one of fractions, or in percentage points.
        """
        form = Difference.points if percent else str
        first = {name: next(iter(metrics)) for name, metrics in self.rows[0].metrics().items()}
        compared = [(row.encoder, row.differences.metrics) for row in self.rows if row.differences is not None]
        cells = [(encoder, *(form(metrics[name]) if name in metrics else "" for name in first)) for encoder, metrics in compared]
        return ("encoder", *(f"{name} {metric}" for name, metric in first.items())), cells

    def to_json(self) -> dict[str, Any]:
        """Return plain values: the only row, or all rows under `entries`."""
        origin = {"resamples": RESAMPLES, "command": self.command}
        if len(self.rows) == 1:
            return self.rows[0].to_json() | origin
        first = self.rows[0].to_json()
        return {"dataset": first["dataset"], "split": first["split"], "entries": [row.to_json() for row in self.rows]} | origin


@dataclass(frozen=True)
class ComparisonSettings:
    """Data, splits and protocols that all encoders are scored on.

    Attributes:
        dataset: A labelled data set.
        extraction: How features are extracted, and where they are kept.
        split: One of `dataset.pairs`, `all`, or None for the first.
        protocols: Names of probes.
        limit: Use at most this many train and this many test videos of a split.
        seed: Random seed of probes and bootstrap.
        settings: Settings of protocols by name, where they differ from the defaults.
    """

    dataset: Dataset
    extraction: Extraction = DEFAULT
    split: str | None = None
    protocols: tuple[str, ...] = PROTOCOLS
    limit: int | None = None
    seed: int = 0
    settings: Settings = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.dataset.pairs) if self.split == ALL else (self.dataset.pair(self.split)[0],)


def compare_encoders(
    sources: Sequence[EncoderSource], settings: ComparisonSettings, runtime: Runtime = Runtime()
) -> Iterator[ComparisonRow]:
    """Score encoders one after the other, and yield the row of each before the next one is loaded.

    Everything that headers tell is checked first, for all encoders. Each encoder is then loaded once, and only one is in memory. The
    block of the extraction is taken from students; other encoders beside the first one give their output.

    Args:
        sources: The encoders. Those that take any clips get the clips of the first one.
        settings: What they are scored on.
        runtime: Device, batch size, decoding threads and progress.

    Raises:
        StjepaError: As `evaluate`, or an encoder cannot be opened.
    """
    splits = settings.splits
    clip, extractions = _check(sources, settings)
    first: tuple[EvaluationResult, ...] = ()
    for source, extraction in zip(sources, extractions, strict=True):
        results = _results(source.open(runtime.torch_device, clip), extraction, settings, splits, runtime)
        differences = differences_of(results, first, settings.seed) if first else None
        first = first or results
        yield ComparisonRow(results, intervals_of(results, settings.seed), differences)


def _check(sources: Sequence[EncoderSource], settings: ComparisonSettings) -> tuple[ClipSpec | None, list[Extraction]]:
    """Check all encoders by their headers, and return the clips of the first one and the extraction of each."""
    clip: ClipSpec | None = None
    extractions = []
    for i, source in enumerate(sources):
        card = source.card(clip)
        clip = card.clip if i == 0 else clip
        extraction = settings.extraction if i == 0 or card.is_student else replace(settings.extraction, layer=None)
        check_protocols(settings.protocols, card, extraction, settings.settings)
        extractions.append(extraction)
    return clip, extractions


def _results(
    encoder: Encoder, extraction: Extraction, settings: ComparisonSettings, splits: Sequence[str], runtime: Runtime
) -> tuple[EvaluationResult, ...]:
    store = FeatureStore(encoder, settings.dataset.name, extraction, runtime)
    return tuple(
        score(
            store,
            settings.dataset,
            split=name,
            protocols=settings.protocols,
            limit=settings.limit,
            seed=settings.seed,
            settings=settings.settings,
        )
        for name in splits
    )
