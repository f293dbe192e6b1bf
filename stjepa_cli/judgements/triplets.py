"""Judgements that still hold, and the triplets that follow from them. Both are derived from the log, never stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stjepa_cli.core.types import digest
from stjepa_cli.judgements.events import Event


@dataclass(frozen=True)
class Triplet:
    """A comparison: the anchor is more like the positive than like any of the negatives.

    Attributes:
        anchor: Item that is compared with.
        positive: Item that is more like it.
        negatives: Items that are less like it, at least one.
    """

    anchor: str
    positive: str
    negatives: tuple[str, ...]


def standing(events: Iterable[Event]) -> list[Event]:
    """Return the answers that have not been taken back, choices, `none` and skips, in the order of their ids.

    The order of ids makes the result a function of the answers alone: whatever was undone leaves no trace, and neither does the order
    in which several judges' answers arrived.

    Args:
        events: Events in the order of their arrival.
    """
    found: dict[str, Event] = {}
    by_session: dict[str, list[str]] = defaultdict(list)
    for event in events:
        mine = by_session[event.session_id]
        if event.verdict != "undo":
            found[event.event_id] = event
            mine.append(event.event_id)
            continue
        for event_id in event.selected or mine[-1:]:
            if event_id in mine:
                mine.remove(event_id)
                del found[event_id]
    return [found[event_id] for event_id in sorted(found)]


def judgements(events: Iterable[Event]) -> list[Event]:
    """Return the choices and the `none`s that have not been taken back, in the order of their ids.

    Args:
        events: Events in the order of their arrival.
    """
    return [event for event in standing(events) if event.verdict != "skip"]


def turned_down(event: Event) -> tuple[str, ...]:
    """Return the candidates of a choice that were not chosen: those rejected if it names any, else all others."""
    return event.rejected or tuple(each for each in event.candidates if each not in event.selected)


def triplets(answers: Iterable[Event]) -> Iterator[Triplet]:
    """Yield a triplet for each selected candidate of a choice that turned others down."""
    for event in answers:
        negatives = turned_down(event)
        if event.verdict == "choice" and negatives:
            for positive in event.selected:
                yield Triplet(event.anchor, positive, negatives)


def log_digest(answers: Sequence[Event]) -> str:
    """Return the sha256 over judgements as 64 hex digits: of who chose what among what, not of times and clients."""
    return digest([[e.event_id, e.judge, e.mode, e.anchor, e.candidates, e.selected, e.rejected, e.verdict] for e in answers])


def repeat_consistency(answers: Sequence[Event]) -> tuple[float | None, int]:
    """Return how often judges agree with themselves: the ceiling for anything that learns from them.

    A question is asked twice if a judge sees an anchor with the same candidates again, in whatever order.

    Returns:
        The share of equal answers among pairs of consecutive answers to the same question, None without any; and the number of pairs.
    """
    asked: dict[tuple[object, ...], list[frozenset[str]]] = defaultdict(list)
    for event in sorted(answers, key=lambda each: each.shown_at):
        asked[event.judge, event.mode, event.anchor, frozenset(event.candidates)].append(frozenset(event.selected))
    same = [first == second for group in asked.values() for first, second in pairwise(group)]
    return (sum(same) / len(same) if same else None), len(same)


def position_bias(answers: Sequence[Event]) -> float | None:
    """Return how far the chosen places on the screen are from even, between 0 and 1; None if no place is known.

    That is the total variation distance between the shares of the places among the choices and those expected from the places shown.
    """
    chosen: dict[int, float] = defaultdict(float)
    expected: dict[int, float] = defaultdict(float)
    known = [event for event in answers if event.verdict == "choice" and event.positions]
    for event in known:
        places = dict(zip(event.candidates, event.positions, strict=True))
        for each in event.selected:
            chosen[places[each]] += 1 / len(event.selected) / len(known)
        for place in event.positions:
            expected[place] += 1 / len(event.positions) / len(known)
    return sum(abs(chosen[place] - expected[place]) for place in expected) / 2 if known else None
