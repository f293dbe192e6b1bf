"""Use case: the most likely classes of single video files, by a saved head on its frozen encoder.

```text
files -> clips -> encoder (frozen) -> features -> head -> class probabilities, averaged over the clips of a file
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from stjepa_cli.core.errors import ConfigError, VideoError
from stjepa_cli.core.locations import Location
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.eval_clips import parse_eval_clips
from stjepa_cli.encoders.base import encode_videos
from stjepa_cli.encoders.heads import Head, load_head, read_card
from stjepa_cli.encoders.resolve import NamedEncoder, at_layer
from stjepa_cli.evaluation.saved_heads import newest_head

TOP = 5


@dataclass(frozen=True)
class Guess:
    """A class and its probability, 0 to 1."""

    name: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """The prediction for a video.

    Attributes:
        video: The file, as it was named.
        top: The most likely classes, best first. Empty if the file cannot be used.
        error: The reason why the file cannot be used, else empty.
    """

    video: str
    top: tuple[Guess, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Predictions:
    """The predictions of one head.

    Attributes:
        head: The file of the head.
        encoder: Name of the encoder that it belongs to.
        clips: The clips of each video that were scored.
        videos: One prediction per video, in the order in which they were named.
    """

    head: str
    encoder: str
    clips: str
    videos: tuple[Prediction, ...]

    @property
    def complete(self) -> bool:
        """True if every file could be used."""
        return not any(video.error for video in self.videos)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a video has either `top` or `error`."""
        videos = [
            {"video": video.video, "error": video.error}
            if video.error
            else {"video": video.video, "top": [{"class": guess.name, "score": guess.score} for guess in video.top]}
            for video in self.videos
        ]
        return {"ok": self.complete, "head": self.head, "encoder": self.encoder, "clips": self.clips, "videos": videos}


def predict(
    videos: Sequence[Location],
    head: Path,
    *,
    encoder: str | None = None,
    clips: str | None = None,
    top: int = TOP,
    run: Path = Path("checkpoints"),
    runtime: Runtime = Runtime(),
) -> Predictions:
    """Predict the classes of video files.

    Args:
        videos: Files of any size, rotation and frame rate that FFmpeg decodes.
        head: A file that `save_heads` wrote, or a folder for the newest head below it.
        encoder: Name of the head's encoder, if it has moved.
        clips: The clips of each file, `16x5x3`, or None for those that the head was scored on.
        top: Number of classes to return for each file.
        run: Folder of checkpoints, for the name `untrained`.
        runtime: Device, batch size, decoding threads and progress.

    Raises:
        CheckpointError: There is no such head, or it was fitted on another encoder.
        StjepaError: The encoder cannot be opened.
    """
    if top < 1:
        raise ConfigError("at least one class is shown", got=top)
    path, device = newest_head(head), runtime.torch_device
    card = read_card(path)
    model = at_layer(NamedEncoder(encoder or card.encoder, run).open(device, card.clip), card.layer)
    fitted = load_head(path, model.name, model.digest).to(device)
    eval_clips = replace(parse_eval_clips(clips or card.plan), sampling=card.sampling, stride=card.stride).fit(model.clip)
    items = [VideoItem(str(video), video, None, None) for video in videos]
    found = []
    with runtime.progress.task("infer", total=len(items), unit="videos") as task:
        for item, features in encode_videos(model, items, eval_clips, pool=card.features, runtime=runtime):
            if isinstance(features, VideoError):
                found.append(Prediction(item.id, error=str(features)))
            else:
                found.append(Prediction(item.id, _most_likely(fitted, features.to(device), top)))
            task.advance(1)
    return Predictions(str(path), model.name, str(eval_clips), tuple(found))


def _most_likely(head: Head, features: Tensor, count: int) -> tuple[Guess, ...]:
    """Return the most likely classes of a video from features (C, F) or tokens (C, N, D), without classes that train lacked."""
    assert head.card is not None  # a head from a file has a card
    ranked = head.predict(features).mean(dim=0)[head.labels].cpu().sort(descending=True, stable=True)
    names = [head.card.classes[label] for label in head.labels.cpu()[ranked.indices].tolist()]
    return tuple(Guess(name, score) for name, score in zip(names, ranked.values.tolist(), strict=True))[:count]
