"""What a probe is: it fits on frozen features of a train set and is scored once on a test set.

Nothing is ever chosen on the test set; its labels are used to score and for nothing else.
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
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.encoders.features import Features
from stjepa_cli.encoders.heads import Head

if TYPE_CHECKING:
    from stjepa_cli.core.types import ClipSpec
    from stjepa_cli.data.datasets.base import VideoItem
    from stjepa_cli.data.eval_clips import EvalClips
    from stjepa_cli.models.student import Student

ROWS_AT_ONCE = 512
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        figures: named shares of test videos, 0 to 1 (`top1`).
        scores: float32 (R_test, C), shares of belief that sum to 1 in a row, 0 where a class was never considered;
            None where the protocol ranks videos and not classes.
        chosen: settings, those that were fixed and those that were chosen, and on what.
        head: what was fitted, for plain inference and without a card yet; None where nothing is fitted.
        student: what the head takes the features of, where the protocol changed it; None for the encoder as it was.
        hits: float (R_test,), what each video contributes to the first figure, whose mean it is; None where `scores` tell.
        clips: which clips of a test video were scored, `16x5x3`; empty until someone who knows says so.
    """

    figures: dict[str, float]
    scores: Tensor | None = None
    chosen: dict[str, float] = field(default_factory=dict)
    head: Head | None = None
    student: Student | None = None
    hits: Tensor | None = None
    clips: str = ""


class Probe(ABC):
    """One protocol.

    Attributes:
        takes_tokens: it looks at `Features.tokens` and not at `values`, and keeps the order of ids itself: tokens are too
            large to copy.
        device: where it computes.
        gives_head: it fits something that can be kept for plain inference.
        progress: listener of those that take long.
        settings: of protocols that have any to give.
    """

    takes_tokens = False
    gives_head = False
    device = CPU
    progress: Progress = SILENT
    settings: Any

    def fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        """Fit on `train`, score on `test`.

        Args:
            train: in any order: rows are sorted by id first, so that ties fall the same way.
            test: what it is scored on.
            num_classes: C; labels are 0 to C - 1.
            seed: decides whatever is drawn.

        Raises:
            StjepaError: a side is empty or lacks the tokens that the probe takes, widths differ, or a label is out of range.
        """
        for name, side in (("train", train), ("test", test)):
            _check_side(name, side, num_classes, self.takes_tokens)
        _check_widths(train, test)
        train, test = (_on(side, self.device) for side in (train, test))
        if not self.takes_tokens:
            train, test = (replace(side, tokens=None) for side in (train, test))
            train = train.rows(train.by_id())
        result = self._fit_score(train, test, num_classes, seed)
        return replace(  # whatever comes next needs the memory of the device
            result,
            scores=None if result.scores is None else result.scores.float().cpu(),
            head=None if result.head is None else result.head.to(CPU),
            student=None if result.student is None else result.student.cpu(),
        )

    @abstractmethod
    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        """The protocol itself, on checked features."""


@dataclass(frozen=True)
class Sources:
    """What a protocol needs that looks at the videos themselves.

    Attributes:
        student: where it starts from; it is not to be changed.
        items: train and test videos by id.
        clip: how a clip is cut.
        plan: which clips of a test video are scored.
        batch_size: clips that are scored at once; changes no figure.
        workers: threads that decode; likewise.
        progress: listener.
    """

    student: Student
    items: Mapping[str, VideoItem]
    clip: ClipSpec
    plan: EvalClips
    batch_size: int = 8
    workers: int = 2
    progress: Progress = SILENT


class VideoProbe(Probe):
    """A protocol that looks at videos; features tell it which ones, and their labels.

    Attributes:
        sources: set before it fits.
        test_clips: which clips of a test video are scored where nobody says.
    """

    sources: Sources
    test_clips = "5x3"


def _on(side: Features, device: torch.device) -> Features:
    """Features on a device; tokens stay where they are."""
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


def build(name: str, device: torch.device = CPU, settings: object = None) -> Probe:
    """The probe plug-in `name`, to compute on `device`, with other settings than its own if any are given.

    Raises:
        ConfigError: there is none of that name; the message lists those that exist.
    """
    probe: Probe = plugins.load("evaluation.probes", name)()
    probe.device = device
    if settings is not None:
        probe.settings = settings
    return probe


def pool_for(protocols: Iterable[str]) -> str:
    """How tokens become features where nobody says: `tokens` if a protocol takes them, else their `mean`.

    Raises:
        ConfigError: there is no such protocol.
    """
    return "tokens" if {True} & {plugins.load("evaluation.probes", name).takes_tokens for name in protocols} else "mean"


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int) -> float:
    """Share of rows whose label is among the k best classes.

    Args:
        scores: float (R, C), higher is better; -inf marks a class that is no guess at all and never a hit. Of equal
            classes the lower number comes first.
        labels: int64 (R,).
        k: guesses; with k >= C every label is a hit.
    """
    if k >= scores.shape[1]:
        return 1.0
    best = scores.sort(dim=1, descending=True, stable=True)
    hits = (best.indices[:, :k] == labels[:, None]) & best.values[:, :k].isfinite()
    return hits.any(dim=1).double().mean().item()


def scored_by_clip(logits: Tensor, test: Features, chosen: dict[str, float], head: Head) -> ProbeResult:
    """Top-1 and top-5 of a head, with the scores of a video's clips averaged.

    Args:
        logits: float (R * C, K), of each clip, videos one after the other; -inf for classes that are never the answer.
        test: R videos of C clips each, on the device of `logits`.
        chosen: settings.
        head: what gave them.
    """
    scores = logits.softmax(dim=1).view(len(test), -1, logits.shape[1]).mean(dim=1)
    guesses = logits if len(logits) == len(test) else scores.masked_fill(scores == 0, -torch.inf)  # logits tell more apart
    return ProbeResult({f"top{k}": top_k_accuracy(guesses, test.labels, k) for k in (1, 5)}, scores, chosen, head)


def nearest(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest gallery rows of each query, best first; of equal ones the earlier row comes first.

    Args:
        queries: float32 (Q, F), unit rows.
        gallery: float32 (R, F), unit rows.
        k: neighbours, shrunk to R.

    Returns:
        similarities float32 (Q, k) and rows int64 (Q, k).
    """
    k = min(k, len(gallery))
    chunks = [highest(part @ gallery.T, k) for part in torch.split(queries, ROWS_AT_ONCE)]
    return torch.cat([values for values, _ in chunks]), torch.cat([places for _, places in chunks])


def highest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k of a stable descending sort of each row of (Q, R): values (Q, k) and places int64 (Q, k).

    Only rows whose k-th value is not the last of its kind are sorted whole; the rest costs a third of that.
    """
    values, places = scores.topk(k, dim=1)
    places = places.sort(dim=1).values  # of equal ones the earlier place comes first
    values, turn = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    places = places.gather(1, turn)
    tied = ((scores >= values[:, -1:]).sum(dim=1) > k).nonzero()[:, 0]
    if len(tied):
        whole = scores[tied].sort(dim=1, descending=True, stable=True)
        values[tied], places[tied] = whole.values[:, :k], whole.indices[:, :k]
    return values, places
