"""Fit a head to questions, and choose how far it may go from its start on items that it has not seen."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.judgements.heads import Head
from stjepa_cli.judgements.losses import LOSSES, listwise_terms, similarities
from stjepa_cli.judgements.questions import Questions

PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0)
"""Strengths of the penalty on the distance from the start, as the precision of a normal prior: its weight is divided by the questions."""

NUM_SPLITS = 4
NUM_CHOOSING = 2
"""Splits on which all penalties are tried; the others try the best one only."""

HELD_OUT = 0.4
SURE = 2.5
"""Number of standard errors by which a head must beat the raw vectors on held-out items."""

FEWEST = 20
"""Held-out questions below which nothing is learned."""

_ITERATIONS_ON_THE_WAY, _ITERATIONS = 8, 20


@dataclass(frozen=True)
class Items:
    """The vectors of some rows.

    Attributes:
        vectors: float32 (N, D), or (N, T, D) padded with zeros.
        mask: For tokens: bool (N, T), True for tokens that are there; else None.
    """

    vectors: Tensor
    mask: Tensor | None = None

    def means(self) -> Tensor:
        """Return one vector per row, (N, D): the vector, or the mean of the tokens."""
        if self.mask is None:
            return self.vectors
        return self.vectors.sum(1) / self.mask.sum(1, keepdim=True)


@dataclass(frozen=True)
class HeldOut:
    """Answers of raw vectors and of a head to questions about items that the head has not seen.

    Attributes:
        questions: Numbers of the questions, int64 (H,).
        raw: Share of splits in which the raw vectors choose what the judge chose, float64 (H,).
        head: The same for the head.
        gain: By how much the head lowers the listwise loss, float64 (H,).
    """

    questions: Tensor
    raw: Tensor
    head: Tensor
    gain: Tensor

    def is_sure(self) -> bool:
        """Return True if the gain is not luck."""
        if len(self.gain) < FEWEST:
            return False
        return bool(self.gain.mean() > SURE * self.gain.std() / len(self.gain) ** 0.5)


def spread(vectors: Tensor, questions: Questions) -> float:
    """Return the temperature of the losses: the spread of the raw cosines among the candidates of a question, at least 0.001.

    Args:
        vectors: Raw vectors (N, D).
        questions: Questions about them.
    """
    shown = questions.selected | questions.rejected
    cosines = similarities(F.normalize(vectors, dim=-1), questions)
    means = cosines.masked_fill(~shown, 0).sum(1, keepdim=True) / shown.sum(1, keepdim=True)
    squares = (cosines - means).square()[shown]
    return round(max(0.001, float(squares.mean().sqrt())) if len(squares) else 1.0, 6)


def fit(head: Head, items: Items, questions: Questions, loss: str, penalty: float, temperature: float, *, iterations: int = 30) -> None:
    """Fit a head from where it stands, with L-BFGS over all questions at once.

    Args:
        head: Head that is changed.
        items: Vectors of the items.
        questions: Questions about them, at least one.
        loss: Name of a loss.
        penalty: Weight of the squared distance from the start, divided by the number of questions.
        temperature: Temperature of the loss.
        iterations: Greatest number of steps.
    """
    used = torch.unique(torch.cat([questions.anchors, questions.candidates.flatten()]))
    where = torch.zeros(len(items.vectors), dtype=torch.int64)
    where[used] = torch.arange(len(used))
    mine = Questions(where[questions.anchors], where[questions.candidates], questions.selected, questions.rejected)
    vectors, mask = items.vectors[used], None if items.mask is None else items.mask[used]
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = LOSSES[loss](F.normalize(head(vectors, mask), dim=-1), mine, temperature) + penalty / len(mine) * head.distance()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def splits(num_items: int, seed: int) -> Iterator[Tensor]:
    """Yield which items are held out, bool (N,); the others are for training. A function of the seed alone.

    Args:
        num_items: Number of items N.
        seed: Seed of the lottery.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(NUM_SPLITS):
        yield torch.rand(num_items, generator=generator) < HELD_OUT


