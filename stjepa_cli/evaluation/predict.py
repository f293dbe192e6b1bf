"""Use case: what is in these videos? A saved head on its frozen encoder, for files that belong to no data set.

```text
files -> clips -> encoder (frozen) -> features -> head -> shares of belief, averaged over the clips of a file
```
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import CheckpointError, ConfigError, VideoError, storage_errors
from stjepa_cli.core.locations import Location
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.types import software_versions
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.eval_clips import parse_eval_clips
from stjepa_cli.encoders.base import encode_videos
from stjepa_cli.encoders.heads import Head, load_head, read_card, save_head
from stjepa_cli.encoders.resolve import at_layer, open_encoder
from stjepa_cli.evaluation.evaluate import EvaluationResult
from stjepa_cli.models.export import write_finetuned
from stjepa_cli.models.release import CONFIG, Tuning
from stjepa_cli.models.student import Student

PREFIX = "head_"
TOP = 5
_MAKE_ONE = "Type `stjepa infer ucf101 --save-head` to fit one and keep it."


@dataclass(frozen=True)
class Guess:
    """A class and the share of belief in it, 0 to 1."""

    name: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """What a head says of a video.

    Attributes:
        video: the file, as it was named.
        top: the likeliest classes, best first; empty if the file cannot be used.
        error: why it cannot, else empty.
    """

    video: str
    top: tuple[Guess, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Predictions:
    """Answers of one head.

    Attributes:
        head: the file that it was saved in.
        encoder: name of the encoder that it belongs to.
        clips: which clips of each video were scored.
        videos: in the order in which they were named.
    """

    head: str
    encoder: str
    clips: str
    videos: tuple[Prediction, ...]

    @property
    def whole(self) -> bool:
        """Whether every file could be used."""
        return not any(video.error for video in self.videos)

    def to_json(self) -> dict[str, Any]:
        """As plain values; a video has `top`, or an `error`."""
        videos = [
            {"video": video.video, "error": video.error}
            if video.error
            else {"video": video.video, "top": [{"class": guess.name, "score": guess.score} for guess in video.top]}
            for video in self.videos
        ]
        return {"ok": self.whole, "head": self.head, "encoder": self.encoder, "clips": self.clips, "videos": videos}


def check_heads(protocols: Sequence[str]) -> None:
    """Say before anything is fitted that there will be no head to save.

    Raises:
        ConfigError: none of the protocols gives one.
    """
    if not any(plugins.load("evaluation.probes", name).gives_head for name in protocols):
        able = [name for name in plugins.names("evaluation.probes") if plugins.load("evaluation.probes", name).gives_head]
        raise ConfigError("no protocol has a head to save", got=", ".join(protocols), expected="one of " + ", ".join(able))


def save_heads(result: EvaluationResult, folder: Path, *, progress: Progress = SILENT) -> tuple[Path, ...]:
    """Write `head_<protocol>.safetensors` for each protocol that has fitted a head, and nothing for the others.

    A protocol that trained the student too leaves it in `student_<protocol>`, an export that every command takes for a checkpoint;
    but not where it started from `untrained`.

    Raises:
        StjepaError: the disk is full or cannot be written.
    """
    written = []
    for name, probe in result.probes.items():
        if probe.head is None or probe.head.card is None:
            continue
        encoder = Path(probe.head.card.encoder)
        if probe.student is not None and not encoder.exists():  # no file could say where it comes from: `untrained`
            progress.note(f"the student that {name} trained is not kept: {encoder} is neither a checkpoint nor an export")
            continue
        if probe.student is not None:
            encoder = _save_student(result, name, probe.student, folder / f"student_{name}")
            written.append(encoder)
        # found from every folder
        card = replace(probe.head.card, encoder=str(encoder.resolve()) if encoder.exists() else str(encoder))
        written.append(folder / f"{PREFIX}{name}.safetensors")
        save_head(written[-1], replace(probe.head, card=card))
    return tuple(written)


def _save_student(result: EvaluationResult, protocol: str, student: Student, folder: Path) -> Path:
    """Takes the place of what an earlier report left there, once it is whole: that may be what it started from."""
    origin = f"{result.dataset}, split {result.split}"
    tuning = Tuning(origin, result.num_train, result.digests["encoder"], result.probes[protocol].chosen, software_versions())
    fresh = folder.with_name(f"{folder.name}.new")
    with storage_errors(folder):
        shutil.rmtree(fresh, ignore_errors=True)
        write_finetuned(student, Path(result.checkpoint), tuning, fresh)
        if (folder / CONFIG).is_file():
            shutil.rmtree(folder)
        fresh.rename(folder)
    return folder


def newest_head(place: Path) -> Path:
    """A file as it is; of a folder, the head below it that was written last.

    Raises:
        CheckpointError: there is none.
    """
    if place.exists() and not place.is_dir():
        return place
    found = sorted(place.rglob(f"{PREFIX}*.safetensors"), key=lambda path: (path.stat().st_mtime_ns, path))
    if not found:
        raise CheckpointError(f"there is no saved head in {place}", fix=_MAKE_ONE)
    return found[-1]


def predict(
    videos: Sequence[Location],
    head: Path,
    *,
    encoder: str | None = None,
    clips: str | None = None,
    top: int = TOP,
    run: Path = Path("checkpoints"),
    batch_size: int = 8,
    workers: int = 2,
    device: torch.device,
    progress: Progress = SILENT,
) -> Predictions:
    """The likeliest classes of video files.

    Args:
        videos: files, of any size, rotation and rate that FFmpeg decodes.
        head: what `save_heads` wrote, or a folder for the newest below it.
        encoder: name of the head's encoder, where it no longer lies where it was.
        clips: which clips of each file, `16x5x3`; None for those that the head was scored on.
        top: classes of each.
        run: folder of checkpoints, for the name `untrained`.
        batch_size: clips that the encoder sees at once; changes no figure.
        workers: threads that decode; likewise.
        device: where it computes.
        progress: listener.

    Raises:
        CheckpointError: no such head, or it was fitted on another encoder.
        StjepaError: the encoder cannot be opened.
    """
    if top < 1:
        raise ConfigError("at least one class is shown", got=top)
    path = newest_head(head)
    card = read_card(path)
    model = at_layer(open_encoder(encoder or card.encoder, device=device, run=run, clip=card.clip), card.layer)
    fitted = load_head(path, model.name, model.digest).to(device)
    plan = replace(parse_eval_clips(clips or card.plan), sampling=card.sampling, stride=card.stride).fit(model.clip)
    items = [VideoItem(str(video), video, None, None) for video in videos]
    found = []
    with progress.task("infer", total=len(items), unit="videos") as task:
        for item, features in encode_videos(model, items, plan, pool=card.features, batch_size=batch_size, workers=workers, device=device):
            if isinstance(features, VideoError):
                found.append(Prediction(item.id, error=str(features)))
            else:
                found.append(Prediction(item.id, _best(fitted, features.to(device), top)))
            task.advance(1)
    return Predictions(str(path), model.name, str(plan), tuple(found))


def _best(head: Head, features: Tensor, count: int) -> tuple[Guess, ...]:
    """The likeliest classes of a video, of the features (C, F) or tokens (C, N, D) of its clips; none of those that train lacked."""
    assert head.card is not None  # it comes from a file
    ranked = head.predict(features).mean(dim=0)[head.labels].cpu().sort(descending=True, stable=True)
    names = [head.card.classes[label] for label in head.labels.cpu()[ranked.indices].tolist()]
    return tuple(Guess(name, score) for name, score in zip(names, ranked.values.tolist(), strict=True))[:count]
