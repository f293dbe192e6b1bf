"""The Python API: any encoder by its name, and the vectors that it makes of videos.

```python
from stjepa_cli import Encoder

encoder = Encoder.from_pretrained("facebook/vjepa2-vitl-fpc64-256")
tokens = encoder.embed("clip.mp4")  # [num_tokens, D]
```
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stjepa_cli.core.errors import ConfigError, VideoError
from stjepa_cli.core.locations import Location
from stjepa_cli.core.places import checkpoints_dir
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.threads import use_threads
from stjepa_cli.core.types import ClipSpec, TokenGrid
from stjepa_cli.encoders import base
from stjepa_cli.encoders.resolve import PIXELS, NamedEncoder
from stjepa_cli.encoders.teacher_encoder import TeacherEncoder
from stjepa_cli.search import pooling
from stjepa_cli.search.reading import Item, Reader, Reading
from stjepa_cli.teachers.base import open_teacher


class Encoder:
    """A frozen encoder that turns videos into tokens or vectors.

    Vectors of the same video agree to 1e-6 on a CPU, whatever the batch size and the number of threads.

    Args:
        model: A loaded encoder, on the device of `runtime`.
        runtime: Device, batch size and decoding threads.
    """

    def __init__(self, model: base.Encoder, runtime: Runtime = Runtime()) -> None:
        self.model, self.runtime = model, runtime

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str = "auto", num_frames: int | None = None, batch_size: int = 8, workers: int = 4
    ) -> Encoder:
        """Load an encoder.

        Args:
            name: A checkpoint, a folder of checkpoints (its newest), an exported student, a folder or Hugging Face id of a VideoMAE,
                V-JEPA 2 or DINOv2 model, or `hog`, which needs no weights.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            num_frames: Number of frames in a clip, for models that take any; None for the model's own.
            batch_size: Clips per forward pass.
            workers: Threads that decode videos.

        Raises:
            ConfigError: There is no such device, or the model does not take so many frames.
            CheckpointError: A checkpoint or an export is missing or damaged.
            TeacherError: There is no such model, or its weights cannot be loaded.
        """
        return cls.load(str(name), Runtime(device, workers, batch_size), num_frames)

    @classmethod
    def load(cls, name: str, runtime: Runtime, num_frames: int | None = None) -> Encoder:
        """Load an encoder; the arguments and errors of `from_pretrained`, with a runtime in place of single settings."""
        model = _open(name, runtime.torch_device, num_frames)
        runtime.progress.note(str(use_threads(model.dim, runtime.workers)))
        return cls(model, runtime)

    @property
    def name(self) -> str:
        """The name that the encoder was loaded by."""
        return self.model.name

    @property
    def clip(self) -> ClipSpec:
        """The clips that it takes."""
        return self.model.clip

    @property
    def grid(self) -> TokenGrid:
        """The token grid of a clip."""
        return self.model.grid

    @property
    def dim(self) -> int:
        """Width D of a token."""
        return self.model.dim

    @property
    def digest(self) -> str:
        """sha256 over weights and geometry of clips, 64 hex digits."""
        return self.model.digest

    def embed(self, source: str | os.PathLike[str] | Location, pool: str = pooling.NONE) -> Tensor:
        """Embed one video, its frames spread over all of it.

        Args:
            source: Path or URL.
            pool: `none` for tokens, or the recipe of a vector of length 1: `mean`, `max`, `weighted` or `segments`.

        Returns:
            float32 on the CPU: tokens (N, D) in (t, h, w) order, or a vector (D,), (3 * D,) for `segments`.

        Raises:
            VideoError: The video cannot be used; the message says why.
            ConfigError: There is no such pooling.
        """
        return next(self.embed_many([source], pool))

    def embed_many(self, sources: Iterable[str | os.PathLike[str] | Location], pool: str = pooling.NONE) -> Iterator[Tensor]:
        """Embed videos in batches and yield the result of each, in their order; decoding runs ahead in threads.

        Args:
            sources: Paths or URLs; may be endless, and is consumed a few ahead of the results.
            pool: See `embed`.

        Yields:
            What `embed` returns, for each video.

        Raises:
            VideoError: A video cannot be used; raised in its place. `embed_or_errors` goes on.
            ConfigError: There is no such pooling.
        """
        for found in self.embed_or_errors(sources, pool):
            if isinstance(found, VideoError):
                raise found
            yield found

    def embed_or_errors(
        self, sources: Iterable[str | os.PathLike[str] | Location], pool: str = pooling.NONE
    ) -> Iterator[Tensor | VideoError]:
        """Embed videos as `embed_many` does, and yield the error of each that cannot be used, in its place."""
        pooling.check_pool(pool)
        items = (Item(source if isinstance(source, str) else str(source)) for source in sources)
        readings = Reader(self.clip).read_all(items, self.runtime)
        for found, tokens in self.encode(readings):
            if tokens is None:
                yield VideoError(found.item.uri, found.error or "it cannot be read")
            else:
                yield pooling.pool(tokens, self.grid, pool)[0].cpu()

    @torch.inference_mode()
    def encode(self, readings: Iterable[Reading]) -> Iterator[tuple[Reading, Tensor | None]]:
        """Encode what was read, in batches, and yield it in its order.

        Args:
            readings: Clips of videos; those without clips cost nothing.

        Yields:
            Each reading with its tokens (P, N, D) on the device, one row per part, or None if it has no clips.
        """
        waiting: list[Reading] = []
        num_clips = 0
        for reading in readings:
            waiting.append(reading)
            num_clips += 0 if reading.clips is None else len(reading.clips)
            if num_clips >= self.runtime.batch_size or not num_clips:
                yield from self._encode(waiting)
                waiting, num_clips = [], 0
        yield from self._encode(waiting)

    def _encode(self, readings: list[Reading]) -> list[tuple[Reading, Tensor | None]]:
        decoded = [reading.clips for reading in readings if reading.clips is not None]
        if not decoded:
            return [(reading, None) for reading in readings]
        device = self.runtime.torch_device
        batches = torch.split(torch.cat(decoded), self.runtime.batch_size)
        tokens = torch.cat([self.model.encode(batch.to(device)).float() for batch in batches])
        found = iter(torch.split(tokens, [len(clips) for clips in decoded]))
        return [(replace(reading, clips=None), None if reading.clips is None else next(found)) for reading in readings]


def _open(name: str, device: torch.device, num_frames: int | None) -> base.Encoder:
    """Load an encoder whose clips have `num_frames` frames."""
    named = NamedEncoder(name, checkpoints_dir())
    if num_frames is None:
        return named.open(device)
    card = named.card()
    if card.clip is None or card.clip.num_frames == num_frames:
        return named.open(device)
    if card.is_student:
        raise ConfigError(f"{name} takes clips of another length", got=f"{num_frames} frames", expected=card.clip.num_frames)
    clip = replace(card.clip, num_frames=num_frames)
    return named.open(device, clip) if name == PIXELS else TeacherEncoder(open_teacher(name, clip=clip, device=device))
