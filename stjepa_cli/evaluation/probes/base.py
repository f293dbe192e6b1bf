"""The base class of probes: fit on frozen features of a train set, then score once on a test set.

Nothing is ever chosen on the test set. Its labels are used for scoring only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import StjepaError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.encoders.features import Features
from stjepa_cli.encoders.heads import Head

if TYPE_CHECKING:
    from stjepa_cli.core.types import ClipSpec
    from stjepa_cli.data.datasets.base import VideoItem
    from stjepa_cli.data.eval_clips import EvalClips
    from stjepa_cli.models.student import Student

FOLDER = "evaluation.probes"
FORMER_NAMES = {"attentive1": "attentive_pool"}
"""Protocols by the names that they once had, which keep working."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ProbeResult:
    """The result of a probe.

    Attributes:
        metrics: Named fractions of test videos, 0 to 1 (`top1`).
        scores: float32 (R_test, C), class probabilities that sum to 1 in each row, with 0 for classes that were never considered.
            None if the protocol does not score classes.
        chosen: Settings that were fixed and settings that were chosen, and what they were chosen on.
        head: The fitted classifier without a card, or None if nothing is fitted.
        student: The student whose features the head takes, if the protocol changed it. None for the encoder as it was.
        hits: float (R_test,), the contribution of each video to the first metric, whose mean it is. None if `scores` decide it.
        clips: The clips of a test video that were scored, `16x5x3`. Empty until `evaluate` fills it in.
    """

    metrics: dict[str, float]
    scores: Tensor | None = None
    chosen: dict[str, float] = field(default_factory=dict)
    head: Head | None = None
    student: Student | None = None
    hits: Tensor | None = None
    clips: str = ""


class Probe(ABC):
    """One protocol; a module of this folder exposes its class as `plugin`.

    Attributes:
        takes_tokens: True if it takes `Features.tokens` instead of `values`. Such a probe sorts rows by id itself, because tokens
            are too large to copy.
        gives_head: True if it fits a classifier that can be saved.
        runtime: Device and progress.
        settings: Settings of the probes that have any.
    """

    takes_tokens = False
    gives_head = False
    runtime = Runtime(device="cpu")
    settings: Any

    @property
    def device(self) -> torch.device:
        """The device that the probe computes on."""
        return self.runtime.torch_device

    def fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        """Fit on `train` and score on `test`.

        Args:
            train: Features in any order. Rows are sorted by id first, so that ties are broken in the same way.
            test: Features to score.
            num_classes: C. Labels are 0 to C - 1.
            seed: Seed of everything random.

        Raises:
            StjepaError: A side is empty or lacks the tokens that the probe takes, widths differ, or a label is out of range.
        """
        for name, side in (("train", train), ("test", test)):
            _check_side(name, side, num_classes, self.takes_tokens)
        _check_widths(train, test)
        train, test = (_on_device(side, self.device) for side in (train, test))
        if not self.takes_tokens:
            train, test = (replace(side, tokens=None) for side in (train, test))
            train = train.rows(train.by_id())
        result = self._fit_score(train, test, num_classes, seed)
        return replace(  # the next probe or encoder needs the memory of the device
            result,
            scores=None if result.scores is None else result.scores.float().cpu(),
            head=None if result.head is None else result.head.to(CPU),
            student=None if result.student is None else result.student.cpu(),
        )

    @abstractmethod
    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        """Run the protocol on checked features."""


@dataclass(frozen=True)
class VideoSource:
    """Videos and the student, for the protocols that train on videos instead of features.

    Attributes:
        student: The student to start from. It must not be changed.
        items: Train and test videos by id.
        clip: How a clip is cut.
        eval_clips: The clips of a test video that are scored.
        runtime: Device, batch size, decoding threads and progress.
    """

    student: Student
    items: Mapping[str, VideoItem]
    clip: ClipSpec
    eval_clips: EvalClips
    runtime: Runtime = Runtime(device="cpu")


