"""Clips of a cache as a run's student sees them: their frames, its features, and where its predictions are right."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.errors import StjepaError, VideoError
from stjepa_cli.core.locations import Location
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.sampling import evenly
from stjepa_cli.data.video import decode
from stjepa_cli.models.masking import Mask
from stjepa_cli.models.student import Student
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.shard_format import checksum
from stjepa_cli.training import feature_maps
from stjepa_cli.viz import html
from stjepa_cli.viz.images import encode_picture

Predict = Callable[[Tensor, Mask], Tensor]
"""Clips uint8 (B, T, 3, S, S) and a mask to predicted latents (B, M, E) of its hidden tokens."""

MAX_STEPS = 8  # time steps that are shown of a clip
FRAME_PX = 128  # larger frames are made smaller
SAMPLE_ROWS = 64  # of the cache, for the constant answer


@dataclass(frozen=True)
class ClipPanel:
    """One clip.

    Attributes:
        name: of the clip, and its view.
        frames: uint8 (t, 3, S, S), the first frame of each time step.
        features: uint8 (N, 3), the student's tokens as colours.
        cosines: float32 (N,) between prediction and truth, each token when hidden; None if nothing predicts.
        hidden: bool (N,), what the first of the masks hides.
        cosine: mean of `cosines`.
        constant: mean cosine of the constant answer, the mean latent of the cache.
        own: mean cosine of the clip's own mean latent, which only who knows the truth could answer.
    """

    name: str
    frames: Tensor
    features: Tensor
    cosines: Tensor | None = None
    hidden: Tensor | None = None
    cosine: float | None = None
    constant: float | None = None
    own: float | None = None


@dataclass(frozen=True)
class ClipPanels:
    """Clips side by side.

    Attributes:
        shown: those that could be had.
        left_out: why others are not, in sentences.
        explained: share of the variance of their features that their colours hold, 0 to 1.
        held_out: whether they are clips that the student was not trained on.
        constant: mean cosine of the constant answer over a sample of the whole cache; it differs much between single clips.
    """

    shown: tuple[ClipPanel, ...] = ()
    left_out: tuple[str, ...] = ()
    explained: float = 0.0
    held_out: bool = False
    constant: float | None = None

    def mean(self, name: str) -> float | None:
        """The mean of a figure of the portraits; None if none has it."""
        known = [value for value in (getattr(portrait, name) for portrait in self.shown) if value is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class StudentViewer:
    """What looks at the clips.

    Attributes:
        student: whose features are shown.
        predict: what is asked for hidden tokens; None if nothing can be.
        mask_ratio: share of the positions that are hidden at a time.
        seed: of masks and of the choice of clips.
    """

    student: Student
    predict: Predict | None
    mask_ratio: float
    seed: int


@torch.inference_mode()
def portraits(
    store: LatentStore, among: Sequence[int], data_root: Location, eyes: StudentViewer, count: int, progress: Progress = SILENT
) -> ClipPanels:
    """Portraits of some rows of a cache.

    Args:
        store: the cache.
        among: rows to choose from; the choice is spread over them.
        data_root: where its videos lie, if it keeps no frames.
        eyes: what looks at them.
        count: how many.
        progress: listener.

    Raises:
        CacheError: what is read is damaged.
    """
    clips, faults = _load(store, _sample(among, count, eyes.seed), data_root, progress)
    if not clips:
        return ClipPanels(left_out=(f"No clips are shown: {faults[0] if faults else 'the cache holds no latents yet'}",))
    colours, explained = feature_maps.component_colours(torch.cat([eyes.student(clip.unsqueeze(0)) for clip in clips.values()]))
    sample = torch.from_numpy(store.read(_sample(store.usable_rows(), SAMPLE_ROWS, eyes.seed)))
    answer = feature_maps.mean_answer(sample)
    constant = float(torch.stack([feature_maps.constant_cosines(latents, answer).mean() for latents in sample]).mean())
    found = []
    for (row, clip), features in zip(clips.items(), colours, strict=True):
        portrait = ClipPanel(store.record(row).name, clip[:: eyes.student.spec.tubelet], features)
        if eyes.predict is not None:
            generator = torch.Generator().manual_seed(eyes.seed * 1_000_003 + row)
            mask = feature_maps.covering_masks(eyes.student.grid, eyes.mask_ratio, generator)
            predicted = eyes.predict(clip.expand(len(mask.visible), *clip.shape), mask)
            portrait = replace(portrait, **_judged(predicted, torch.from_numpy(store.read([row])[0]), mask, answer))
        found.append(portrait)
    missing = f"{len(faults)} of the {len(faults) + len(clips)} chosen clips are left out: {faults[0]}" if faults else ""
    return ClipPanels(tuple(found), (missing,) if missing else (), explained, constant=constant)


def _load(store: LatentStore, rows: Sequence[int], data_root: Location, progress: Progress) -> tuple[dict[int, Tensor], list[str]]:
    """The pixels of rows, and why those of others cannot be had."""
    clips: dict[int, Tensor] = {}
    faults: list[str] = []
    with progress.task("report", total=len(rows), unit="clips") as task:
        for row in rows:
            try:
                clips[row] = _pixels(store, row, data_root)
            except (StjepaError, VideoError) as error:
                faults.append(str(error))
            task.advance()
    return clips, faults


def gallery_html(gallery: ClipPanels, spec: ClipSpec, run: RunConfig) -> Iterator[str]:
    """A gallery as parts of a page, with words on how to read it."""
    yield html.heading("What the student makes of some clips")
    for sentence in gallery.left_out:
        yield html.paragraph(sentence)
    if not gallery.shown:
        return
    origin = "held out from training" if gallery.held_out else "which the student was trained on"
    yield html.paragraph(
        f"Clips spread over the cache, {origin}; one frame of each time step. Features: the first three principal components of the "
        f"student's tokens, over all clips shown here, as red, green and blue; they hold {gallery.explained:.0%} of the variance. "
        "What has one colour is alike to the student."
    )
    yield from _told_cosines(gallery, run)
    for portrait in gallery.shown:
        yield html.heading(f"Clip {portrait.name}", 3)
        if portrait.cosine is not None:
            answers = {"the prediction": portrait.cosine, "the constant answer": portrait.constant, "its own mean": portrait.own}
            text = ", ".join(f"{name} {_figure(value)}" for name, value in answers.items())
            yield html.paragraph(f"Mean cosine over its {spec.grid.num_tokens:,} tokens: {text}.")
        yield html.scrolling(strips(portrait, spec))


def _told_cosines(gallery: ClipPanels, run: RunConfig) -> Iterator[str]:
    """What the maps of cosines show, and their means beside those of answers that need no prediction."""
    if gallery.mean("cosine") is None:
        yield html.paragraph(f"The objective {run.objective} has no predictor that could be asked for hidden tokens.")
        return
    yield html.paragraph(
        f"Predictions: tubes are hidden, {run.mask_ratio:.0%} of the positions at a time, and the predictor is asked for their latents; "
        "the colour is the cosine between its answer and the teacher's latent in the cache. The first map is of one mask: visible "
        "tubes stay as they are. The second is put together from as many masks as it takes to hide every token once."
    )
    yield html.paragraph(
        f"Over the clips shown, the mean cosine of the prediction is {_figure(gallery.mean('cosine'))}. The constant answer, the mean "
        f"latent of the cache for every token, has {_figure(gallery.mean('constant'))} ({_figure(gallery.constant)} over a sample of "
        "all clips) and needs no look at the clip. The clip's own mean latent for all its tokens has "
        f"{_figure(gallery.mean('own'))}: that much of a cosine is about the clip as a whole, not about places in it."
    )
    yield html.scale("cosine 0 or less", "1", feature_maps.SCALE)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def strips(portrait: ClipPanel, spec: ClipSpec) -> list[str]:
    """A portrait as rows of pictures, HTML."""
    steps = evenly(range(spec.grid.t), MAX_STEPS)
    name = portrait.name
    rows = [_strip("Frames", f"Frames of clip {name}", portrait.frames[steps], "JPEG")]
    features = feature_maps.blocks(portrait.features, spec)[steps]
    rows.append(_strip("Features of the student, the whole clip visible", f"Features of clip {name} as colours", features, "PNG"))
    if portrait.cosines is not None and portrait.hidden is not None:
        heat = feature_maps.heat(portrait.cosines)
        one = feature_maps.overlay(portrait.frames, heat, spec, portrait.hidden)[steps]
        every = feature_maps.overlay(portrait.frames, heat, spec, torch.ones_like(portrait.hidden))[steps]
        rows.append(
            _strip("Predicted against true, one mask: visible tubes as they are", f"Cosines of clip {name} under one mask", one, "JPEG")
        )
        label = "Predicted against true, every token when it was hidden"
        numbers = [f"frame {1 + step * spec.tubelet}" for step in steps]
        rows.append(_strip(label, f"Cosines of clip {name}, mean {portrait.cosine:.3f}", every, "JPEG", numbers))
    return rows


def _strip(label: str, alternative: str, frames: Tensor, kind: str, below: Sequence[str] = ()) -> str:
    return html.strip(label, alternative, [(f"image/{kind.lower()}", encode_picture(_sized(frame, kind), kind)) for frame in frames], below)


def _sized(frame: Tensor, kind: str) -> Tensor:
    """A frame (3, S, S) of about FRAME_PX: small ones as blocks, large ones antialiased, or thinned where they are blocks already."""
    side = frame.shape[-1]
    if side <= FRAME_PX // 2:
        times = FRAME_PX // side
        return frame.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
    if side <= FRAME_PX * 5 // 4:
        return frame
    if kind == "PNG":
        return F.interpolate(frame.unsqueeze(0), size=(FRAME_PX, FRAME_PX), mode="nearest-exact")[0]
    smaller = F.interpolate(frame.unsqueeze(0).float(), size=(FRAME_PX, FRAME_PX), mode="bilinear", antialias=True)[0]
    return smaller.round().clamp(0, 255).to(torch.uint8)


def _judged(predicted: Tensor, latents: Tensor, mask: Mask, answer: Tensor) -> dict[str, Any]:
    """What `ClipPanel` says of predictions (B, M, E)."""
    cosines = feature_maps.token_cosines(predicted, latents, mask)
    hidden = torch.zeros(len(latents), dtype=torch.bool).index_fill_(0, mask.predict[0], True)
    constant, own = (float(feature_maps.constant_cosines(latents, one).mean()) for one in (answer, feature_maps.mean_answer(latents)))
    return {"cosines": cosines, "hidden": hidden, "cosine": float(cosines.mean()), "constant": constant, "own": own}


def _pixels(store: LatentStore, row: int, data_root: Location) -> Tensor:
    """The pixels that the teacher saw, uint8 (T, 3, S, S).

    Raises:
        StjepaError: they can no longer be had.
        VideoError: likewise.
    """
    if store.header.frames:
        return store.read_frames([row], threads=1)[0]
    ref = store.ref(row, data_root)
    clip = decode(ref)
    if checksum(clip.numpy()) != store.record(row).pixels_crc:
        raise StjepaError(f"clip {store.record(row).name} no longer has the pixels that the teacher saw", got=ref.path)
    return clip


def _sample(rows: Sequence[int], count: int, seed: int) -> list[int]:
    """At most `count` rows, one drawn from each of as many equal stretches: even steps would meet one label only where labels repeat."""
    count, draw = min(count, len(rows)), random.Random(seed)
    return [rows[draw.randrange(i * len(rows) // count, (i + 1) * len(rows) // count)] for i in range(count)]
