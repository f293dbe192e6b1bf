"""What follows from a log: an answer that was taken back leaves no trace."""

from __future__ import annotations

import random

import pytest

from stjepa_cli.judgements.events import Event
from stjepa_cli.judgements.triplets import Triplet, judgements, log_digest, position_bias, repeat_consistency, standing, triplets
from tests.judgements.answers import answer, undo


def test_undo_takes_back_the_latest_answers_of_its_session_skips_too() -> None:
    skip = answer(2, verdict="skip", selected=())
    other = answer(3, session_id="t")
    events = [answer(1), skip, other, undo(4), undo(5), answer(6)]
    assert judgements(events) == [other, answer(6)]
    assert standing(events[:3]) == [answer(1), skip, other]
    assert judgements([undo(1), answer(2)]) == [answer(2)]


def test_undo_can_name_what_it_takes_back_once() -> None:
    assert judgements([answer(1), answer(2), undo(3, of=("e001",)), undo(4, of=("e001",))]) == [answer(2)]
    assert judgements([answer(1), undo(2, of=("e001",), session="t")]) == [answer(1)]


@pytest.mark.parametrize("seed", range(5))
def test_a_log_replayed_with_undos_equals_a_log_without_the_undone_answers(seed: int) -> None:
    lottery = random.Random(seed)
    events: list[Event] = []
    kept: list[Event] = []
    for number in range(60):
        if kept and lottery.random() < 0.3:
            events.append(undo(number))
            kept.pop()
        else:
            events.append(answer(number, selected=(lottery.choice("bcd"),)))
            kept.append(events[-1])
    assert judgements(events) == kept
    assert log_digest(judgements(events)) == log_digest(kept)
    assert log_digest(kept) != log_digest(kept[1:])


def test_triplets_follow_from_choices_alone() -> None:
    two = answer(2, selected=("b", "c"))
    turned = answer(3, rejected=("d",))
    none = answer(4, verdict="none", selected=())
    all_chosen = answer(5, selected=("b", "c", "d"))
    assert list(triplets([answer(1), two, turned, none, all_chosen])) == [
        Triplet("a", "b", ("c", "d")),
        Triplet("a", "b", ("d",)),
        Triplet("a", "c", ("d",)),
        Triplet("a", "b", ("d",)),
    ]


def test_consistency_compares_answers_to_the_same_question_in_any_order() -> None:
    same = answer(2, candidates=("d", "b", "c"))
    other = answer(3, selected=("c",))
    assert repeat_consistency([answer(1), same, other, answer(4, judge="bob")]) == (0.5, 2)
    assert repeat_consistency([answer(1), answer(2, anchor="z")]) == (None, 0)


def test_position_bias_is_none_without_places_zero_if_even_and_large_if_always_the_same() -> None:
    even = [answer(n, positions=((n) % 3, (n + 1) % 3, (n + 2) % 3)) for n in range(3)]
    assert position_bias(even) == pytest.approx(0)
    assert position_bias([answer(n) for n in range(9)]) == pytest.approx(2 / 3)
    assert position_bias([answer(1, positions=())]) is None