class VideoProbe(Probe):
    """A protocol that trains on videos; features tell it which videos, and their labels.

    Attributes:
        source: Set before the probe is fitted.
        test_clips: The clips of a test video that are scored by default.
    """

    source: VideoSource
    test_clips = "5x3"


def probe_class(name: str) -> type[Probe]:
    """Return the class of a protocol, also by a name that it once had.

    Raises:
        ConfigError: There is no such protocol. The message lists those that exist.
    """
    found: type[Probe] = plugins.load(FOLDER, FORMER_NAMES.get(name, name))
    return found


def build(name: str, runtime: Runtime = Probe.runtime, settings: object = None) -> Probe:
    """Return the probe of a protocol.

    Args:
        name: Name of the protocol.
        runtime: Device and progress.
        settings: Settings to use instead of the defaults of the protocol.

    Raises:
        ConfigError: There is no such protocol.
    """
    probe = probe_class(name)()
    probe.runtime = runtime
    if settings is not None:
        probe.settings = settings
    return probe


def pool_for(protocols: Iterable[str]) -> str:
    """Return the default pool of some protocols: `tokens` if one of them takes tokens, else `mean`.

    Raises:
        ConfigError: There is no such protocol.
    """
    return "tokens" if True in {probe_class(name).takes_tokens for name in protocols} else "mean"  # every name is checked


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Return the fraction of rows whose label is among the k best classes.

    Args:
        scores: float (R, C), higher is better. A class with -inf is never a hit. Of equal classes the lower number comes first.
        labels: int64 (R,).
        k: Number of guesses. With k >= C every label is a hit.
    """
    if k >= scores.shape[1]:
        return 1.0
    best = scores.sort(dim=1, descending=True, stable=True)
    hits = (best.indices[:, :k] == labels[:, None]) & best.values[:, :k].isfinite()
    return hits.any(dim=1).double().mean().item()


def scored_by_clip(logits: Tensor, test: Features, chosen: dict[str, float], head: Head) -> ProbeResult:
    """Return the result of a head, with class probabilities averaged over the clips of a video.

    Args:
        logits: float (R * C, K) for each clip, videos one after the other, with -inf for classes that are never predicted.
        test: R videos of C clips each, on the device of `logits`.
        chosen: Settings.
        head: The head that gave the logits.
    """
    scores = logits.softmax(dim=1).view(len(test), -1, logits.shape[1]).mean(dim=1)
    guesses = logits if len(logits) == len(test) else scores.masked_fill(scores == 0, -torch.inf)  # logits have fewer ties
    return ProbeResult({f"top{k}": top_k_accuracy(guesses, test.labels, k) for k in (1, 5)}, scores, chosen, head)


def _on_device(side: Features, device: torch.device) -> Features:
    """Return features on a device, except tokens, which stay where they are."""
    clips = None if side.clips is None else side.clips.to(device)
    return replace(side, values=side.values.to(device), labels=side.labels.to(device), clips=clips)


def _check_side(name: str, side: Features, num_classes: int, takes_tokens: bool) -> None:
    if not len(side):
        raise StjepaError(f"a probe needs {name} features", got="none")
    low, high = int(side.labels.min()), int(side.labels.max())
    if low < 0 or high >= num_classes:
        raise StjepaError(f"a {name} label is out of range", got=f"{low} to {high}", expected=f"0 to {num_classes - 1}")
    if takes_tokens and side.tokens is None:
        raise StjepaError(f"this probe needs the tokens of {name} videos", got="pooled features alone")


def _check_widths(train: Features, test: Features) -> None:
    widths = train.values.shape[1], test.values.shape[1]
    if widths[0] != widths[1]:
        raise StjepaError("train and test features differ in width", got=f"{widths[0]} and {widths[1]}")
    if train.tokens is not None and test.tokens is not None and train.tokens.shape[2] != test.tokens.shape[2]:
        raise StjepaError("train and test tokens differ in width", got=f"{train.tokens.shape[2]} and {test.tokens.shape[2]}")
