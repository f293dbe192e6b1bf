"""Losses of unit vectors under judgements. Each is a mean over questions, so that a question with many candidates counts once.

All take the unit vectors of the items, float (N, D), the questions about them, and a temperature in units of the cosine, and return a
scalar. `s` is the cosine of an anchor and a candidate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.judgements.questions import Questions

Loss = Callable[[Tensor, Questions, float], Tensor]


def similarities(vectors: Tensor, questions: Questions) -> Tensor:
    """Return the cosine of each anchor with its candidates, (Q, M).

    Args:
        vectors: Unit vectors (N, D).
        questions: Questions about them.
    """
    return torch.einsum("qd,qmd->qm", vectors[questions.anchors], vectors[questions.candidates])


def listwise_terms(scores: Tensor, questions: Questions) -> Tensor:
    """Return the listwise loss of each question, (Q,).

    Args:
        scores: (Q, M), cosines divided by the temperature.
        questions: The questions.
    """
    against = torch.logsumexp(scores.masked_fill(~questions.rejected, -torch.inf), 1, keepdim=True)
    return _mean(F.softplus(against - scores), questions.selected)


def listwise(vectors: Tensor, questions: Questions, temperature: float) -> Tensor:
    """Softmax of a choice (McFadden 1974): -log(e^p / (e^p + sum of e^r over the rejected)), mean over the selected."""
    return listwise_terms(similarities(vectors, questions) / temperature, questions).mean()


def logistic(vectors: Tensor, questions: Questions, temperature: float) -> Tensor:
    """Bradley-Terry: log(1 + e^(r - p)), mean over pairs of a selected and a rejected candidate (arXiv 1206.6384)."""
    return _pairwise(F.softplus, similarities(vectors, questions) / temperature, questions)


def triplet(vectors: Tensor, questions: Questions, temperature: float) -> Tensor:
    """Hinge: max(0, r - p + margin), mean over pairs; the temperature is the margin (FaceNet, arXiv 1503.03832, with cosines)."""
    return _pairwise(lambda gap: F.relu(gap + temperature), similarities(vectors, questions), questions)


def infonce(vectors: Tensor, questions: Questions, temperature: float) -> Tensor:
    """Listwise loss against what was rejected and what was selected in questions about other anchors (arXiv 1807.03748)."""
    scores = vectors[questions.anchors] @ vectors.T / temperature
    anchors, which = torch.unique(questions.anchors, return_inverse=True)
    mine = _marks(which, questions.candidates, questions.selected, (len(anchors), len(vectors)))[which]
    others = mine.any(0) & ~mine
    rejected = _marks(torch.arange(len(questions)), questions.candidates, questions.rejected, (len(questions), len(vectors)))
    against = (rejected | others).scatter(1, questions.anchors[:, None], False)
    total = torch.logsumexp(scores.masked_fill(~against, -torch.inf), 1, keepdim=True)
    return _mean(F.softplus(total - scores.gather(1, questions.candidates)), questions.selected).mean()


def supcon(vectors: Tensor, questions: Questions, temperature: float) -> Tensor:
    """Supervised contrastive loss, L_out of arXiv 2004.11362: an anchor and what was selected for it are positives of each other.

    The batch is all items of the questions; the mean is over the items that have a positive.
    """
    anchors = questions.anchors[:, None].expand_as(questions.candidates)
    shown = questions.selected | questions.rejected
    items = torch.unique(torch.cat([questions.anchors, questions.candidates[shown]]))
    where = torch.zeros(len(vectors), dtype=torch.int64)
    where[items] = torch.arange(len(items))
    first, second = where[anchors[questions.selected]], where[questions.candidates[questions.selected]]
    positive = torch.zeros(len(items), len(items), dtype=torch.bool)
    positive[first, second] = positive[second, first] = True
    rows = positive.any(1).nonzero().flatten()
    scores = vectors[items[rows]] @ vectors[items].T / temperature
    itself = torch.zeros_like(scores, dtype=torch.bool).scatter(1, rows[:, None], True)
    logs = scores - torch.logsumexp(scores.masked_fill(itself, -torch.inf), 1, keepdim=True)
    return -_mean(logs, positive[rows]).mean()


LOSSES: dict[str, Loss] = {"listwise": listwise, "logistic": logistic, "triplet": triplet, "infonce": infonce, "supcon": supcon}


def _pairwise(term: Callable[[Tensor], Tensor], scores: Tensor, questions: Questions) -> Tensor:
    """Return the mean over questions of the mean of `term(rejected - selected)` over the pairs of a question."""
    gaps = scores[:, None, :] - scores[:, :, None]
    pairs = questions.selected[:, :, None] & questions.rejected[:, None, :]
    return _mean(term(gaps).flatten(1), pairs.flatten(1)).mean()


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Return the mean of each row over the places where `where` is True."""
    return values.masked_fill(~where, 0).sum(1) / where.sum(1)


def _marks(rows: Tensor, columns: Tensor, where: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a bool matrix that is True at (rows[i], columns[i, j]) where `where[i, j]`."""
    marks = torch.zeros(shape, dtype=torch.bool)
    marks[rows[:, None].expand_as(columns)[where], columns[where]] = True
    return marks