def choose_penalty(
    head: Head, items: Items, questions: Questions, loss: str, temperature: float, *, seed: int, progress: Progress = SILENT
) -> tuple[float, HeldOut]:
    """Choose the strength of the penalty by the listwise loss of questions about held-out items.

    A split divides the items; each side keeps what is left of the questions among its own items, so that no item is on both sides.

    Args:
        head: The head at its start; it stays as it is.
        items: Vectors of the items.
        questions: Questions about them.
        loss: Name of the loss that is trained.
        temperature: Temperature of the losses.
        seed: Seed of the splits.
        progress: Receives progress.

    Returns:
        The penalty with the largest gain, and its answers on held-out items.
    """
    sums = torch.zeros(len(PENALTIES), 3, len(questions), dtype=torch.float64)
    seen = torch.zeros(len(questions), dtype=torch.float64)
    best = 0
    total = NUM_CHOOSING * len(PENALTIES) + NUM_SPLITS - NUM_CHOOSING
    with progress.task("choosing the penalty", total=total, unit="fits") as task:
        for number, held_out in enumerate(splits(len(items.vectors), seed)):
            tried = range(len(PENALTIES)) if number < NUM_CHOOSING else (best,)
            (learn, _), (ask, numbers) = questions.among(~held_out), questions.among(held_out)
            if len(learn) and len(ask):
                seen[numbers] += 1
                results = _tried(head, items, learn, ask, loss, temperature, [PENALTIES[i] for i in tried])
                for i, result in zip(tried, results, strict=True):
                    sums[i, :, numbers] += result
            task.advance(len(tried))
            if number < NUM_CHOOSING:
                best = int(sums[:, 2].sum(1).argmax())
    asked = seen.nonzero().flatten()
    raw, found, gain = sums[best][:, asked] / seen[asked]
    return PENALTIES[best], HeldOut(asked, raw, found, gain)


def _tried(head: Head, items: Items, learn: Questions, ask: Questions, loss: str, temperature: float, penalties: Sequence[float]) -> Tensor:
    """Return hits of the raw vectors, hits of a head and its gain in loss on questions `ask` for each penalty, (P, 3, Q)."""
    raw_hits, raw_losses = answers(head, items, ask, temperature)
    fitted, found = copy.deepcopy(head), []
    for penalty in penalties:  # each goes on from where a stronger one stopped
        fit(fitted, items, learn, loss, penalty, temperature, iterations=_ITERATIONS_ON_THE_WAY if len(penalties) > 1 else _ITERATIONS)
        hits, losses = answers(fitted, items, ask, temperature)
        found.append(torch.stack([raw_hits, hits, raw_losses - losses]))
    return torch.stack(found)


@torch.no_grad()
def answers(head: Head, items: Items, questions: Questions, temperature: float) -> tuple[Tensor, Tensor]:
    """Answer questions by the cosines in the space of a head.

    Args:
        head: The head.
        items: Vectors of the items.
        questions: Questions about them.
        temperature: Temperature of the loss.

    Returns:
        Whether the nearest candidate is one that the judge selected, float64 (Q,), and the listwise loss, float64 (Q,).
    """
    cosines = similarities(F.normalize(head(items.vectors, items.mask), dim=-1), questions)
    shown = questions.selected | questions.rejected
    nearest = cosines.masked_fill(~shown, -torch.inf).argmax(1, keepdim=True)
    hits = questions.selected.gather(1, nearest).flatten()
    return hits.double(), listwise_terms(cosines / temperature, questions).double()


@dataclass(frozen=True)
class Fitted:
    """A fitted head.

    Attributes:
        head: The head; at its start if nothing was learned.
        penalty: Strength of the penalty, or None if nothing was learned.
        temperature: Temperature of the losses.
        held_out: Answers on held-out items.
    """

    head: Head
    penalty: float | None
    temperature: float
    held_out: HeldOut


def learn(start: Head, items: Items, questions: Questions, loss: str, *, seed: int, progress: Progress = SILENT) -> Fitted:
    """Learn a head, or keep the raw vectors where it would not surely be better on items that it has not seen.

    Args:
        start: The head at its start; it stays as it is.
        items: Vectors of the items.
        questions: Questions about them.
        loss: Name of a loss.
        seed: Seed of the splits.
        progress: Receives progress.
    """
    temperature = spread(items.means(), questions)
    penalty, held_out = choose_penalty(start, items, questions, loss, temperature, seed=seed, progress=progress)
    if not held_out.is_sure():
        return Fitted(start, None, temperature, HeldOut(held_out.questions, held_out.raw, held_out.raw, 0 * held_out.gain))
    head = copy.deepcopy(start)
    fit(head, items, questions, loss, penalty, temperature, iterations=_ITERATIONS)
    return Fitted(head, penalty, temperature, held_out)
