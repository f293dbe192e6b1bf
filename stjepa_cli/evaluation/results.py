"""The result of evaluating one encoder on one split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.encoders.base import Failure, LabelUse
from stjepa_cli.encoders.features import Features
from stjepa_cli.evaluation.probes.base import ProbeResult

_UNKNOWN = LabelUse("unknown")


@dataclass(frozen=True)
class EvaluationInputs:
    """The videos and features that metrics were computed from, for the pictures of a report.

    Attributes:
        clip: How a clip is cut.
        items: The listed videos by id, including those that failed.
        train: Features of the train videos.
        test: Features of the test videos, in the order of the result.
    """

    clip: ClipSpec
    items: Mapping[str, VideoItem]
    train: Features
    test: Features


@dataclass(frozen=True)
class EvaluationResult:
    """The result of evaluating one encoder on one split.

    Attributes:
        dataset: Name of the data set.
        split: Name of the split, as a number if it is one.
        encoder: Name of the encoder.
        pool: How tokens became features.
        classes: Names of the C classes.
        num_train: Number of videos that the probes were fitted on.
        ids: Names of the R test videos.
        labels: Labels of the R test videos.
        failed: Videos that could not be used and count nowhere.
        probes: The result of each protocol.
        seconds: Wall time.
        clips: The clips of each video, `frames x temporal x spatial`.
        digests: sha256 of the encoder, of the train and test lists, and of the features.
        remark: Anything that must be known about the split, empty for an official one.
        layer: Block that gave the tokens, or None for the output of the encoder.
        sampling: How frames were sampled, `uniform` or `dense`.
        inputs: Videos and features, for pictures, or None if they are not needed.
        sources: Names of the sources that the R test videos were cut from, or nothing if each video is its own.
        saw_labels: Whether labels were used to train the encoder.
    """

    dataset: str
    split: int | str
    encoder: str
    pool: str
    classes: tuple[str, ...]
    num_train: int
    ids: tuple[str, ...]
    labels: tuple[int, ...]
    failed: tuple[Failure, ...]
    probes: dict[str, ProbeResult]
    seconds: float
    clips: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    remark: str = ""
    layer: int | None = None
    sampling: str = "uniform"
    inputs: EvaluationInputs | None = field(default=None, repr=False, compare=False)
    sources: tuple[str, ...] = ()
    saw_labels: LabelUse = _UNKNOWN

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of the R test videos that count as one observation in intervals."""
        return self.sources or self.ids

    @property
    def chance(self) -> float:
        """Top-1 accuracy of random guessing, 1 / C."""
        return 1 / len(self.classes)

    @property
    def own_clips(self) -> dict[str, str]:
        """The clips of the protocols that scored other clips than the features come from."""
        return {name: probe.clips for name, probe in self.probes.items() if probe.clips not in ("", self.clips)}

    def to_json(self) -> dict[str, Any]:
        """Return plain values, with the metrics of each protocol under its name."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "checkpoint": self.encoder,
            "videos": {"train": self.num_train, "test": len(self.ids), "failed": [asdict(failure) for failure in self.failed]},
            **{name: probe.metrics for name, probe in self.probes.items()},
            "chance": self.chance,
            "chosen": {name: probe.chosen for name, probe in self.probes.items() if probe.chosen},
            "pool": self.pool,
            "clips": self.clips,
            **({"own_clips": own} if (own := self.own_clips) else {}),
            "sampling": self.sampling,
            "layer": self.layer,
            "saw_labels": self.saw_labels.encoder,
            "teacher_saw_labels": self.saw_labels.teacher,
            "digests": self.digests,
            **({"remark": self.remark} if self.remark else {}),
            "seconds": round(self.seconds, 3),
        }
