"""Figures about a head: its agreement with the judge, and how far a judge can be agreed with."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.judgements.events import Event
from stjepa_cli.judgements.fitting import Fitted
from stjepa_cli.judgements.triplets import position_bias, repeat_consistency, triplets

NEAREST = 10
MOST_COMPARED = 2000
_RESAMPLES = 2000


def interval(differences: Tensor, seed: int = 0) -> list[float] | None:
    """Return the 95 % interval of a mean by resampling judgements, None for none.

    Args:
        differences: A value per judgement, (H,).
        seed: Seed of the resampling.
    """
    if not len(differences):
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(differences), (_RESAMPLES, len(differences)), generator=generator)
    bounds = torch.quantile(differences[drawn].mean(1), torch.tensor([0.025, 0.975], dtype=differences.dtype))
    return [round(bound, 6) for bound in bounds.tolist()]


def overlap(first: Tensor, second: Tensor, seed: int = 0) -> float | None:
    """Return the share of the 10 nearest neighbours that two spaces have in common, over at most 2,000 items; None for a single item.

    Args:
        first: Vectors in one space, (N, any).
        second: Vectors of the same items in the other, (N, any).
        seed: Seed of the choice of items.
    """
    chosen = torch.randperm(len(first), generator=torch.Generator().manual_seed(seed))[:MOST_COMPARED]
    top = min(NEAREST, len(chosen) - 1)
    if top < 1:
        return None
    lists = []
    for space in (first, second):
        unit = F.normalize(space[chosen], dim=-1)
        lists.append((unit @ unit.T).fill_diagonal_(-2).topk(top).indices)
    return _rounded(float((lists[0][:, :, None] == lists[1][:, None, :]).sum() / lists[0].numel()))


def figures(answers: Sequence[Event], fitted: Fitted, others: dict[str, Any] | None, overlap_at_10: float | None) -> dict[str, Any]:
    """Return the figures of a report as JSON-able values; those that cannot be known are None.

    Args:
        answers: The judgements of the mode.
        fitted: What was learned.
        others: Agreement on another mode of the same log, or None.
        overlap_at_10: Overlap of the neighbour lists of raw vectors and head.
    """
    held = fitted.held_out
    raw, head = (_rounded(float(part.mean())) if len(part) else None for part in (held.raw, held.head))
    consistency, repeats = repeat_consistency(answers)
    times = [event.response_ms for event in answers if event.response_ms is not None]
    none = sum(event.verdict == "none" for event in answers)
    return {
        "judgements": len(answers),
        "triplets": sum(1 for _ in triplets(answers)),
        "judges": len({event.judge for event in answers}),
        "items": len({item for event in answers for item in (event.anchor, *event.candidates)}),
        "agreement": {"raw": raw, "head": head, "interval": interval(held.head - held.raw), "n": len(held.raw)},
        "ceiling": {"repeat_consistency": _rounded(consistency), "n": repeats},
        "agreement_over_ceiling": _rounded(head / consistency) if head is not None and consistency else None,
        "position_bias": _rounded(position_bias(answers)),
        "none_rate": _rounded(none / len(answers)) if answers else None,
        "median_response_ms": statistics.median(times) if times else None,
        "overlap_at_10": overlap_at_10,
        "gain_last_3_rounds": None,
        "converged": None,
        "other_task": others,
        "lambda": fitted.penalty,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
