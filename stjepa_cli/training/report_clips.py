"""Sample clips of a cache: their frames, the features of teacher and students, and how well hidden tokens are predicted."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stjepa_cli.core import plugins
from stjepa_cli.core.errors import StjepaError, VideoError
from stjepa_cli.core.locations import Location
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.data.video import decode
from stjepa_cli.models.masking import Mask
from stjepa_cli.models.student import Student
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.shard_format import checksum
from stjepa_cli.training import feature_maps

Predict = Callable[[Tensor, Mask], Tensor]
"""Clips uint8 (B, T, 3, S, S) and a mask to predicted latents (B, M, E) of its hidden tokens."""

NUM_SAMPLE_ROWS = 64  # rows of the cache that the constant answer is computed from


@dataclass(frozen=True)
class TrainedModel:
    """A student with the predictor that was trained with it.

    Attributes:
        name: Name of the run.
        student: Student, frozen, on the CPU.
        predict: Predicts the latents of hidden tokens; None if the objective has no predictor.
        mask_ratio: Fraction of the positions that were hidden in training.
    """

    name: str
    student: Student
    predict: Predict | None
    mask_ratio: float


@dataclass(frozen=True)
class Prediction:
    """How well a model predicts the latents of a clip.

    Attributes:
        cosines: Tensor float32 (N,): cosine between prediction and latent for each token when it is hidden.
        hidden: Tensor bool (N,): tokens that the first mask hides.
    """

    cosines: Tensor
    hidden: Tensor

    @property
    def cosine(self) -> float:
        """Mean cosine over all tokens."""
        return float(self.cosines.mean())


@dataclass(frozen=True)
class ClipSample:
    """A clip of the cache.

    Attributes:
        name: Id of the clip, with its view if it has several.
        caption: Its class in words; empty if the data set is not at hand.
        frames: Tensor uint8 (T, 3, S, S).
        teacher: Tensor uint8 (N, 3): latents as colours.
        students: For each model a tensor uint8 (N, 3): features as colours.
        predictions: For each model its prediction, or None.
        constant: Mean cosine of the constant answer, the mean latent of the cache.
        own_mean: Mean cosine of the clip's own mean latent, an answer that needs the clip but no place in it.
    """

    name: str
    caption: str
    frames: Tensor
    teacher: Tensor
    students: tuple[Tensor, ...]
    predictions: tuple[Prediction | None, ...]
    constant: float
    own_mean: float


@dataclass(frozen=True)
class ClipSamples:
    """Several clips, and what holds for all of them.

    Attributes:
        shown: The clips.
        left_out: Why other clips are not shown, in sentences.
        held_out: True if the models were not trained on these clips.
        teacher_variance: Fraction of the variance of the latents that their colours show.
        student_variances: The same for the features of each model.
        constant: Mean cosine of the constant answer over a sample of the whole cache; it differs much between single clips.
    """

    shown: tuple[ClipSample, ...] = ()
    left_out: tuple[str, ...] = ()
    held_out: bool = False
    teacher_variance: float = 0.0
    student_variances: tuple[float, ...] = ()
    constant: float | None = None

    def cosine(self, model: int = 0) -> float | None:
        """Return the mean cosine of a model's predictions over the clips, or None if it makes none."""
        found = [sample.predictions[model] for sample in self.shown]
        return _mean([prediction.cosine for prediction in found if prediction is not None])

    def constant_cosine(self) -> float | None:
        """Return the mean cosine of the constant answer over the clips shown."""
        return _mean([sample.constant for sample in self.shown])

    def own_mean_cosine(self) -> float | None:
        """Return the mean cosine of each clip's own mean latent."""
        return _mean([sample.own_mean for sample in self.shown])


@dataclass(frozen=True)
class Candidates:
    """Where clips are sampled from.

    Attributes:
        store: The cache.
        rows: Rows to choose from; the choice is spread over them.
        held_out: True if the models were not trained on these rows.
        data_root: Folder of the videos; not needed if the cache keeps frames.
        seed: Seed of the choice, and of the masks.
    """

    store: LatentStore
    rows: Sequence[int]
    held_out: bool
    data_root: Location
    seed: int


