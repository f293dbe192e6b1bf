"""Score a frozen encoder on a labelled data set: decode, encode once, run the probes.

```text
videos -> clips -> encoder (frozen) -> tokens (B, N, D) -> pooled features (R, F) -> probes -> figures
```
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from stjepa_cli.core.errors import ConfigError, DatasetError, StjepaError
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.types import ClipSpec, digest
from stjepa_cli.data.datasets.base import Dataset, VideoItem, spread
from stjepa_cli.data.eval_clips import parse_eval_clips
from stjepa_cli.encoders.base import Encoder, Failure
from stjepa_cli.encoders.feature_store import ABSENT, DEFAULT, Extraction, FeatureStore, features_digest, list_digest
from stjepa_cli.encoders.features import Features
from stjepa_cli.encoders.heads import HeadCard
from stjepa_cli.encoders.student_encoder import StudentEncoder
from stjepa_cli.evaluation.probes.base import Probe, ProbeResult, Sources, VideoProbe, build

PROTOCOLS = ("knn", "linear", "retrieval")
MAX_TWINS = 5

Settings = Mapping[str, Any]
NO_SETTINGS: Settings = {}


@dataclass(frozen=True)
class Evidence:
    """What figures were made of.

    Attributes:
        clip: how a clip was cut.
        items: the listed videos by id, those that failed too.
        train: features of the train videos that were used.
        test: of those that were scored, in the order of the result.
    """

    clip: ClipSpec
    items: Mapping[str, VideoItem]
    train: Features
    test: Features


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        dataset: the data set's name.
        split: the split, as the data set names it; a number where it is one.
        checkpoint: the encoder's name.
        pool: how tokens became features.
        classes: C names.
        num_train: videos that the probes were fitted on.
        ids: R names of the test videos that were scored.
        truths: their R labels.
        failed: videos left out of numerator and denominator.
        probes: each protocol's result.
        seconds: wall time of all of it.
        clips: which clips of each video, `frames x temporal x spatial`.
        digests: sha256 of the encoder's weights and geometry, of the train and test lists, and of the features.
        remark: what must be known of the split, empty where it is an official one.
        layer: block that gave the tokens, None for the encoder's own.
        sampling: how the frames of a clip were taken, `uniform` or `dense`.
        evidence: what the figures were made of, for pictures; None where nobody needs it.
    """

    dataset: str
    split: int | str
    checkpoint: str
    pool: str
    classes: tuple[str, ...]
    num_train: int
    ids: tuple[str, ...]
    truths: tuple[int, ...]
    failed: tuple[Failure, ...]
    probes: dict[str, ProbeResult]
    seconds: float
    clips: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    remark: str = ""
    layer: int | None = None
    sampling: str = "uniform"
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    @property
    def chance(self) -> float:
        """Top-1 share of blind guessing, 1 / C."""
        return 1 / len(self.classes)

    @property
    def own_clips(self) -> dict[str, str]:
        """Protocols that scored other clips than the features are of, and which."""
        return {name: probe.clips for name, probe in self.probes.items() if probe.clips not in ("", self.clips)}

    def to_json(self) -> dict[str, Any]:
        """As plain values; each protocol that ran is a key of its own."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "checkpoint": self.checkpoint,
            "videos": {"train": self.num_train, "test": len(self.ids), "failed": [asdict(failure) for failure in self.failed]},
            **{name: result.figures for name, result in self.probes.items()},
            "chance": self.chance,
            "chosen": {name: result.chosen for name, result in self.probes.items() if result.chosen},
            "pool": self.pool,
            "clips": self.clips,
            **({"own_clips": own} if (own := self.own_clips) else {}),
            "sampling": self.sampling,
            "layer": self.layer,
            "digests": self.digests,
            **({"remark": self.remark} if self.remark else {}),
            "seconds": round(self.seconds, 3),
        }


def evaluate(
    encoder: Encoder,
    dataset: Dataset,
    extraction: Extraction = DEFAULT,
    *,
    split: int | str | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    limit: int | None = None,
    device: torch.device,
    seed: int = 0,
    progress: Progress = SILENT,
) -> EvaluationResult:
    """Score an encoder on a split.

    Args:
        encoder: frozen, on `device`.
        dataset: labelled.
        extraction: how features are made, and where they are kept.
        split: one of `dataset.pairs`, None for the first.
        protocols: names of probes.
        limit: at most so many train and so many test videos, spread over the classes.
        device: where the encoder is.
        seed: of what the probes draw.
        progress: listener.

    Raises:
        ConfigError: an unknown protocol, split or block, or one that does not suit the encoder or the features.
        DatasetError: a list is unusable, a video has no label, or train and test share a video or a source.
        StjepaError: no video of one side could be used, or a feature is not finite.
    """
    store = FeatureStore(encoder, dataset.name, extraction, device=device, progress=progress)
    return score(store, dataset, split=split, protocols=protocols, limit=limit, seed=seed)


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
    """Score the features of a store on a split, extracting what it lacks; arguments and errors are those of `evaluate`.

    `settings` are those of protocols that are not to have their own, by name.
    """
    started = time.perf_counter()
    probes = suited_probes(protocols, store, settings)  # a wrong name is told before hours of decoding
    name, (train_split, test_split) = dataset.pair(split)
    train_items, test_items = _labelled(dataset, train_split), _labelled(dataset, test_split)
    refuse_leaks(train_items, test_items, groups=dataset.groups_are_apart)
    train_items, test_items = spread(train_items, limit), spread(test_items, limit)
    train_items, told = without_twins(train_items, test_items, store.fingerprints, official=dataset.official)
    train, failed_train = store.take(train_items, train_split)
    _refuse_empty(train, failed_train, train_split)
    test, failed_test = store.take(test_items, test_split)
    _refuse_empty(test, failed_test, test_split)
    items = {item.id: item for item in (*train_items, *test_items)}
    results = _fitted(probes, store, dataset.classes, items, train, test, seed)
    bare_train, bare_test = (replace(side, tokens=None, clips=None) for side in (train, test))
    return EvaluationResult(
        dataset=dataset.name,
        split=int(name) if name.isdecimal() else name,
        checkpoint=store.encoder.name,
        pool=store.pool,
        classes=dataset.classes,
        num_train=len(train),
        ids=test.ids,
        truths=tuple(test.labels.tolist()),
        failed=tuple(replace(failure, side=side) for side, part in (("train", failed_train), ("test", failed_test)) for failure in part),
        probes=results,
        seconds=time.perf_counter() - started,
        clips=str(store.plan),
        sampling=store.clip.sampling,
        digests={
            "encoder": store.spec.encoder,
            "lists": digest([list_digest(train_items), list_digest(test_items)]),
            "features": features_digest(train, test),
        },
        remark="; ".join(filter(None, (dataset.remark, told))),
        layer=store.spec.layer,
        evidence=Evidence(store.clip, items, bare_train, bare_test),
    )


def _fitted(
    probes: Mapping[str, Probe],
    store: FeatureStore,
    classes: tuple[str, ...],
    items: Mapping[str, VideoItem],
    train: Features,
    test: Features,
    seed: int,
) -> dict[str, ProbeResult]:
    """What each probe found."""
    found = {}
    for name, probe in probes.items():
        probe.progress = store.progress
        if isinstance(probe, VideoProbe):
            probe.sources = _sources(store, probe, items)
        found[name] = _named(probe.fit_score(train, test, len(classes), seed), probe, store, classes)
    return found


def suited_probes(protocols: Sequence[str], store: FeatureStore, settings: Settings = NO_SETTINGS) -> dict[str, Probe]:
    """The probes by name, each of which can be fed by the store; nothing is extracted for that.

    Raises:
        ConfigError: there is none of a name, or one does not suit the encoder or the features.
    """
    probes = {name: build(name, store.device, settings.get(name)) for name in protocols}
    for name, probe in probes.items():
        if probe.takes_tokens and store.pool != "tokens":
            raise ConfigError(f"{name} takes single tokens", got=f"pool {store.pool}", expected="tokens", fix="Type `--pool tokens`.")
        if isinstance(probe, VideoProbe) and not isinstance(store.encoder, StudentEncoder):
            raise ConfigError(f"{name} trains a student", got=store.encoder.name, expected="a checkpoint or an exported student")
        if isinstance(probe, VideoProbe) and store.extraction.layer is not None:
            raise ConfigError(f"{name} trains the whole student", got=f"layer {store.extraction.layer}", fix="Leave out --layer.")
    unknown = sorted(set(settings) - set(probes))
    if unknown:
        raise ConfigError("settings of a protocol that does not run", got=unknown[0], fix=f"Type `--protocol {unknown[0]}`.")
    return probes


def _sources(store: FeatureStore, probe: VideoProbe, items: Mapping[str, VideoItem]) -> Sources:
    assert isinstance(store.encoder, StudentEncoder)  # checked with the probes
    spread_out = parse_eval_clips(probe.test_clips)
    plan = store.plan if store.plan.num_clips > 1 else replace(store.plan, temporal=spread_out.temporal, spatial=spread_out.spatial)
    own = store.extraction
    return Sources(store.encoder.student, items, store.clip, plan, own.batch_size, own.workers, store.progress)


def _named(result: ProbeResult, probe: Probe, store: FeatureStore, classes: tuple[str, ...]) -> ProbeResult:
    """A result that says which clips it scored, and whose head says what it belongs to."""
    plan = probe.sources.plan if isinstance(probe, VideoProbe) else store.plan
    result = replace(result, clips=str(plan))
    if result.head is None:
        return result
    encoder = store.encoder if result.student is None else StudentEncoder(result.student, store.encoder.name)
    pool = "tokens" if result.head.kind == "attentive" else "mean" if result.student or store.pool == "tokens" else store.pool
    card = HeadCard(
        encoder=encoder.name,
        encoder_digest=encoder.digest,
        clip=encoder.clip,
        features=pool,
        classes=classes,
        plan=str(plan),
        sampling=plan.sampling,
        stride=plan.stride,
        layer=encoder.layer,
    )
    return replace(result, head=replace(result.head, card=card))


def refuse_leaks(train: Sequence[VideoItem], test: Sequence[VideoItem], *, groups: bool = True) -> None:
    """Refuse a split that tests on what it trains on: videos and, unless told otherwise, groups.

    Raises:
        DatasetError: a video, or the source that videos were cut from, is on both sides; the message names one.
    """
    for what, key in (("id", _id), ("path", _path), *((("group", _source),) if groups else ())):
        seen = {key(item) for item in train} - {None}
        both = sorted({str(key(item)) for item in test if key(item) in seen})
        if both:
            raise DatasetError(f"train and test share {len(both)} of their {what}s", got=both[0], fix="Put back the official split files.")


def without_twins(
    train: Sequence[VideoItem], test: Sequence[VideoItem], fingerprints: Callable[[Sequence[VideoItem]], Sequence[str]], *, official: bool
) -> tuple[tuple[VideoItem, ...], str]:
    """Train without the videos that lie under other names in test; where lists are nobody's standard, such a split is refused.

    Returns:
        the train videos that are left, and what is to be said, empty if there is nothing.

    Raises:
        DatasetError: the same file is on both sides of lists that are not official; the message names pairs.
    """
    known = dict(zip(fingerprints(test), test, strict=True))
    known.pop(ABSENT, None)
    marks = fingerprints(train)
    both = [(mine, known[mark]) for mark, mine in zip(marks, train, strict=True) if mark in known]
    if not both:
        return tuple(train), ""
    told = ", ".join(f"{mine.id} is {theirs.id}" for mine, theirs in both[:MAX_TWINS]) + (", ..." if len(both) > MAX_TWINS else "")
    if not official:
        raise DatasetError(f"train and test share {len(both)} files under two names", got=told, fix="Leave one of each pair out.")
    left = tuple(item for mark, item in zip(marks, train, strict=True) if mark not in known)
    return left, f"{len(both)} train videos were left out, since the same files are in test under other names: {told}"


def _id(item: VideoItem) -> str | None:
    return item.id


def _path(item: VideoItem) -> str | None:
    return str(item.path)


def _source(item: VideoItem) -> str | None:
    """The source that a video was cut from: groups are counted within a class."""
    return None if item.group is None else f"{item.group} of class {item.label}"


def _refuse_empty(features: Features, failed: Sequence[Failure], split: str) -> None:
    if not len(features):
        first = failed[0].error if failed else "an empty list"
        raise StjepaError(f"no video of {split} can be used", got=first, fix="Type `stjepa download-check --deep`.")


def _labelled(dataset: Dataset, split: str) -> tuple[VideoItem, ...]:
    items = dataset.videos(split)
    nameless = [item.id for item in items if item.label is None]
    if nameless:
        raise DatasetError(f"{len(nameless)} videos of {split} have no label", got=nameless[0])
    return items
