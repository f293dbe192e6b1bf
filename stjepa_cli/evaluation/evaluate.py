"""Use case: score a frozen encoder on one split of a labelled data set.

```text
videos -> clips -> encoder (frozen) -> tokens (B, N, D) -> pooled features (R, F) -> probes -> metrics
```
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stjepa_cli.core.errors import ConfigError, DatasetError, StjepaError
from stjepa_cli.core.locations import Location
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import digest
from stjepa_cli.data.datasets.base import Dataset, VideoItem, open_dataset, spread
from stjepa_cli.data.eval_clips import parse_eval_clips
from stjepa_cli.encoders.base import Encoder, EncoderCard, Failure
from stjepa_cli.encoders.extraction import DEFAULT, Extraction
from stjepa_cli.encoders.feature_store import FeatureStore
from stjepa_cli.encoders.features import Features
from stjepa_cli.encoders.fingerprints import features_digest, list_digest
from stjepa_cli.encoders.heads import HeadCard
from stjepa_cli.encoders.resolve import card_of
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.evaluation.intervals import Interval, intervals_of
from stjepa_cli.evaluation.leaks import refuse_leaks, source_of, without_duplicates
from stjepa_cli.evaluation.probes.base import Probe, ProbeResult, VideoProbe, VideoSource, build, probe_class
from stjepa_cli.evaluation.results import EvaluationInputs, EvaluationResult

PROTOCOLS = ("knn", "linear", "retrieval")

Settings = Mapping[str, Any]
"""Settings of protocols by name, where they differ from the defaults."""

NO_SETTINGS: Settings = {}


def evaluate(
    encoder: Encoder,
    dataset: Dataset,
    extraction: Extraction = DEFAULT,
    *,
    split: int | str | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    limit: int | None = None,
    seed: int = 0,
    runtime: Runtime = Runtime(),
) -> EvaluationResult:
    """Score an encoder on a split.

    Args:
        encoder: A frozen encoder on the device of `runtime`.
        dataset: A labelled data set.
        extraction: How features are extracted, and where they are kept.
        split: One of `dataset.pairs`, or None for the first.
        protocols: Names of probes.
        limit: Use at most this many train and this many test videos, spread over the classes.
        seed: Random seed of the probes.
        runtime: Device, batch size, decoding threads and progress.

    Raises:
        ConfigError: There is no such protocol, split or block, or a protocol does not suit the encoder or the features.
        DatasetError: A list is unusable, a video has no label, or train and test share a video or a source.
        StjepaError: No video of one side could be used, or a feature is not finite.
    """
    store = FeatureStore(encoder, dataset.name, extraction, runtime)
    return score(store, dataset, split=split, protocols=protocols, limit=limit, seed=seed)


@dataclass(frozen=True)
class ProbeAccuracies:
    """Top-1 accuracies of an encoder with the two standard probes, as fractions of test videos.

    Attributes:
        encoder: Name of the encoder.
        knn: Accuracy of the kNN probe.
        knn_interval: Its 95 % bootstrap interval.
        linear: Accuracy of the linear probe.
        linear_interval: Its 95 % bootstrap interval.
        chance: Accuracy of random guessing.
        num_train: Number of train videos.
        num_test: Number of test videos.
    """

    encoder: str
    knn: float
    knn_interval: Interval
    linear: float
    linear_interval: Interval
    chance: float
    num_train: int
    num_test: int


def probe_accuracies(
    encoder: Encoder,
    dataset: Dataset | Location,
    extraction: Extraction = DEFAULT,
    *,
    limit: int | None = None,
    seed: int = 0,
    runtime: Runtime = Runtime(),
) -> ProbeAccuracies:
    """Score an encoder with kNN and the linear probe on the first split of a data set. Each video is decoded and encoded once.

    Args:
        encoder: A frozen encoder on the device of `runtime`.
        dataset: A labelled data set, or a folder of class folders.
        extraction: How features are extracted, and where they are kept.
        limit: Use at most this many train and this many test videos, spread over the classes.
        seed: Random seed of probes and bootstrap.
        runtime: Device, batch size, decoding threads and progress.

    Raises:
        StjepaError: As `evaluate`.
    """
    labelled = dataset if isinstance(dataset, Dataset) else open_dataset("folder", dataset)
    result = evaluate(encoder, labelled, extraction, protocols=("knn", "linear"), limit=limit, seed=seed, runtime=runtime)
    intervals = intervals_of((result,), seed)
    return ProbeAccuracies(
        encoder=result.encoder,
        knn=result.probes["knn"].metrics["top1"],
        knn_interval=intervals["knn"],
        linear=result.probes["linear"].metrics["top1"],
        linear_interval=intervals["linear"],
        chance=result.chance,
        num_train=result.num_train,
        num_test=len(result.ids),
    )


def score(
    store: FeatureStore,
    dataset: Dataset,
    *,
    split: int | str | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    limit: int | None = None,
    seed: int = 0,
    settings: Settings = NO_SETTINGS,
) -> EvaluationResult:
    """Score the features of a store on a split, extracting those that it lacks.

    Arguments and errors are those of `evaluate`; `settings` override the defaults of protocols by name.
    """
    started = time.perf_counter()
    check_protocols(protocols, card_of(store.encoder), store.extraction, settings)  # wrong names are reported before hours of decoding
    name, (train_split, test_split) = dataset.pair(split)
    train_items, test_items, remark = _lists(dataset, train_split, test_split, limit, store)
    train, failed_train = _usable(store, train_items, train_split)
    test, failed_test = _usable(store, test_items, test_split)
    items = {item.id: item for item in (*train_items, *test_items)}
    probes = {name: build(name, store.runtime, settings.get(name)) for name in protocols}
    results = {name: _fit_score(probe, store, dataset.classes, items, train, test, seed) for name, probe in probes.items()}
    pooled_train, pooled_test = (replace(side, tokens=None, clips=None) for side in (train, test))
    return EvaluationResult(
        dataset=dataset.name,
        split=int(name) if name.isdecimal() else name,
        encoder=store.encoder.name,
        pool=store.pool,
        classes=dataset.classes,
        num_train=len(train),
        ids=test.ids,
        labels=tuple(test.labels.tolist()),
        failed=(*(replace(failure, side="train") for failure in failed_train), *(replace(failure, side="test") for failure in failed_test)),
        probes=results,
        seconds=time.perf_counter() - started,
        clips=str(store.clips),
        sampling=store.clip.sampling,
        digests={
            "encoder": store.spec.encoder,
            "lists": digest([list_digest(train_items), list_digest(test_items)]),
            "features": features_digest(train, test),
        },
        remark=remark,
        layer=store.spec.layer,
        inputs=EvaluationInputs(store.clip, items, pooled_train, pooled_test),
        sources=tuple(source_of(items[name]) or name for name in test.ids),
        saw_labels=store.encoder.saw_labels,
    )


def check_protocols(protocols: Sequence[str], card: EncoderCard, extraction: Extraction, settings: Settings = NO_SETTINGS) -> None:
    """Check that protocols suit an encoder and its features, before anything is loaded or extracted.

    Raises:
        ConfigError: There is no such protocol, one does not suit the encoder or the features, or settings are for another one.
    """
    extraction.check(card)
    for name in protocols:
        probe = probe_class(name)
        if probe.takes_tokens and extraction.pool != "tokens":
            raise ConfigError(f"{name} takes single tokens", got=f"pool {extraction.pool}", expected="tokens", fix="Type `--pool tokens`.")
        if issubclass(probe, VideoProbe) and not card.is_student:
            raise ConfigError(f"{name} trains a student", got=card.name, expected="a checkpoint or an exported student")
        if issubclass(probe, VideoProbe) and extraction.layer is not None:
            raise ConfigError(f"{name} trains the whole student", got=f"layer {extraction.layer}", fix="Leave out --layer.")
    unused = sorted(set(settings) - set(protocols))
    if unused:
        raise ConfigError("settings of a protocol that does not run", got=unused[0], fix=f"Type `--protocol {unused[0]}`.")


def _lists(
    dataset: Dataset, train_split: str, test_split: str, limit: int | None, store: FeatureStore
) -> tuple[tuple[VideoItem, ...], tuple[VideoItem, ...], str]:
    """Return the train and test lists without leaks, and a remark about the split."""
    train, test = _labelled(dataset, train_split), _labelled(dataset, test_split)
    refuse_leaks(train, test, groups=dataset.groups_are_apart)
    train, test = spread(train, limit), spread(test, limit)
    train, duplicates = without_duplicates(train, test, store.fingerprints, official=dataset.official)
    return train, test, "; ".join(filter(None, (dataset.remark, duplicates)))


def _labelled(dataset: Dataset, split: str) -> tuple[VideoItem, ...]:
    items = dataset.videos(split)
    unlabelled = [item.id for item in items if item.label is None]
    if unlabelled:
        raise DatasetError(f"{len(unlabelled)} videos of {split} have no label", got=unlabelled[0])
    return items


def _usable(store: FeatureStore, items: Sequence[VideoItem], split: str) -> tuple[Features, tuple[Failure, ...]]:
    features, failed = store.extract(items, split)
    if not len(features):
        first = failed[0].error if failed else "an empty list"
        raise StjepaError(f"no video of {split} can be used", got=first, fix="Type `stjepa download-check --deep`.")
    return features, failed


def _fit_score(
    probe: Probe,
    store: FeatureStore,
    classes: tuple[str, ...],
    items: Mapping[str, VideoItem],
    train: Features,
    test: Features,
    seed: int,
) -> ProbeResult:
    """Run a probe, and fill in the clips that it scored and the card of its head."""
    clips = store.clips
    if isinstance(probe, VideoProbe):
        assert isinstance(store.encoder, StudentEncoder)  # `check_protocols` refused others
        default = parse_eval_clips(probe.test_clips)
        if clips.num_clips == 1:
            clips = replace(clips, temporal=default.temporal, spatial=default.spatial)
        probe.source = VideoSource(store.encoder.student, items, store.clip, clips, store.runtime)
    result = replace(probe.fit_score(train, test, len(classes), seed), clips=str(clips))
    if result.head is None:
        return result
    encoder = store.encoder if result.student is None else StudentEncoder(result.student, store.encoder.name)
    pooled = "mean" if result.student or store.pool == "tokens" else store.pool
    card = HeadCard(
        encoder=encoder.name,
        encoder_digest=encoder.digest,
        clip=encoder.clip,
        features="tokens" if result.head.kind == "attentive" else pooled,
        classes=classes,
        plan=str(clips),
        sampling=clips.sampling,
        stride=clips.stride,
        layer=encoder.layer,
    )
    return replace(result, head=replace(result.head, card=card))