@torch.inference_mode()
def sample_clips(candidates: Candidates, models: Sequence[TrainedModel], count: int, progress: Progress = SILENT) -> ClipSamples:
    """Sample clips, and run the models on them.

    Args:
        candidates: Where the clips come from.
        models: Models to run; all take clips of the same geometry.
        count: Number of clips.
        progress: Receives progress.

    Raises:
        CacheError: The cache is damaged.
    """
    store, seed = candidates.store, candidates.seed
    clips: dict[int, Tensor] = {}
    features: list[list[Tensor]] = [[] for _ in models]
    faults: list[str] = []
    rows = _spread(candidates.rows, count, seed)
    with progress.task("clips", total=len(rows), unit="clips") as task:
        for row in rows:
            try:
                clips[row] = _pixels(store, row, candidates.data_root)
                for model, tokens in zip(models, features, strict=True):
                    tokens.append(model.student(clips[row].unsqueeze(0))[0])
            except (StjepaError, VideoError) as error:
                faults.append(str(error))
            task.advance()
    if not clips:
        return ClipSamples(left_out=(f"No clips are shown: {faults[0] if faults else 'the cache holds no latents yet'}",))
    left_out = (f"{len(faults)} of the {len(rows)} chosen clips are left out: {faults[0]}",) if faults else ()
    latents = torch.from_numpy(store.read(list(clips)))
    teacher, variance = feature_maps.principal_components(latents)
    components = [feature_maps.principal_components(torch.stack(tokens)) for tokens in features]
    students = [feature_maps.as_colours(feature_maps.align(found, teacher)) for found, _ in components]
    sample = torch.from_numpy(store.read(_spread(store.usable_rows(), NUM_SAMPLE_ROWS, seed)))
    answer = feature_maps.mean_answer(sample)
    captions, colours = _captions(store, candidates.data_root), feature_maps.as_colours(teacher)
    shown = tuple(
        ClipSample(
            name=store.record(row).name,
            caption=captions.get(store.record(row).id, ""),
            frames=clip,
            teacher=colours[i],
            students=tuple(student[i] for student in students),
            predictions=tuple(_prediction(model, clip, latents[i], seed * 1_000_003 + row) for model in models),
            constant=_cosine(latents[i], answer),
            own_mean=_cosine(latents[i], feature_maps.mean_answer(latents[i])),
        )
        for i, (row, clip) in enumerate(clips.items())
    )
    constant = _mean([_cosine(row, answer) for row in sample])
    return ClipSamples(shown, left_out, candidates.held_out, variance, tuple(part for _, part in components), constant)


def _prediction(model: TrainedModel, clip: Tensor, latents: Tensor, seed: int) -> Prediction | None:
    """Predict every token of a clip (T, 3, S, S) once while it is hidden."""
    if model.predict is None:
        return None
    mask = feature_maps.covering_masks(model.student.grid, model.mask_ratio, torch.Generator().manual_seed(seed))
    predicted = model.predict(clip.expand(len(mask.visible), *clip.shape), mask)[..., : latents.shape[-1]]  # the first cache comes first
    hidden = torch.zeros(len(latents), dtype=torch.bool).index_fill_(0, mask.predict[0], True)
    return Prediction(feature_maps.token_cosines(predicted, latents, mask), hidden)


def _cosine(latents: Tensor, answer: Tensor) -> float:
    return float(feature_maps.constant_cosines(latents, answer).mean())


def _pixels(store: LatentStore, row: int, data_root: Location) -> Tensor:
    """Return the pixels that the teacher saw, uint8 (T, 3, S, S).

    Raises:
        StjepaError: They are no longer available.
        VideoError: The video cannot be decoded.
    """
    if store.header.frames:
        return store.read_frames([row], threads=1)[0]
    ref = store.ref(row, data_root)
    clip = decode(ref)
    if checksum(clip.numpy()) != store.record(row).pixels_crc:
        raise StjepaError(f"clip {store.record(row).name} no longer has the pixels that the teacher saw", got=ref.path)
    return clip


def _captions(store: LatentStore, data_root: Location) -> Mapping[str, str]:
    """Return the class of each clip in words, by its id; empty if the data set or its list is not at hand."""
    try:
        dataset = plugins.load("data.datasets", store.header.dataset)(data_root)
        items = dataset.videos(store.header.split)
    except (StjepaError, OSError):
        return {}
    return {item.id: dataset.classes[item.label] for item in items if item.label is not None}


def _spread(rows: Sequence[int], count: int, seed: int) -> list[int]:
    """Return at most `count` rows, a random one from each of as many equal stretches.

    Even steps would meet a single class in lists whose classes repeat in turn.
    """
    count, rng = min(count, len(rows)), random.Random(seed)
    return [rows[rng.randrange(i * len(rows) // count, (i + 1) * len(rows) // count)] for i in range(count)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
