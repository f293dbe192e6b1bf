"""Splits of train for choosing settings: by groups, so that videos from one source are never on both sides."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from stjepa_cli.encoders.features import Features

NUM_FOLDS = 5


def group_splits(train: Features, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs of rows (to fit on, to choose on), int64 in the order of ids, that share no group.

    If every class has a group in every fold, there is one pair with a fifth of the groups held out. Otherwise each fold is held out
    in turn. There is no pair if train has a single group.
    """
    order = train.by_id()
    fold_of = assign_folds(train, seed)
    num_folds = max(fold_of.values()) + 1
    folds = torch.tensor([fold_of[train.groups[row]] for row in order.tolist()])
    labels = train.labels.cpu()[order]
    seen = {(label, fold) for label, fold in zip(labels.tolist(), folds.tolist(), strict=True)}
    enough = num_folds == NUM_FOLDS and len(seen) == NUM_FOLDS * len(torch.unique(labels))
    for fold in range(1 if enough else num_folds) if num_folds > 1 else ():
        yield order[folds != fold], order[folds == fold]


def assign_folds(train: Features, seed: int) -> dict[str, int]:
    """Return the fold of each group, 0 to at most 4, such that each class is spread over the folds."""
    groups_of: dict[int, set[str]] = {}
    for label, group in zip(train.labels.tolist(), train.groups, strict=True):
        groups_of.setdefault(label, set()).add(group)
    num_folds = min(NUM_FOLDS, len(set(train.groups)))
    rng, fold_of, sizes = random.Random(seed), dict[str, int](), Counter[int]()
    for label in sorted(groups_of):
        unassigned = sorted(groups_of[label] - set(fold_of))
        rng.shuffle(unassigned)
        taken = Counter(fold_of[group] for group in groups_of[label] if group in fold_of)
        for group in unassigned:
            fold = min(range(num_folds), key=lambda i: (taken[i], sizes[i], i))
            fold_of[group] = fold
            taken[fold] += 1
            sizes[fold] += 1
    return fold_of
