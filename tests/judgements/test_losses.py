"""Every loss equals a loop over questions, candidates and items."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.judgements.losses import LOSSES
from stjepa_cli.judgements.questions import Questions, questions_of
from tests.judgements.answers import answer

Loop = Callable[[Tensor, Questions, float], float]


def made(seed: int) -> tuple[Tensor, Questions]:
    """Unit vectors of 12 items, and 5 questions with one or two chosen; two of them have the same anchor."""
    generator = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(12, 6, generator=generator, dtype=torch.float64), dim=-1)
    names = [str(i) for i in range(12)]
    events = []
    for number in range(5):
        order = torch.randperm(12, generator=generator).tolist()
        anchor = 0 if number < 2 else order[0]
        shown = [str(each) for each in order if each != anchor][: 3 + number % 3]
        events.append(answer(number, anchor=str(anchor), candidates=tuple(shown), selected=tuple(shown[: 1 + number % 2]), positions=()))
    return vectors, questions_of(events, {name: i for i, name in enumerate(names)})


def parts(questions: Questions, i: int) -> tuple[int, list[int], list[int]]:
    chosen = questions.candidates[i][questions.selected[i]].tolist()
    others = questions.candidates[i][questions.rejected[i]].tolist()
    return int(questions.anchors[i]), chosen, others


def cosine(vectors: Tensor, a: int, b: int) -> float:
    return float(vectors[a] @ vectors[b])


def softmax_loss(first: float, others: list[float]) -> float:
    return -math.log(math.exp(first) / (math.exp(first) + sum(map(math.exp, others))))


def listwise(vectors: Tensor, questions: Questions, temperature: float) -> float:
    losses = []
    for i in range(len(questions)):
        anchor, chosen, others = parts(questions, i)
        against = [cosine(vectors, anchor, other) / temperature for other in others]
        terms = [softmax_loss(cosine(vectors, anchor, each) / temperature, against) for each in chosen]
        losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses)


def pairwise(term: Callable[[float], float], vectors: Tensor, questions: Questions) -> float:
    losses = []
    for i in range(len(questions)):
        anchor, chosen, others = parts(questions, i)
        terms = [term(cosine(vectors, anchor, other) - cosine(vectors, anchor, each)) for each in chosen for other in others]
        losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses)


def logistic(vectors: Tensor, questions: Questions, temperature: float) -> float:
    return pairwise(lambda gap: math.log(1 + math.exp(gap / temperature)), vectors, questions)


def triplet(vectors: Tensor, questions: Questions, temperature: float) -> float:
    return pairwise(lambda gap: max(0.0, gap + temperature), vectors, questions)


def infonce(vectors: Tensor, questions: Questions, temperature: float) -> float:
    losses = []
    for i in range(len(questions)):
        anchor, chosen, others = parts(questions, i)
        mine = {each for j in range(len(questions)) if parts(questions, j)[0] == anchor for each in parts(questions, j)[1]}
        strangers = {each for j in range(len(questions)) if parts(questions, j)[0] != anchor for each in parts(questions, j)[1]}
        against = [cosine(vectors, anchor, each) / temperature for each in ((strangers - mine) | set(others)) - {anchor}]
        terms = [softmax_loss(cosine(vectors, anchor, each) / temperature, against) for each in chosen]
        losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses)


def supcon(vectors: Tensor, questions: Questions, temperature: float) -> float:
    items, positives = set(), set()
    for i in range(len(questions)):
        anchor, chosen, others = parts(questions, i)
        items |= {anchor, *chosen, *others}
        positives |= {pair for each in chosen for pair in ((anchor, each), (each, anchor))}
    losses = []
    for i in items:
        mine = [b for a, b in positives if a == i]
        if mine:
            total = math.log(sum(math.exp(cosine(vectors, i, other) / temperature) for other in items - {i}))
            losses.append(-sum(cosine(vectors, i, each) / temperature - total for each in mine) / len(mine))
    return sum(losses) / len(losses)


LOOPS: dict[str, Loop] = {"listwise": listwise, "logistic": logistic, "triplet": triplet, "infonce": infonce, "supcon": supcon}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_equals_a_loop(name: str, seed: int) -> None:
    vectors, questions = made(seed)
    assert len(questions) == 5
    assert float(LOSSES[name](vectors, questions, 0.3)) == pytest.approx(LOOPS[name](vectors, questions, 0.3), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_has_finite_gradients_and_falls_when_the_chosen_comes_nearer(name: str) -> None:
    vectors, questions = made(7)
    vectors.requires_grad_()
    before = LOSSES[name](vectors, questions, 0.3)
    (gradient,) = torch.autograd.grad(before, vectors)
    assert gradient.isfinite().all()
    with torch.no_grad():
        after = LOSSES[name](F.normalize(vectors - 0.05 * gradient, dim=-1), questions, 0.3)
    assert after < before


def test_questions_lose_items_that_are_not_there_and_no_item_is_on_both_sides() -> None:
    numbers = {name: i for i, name in enumerate("abcdef")}
    events = [
        answer(1, candidates=("b", "c", "d"), selected=("b",), positions=()),
        answer(2, anchor="e", candidates=("f", "c"), selected=("f",), positions=()),
        answer(3, anchor="z", positions=()),
        answer(4, verdict="none", selected=()),
        answer(5, candidates=("b", "y"), selected=("b",), positions=()),
    ]
    questions = questions_of(events, numbers)
    assert questions.anchors.tolist() == [0, 4]
    side = torch.tensor([True, True, True, False, False, False])
    kept, which = questions.among(side)
    assert (which.tolist(), kept.rejected.tolist()) == ([0], [[False, True, False]])
    assert len(questions.among(~side)[0]) == 0
    assert len(questions_of([], numbers)) == 0
