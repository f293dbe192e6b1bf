"""Linear probe: multinomial logistic regression on standardised frozen features.

Its L2 strength is chosen on train videos alone, held out by whole groups, and the probe is then fitted again on all of
them. The loss is mean cross-entropy + strength / 2 * |W|^2 with free biases: scikit-learn's C is 1 / (strength * R).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from stjepa_cli.probes.base import Features, Probe, ProbeResult, top_k_share

STRENGTHS = (1.0, 0.1, 0.01, 1e-3, 1e-4)
UNCHOSEN_STRENGTH = 0.01
NUM_FOLDS = 5
MAX_STEPS = 200
SWEEP_TOLERANCE = 1e-4  # largest entry of the gradient; enough to rank the strengths
FINAL_TOLERANCE = 1e-5


class LinearProbe(Probe):
    """One linear layer; the features stay as they are."""

    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        chosen = choose_strength(train, seed)
        logits = fit_predict(train, test.values, num_classes, chosen["strength"], FINAL_TOLERANCE)
        figures = {f"top{k}": top_k_share(logits, test.labels, k) for k in (1, 5)}
        return ProbeResult(figures, logits.softmax(dim=1), chosen)


def choose_strength(train: Features, seed: int) -> dict[str, float]:
    """The strength with the best accuracy on held-out groups of train; the strongest of equal ones.

    Returns:
        `strength`, and on what it was chosen: `folds` held out (0: there is one group, so the default was taken),
        `held_out_groups`, `held_out_videos`, and `held_out_top1` of the chosen strength.
    """
    hits, groups, num_videos, num_folds = [0] * len(STRENGTHS), set[str](), 0, 0
    for fit, held_out in group_splits(train, seed):
        for i, strength in enumerate(STRENGTHS):
            logits = fit_predict(fit, held_out.values, int(train.labels.max()) + 1, strength, SWEEP_TOLERANCE)
            hits[i] += int((logits.argmax(dim=1) == held_out.labels).sum())
        groups |= set(held_out.groups)
        num_videos += len(held_out)
        num_folds += 1
    if not num_folds:
        return {"strength": UNCHOSEN_STRENGTH, "folds": 0.0}
    best = hits.index(max(hits))  # the first of equal ones, and the strengths fall
    return {
        "strength": STRENGTHS[best],
        "folds": float(num_folds),
        "held_out_groups": float(len(groups)),
        "held_out_videos": float(num_videos),
        "held_out_top1": hits[best] / num_videos,
    }


def group_splits(train: Features, seed: int) -> Iterator[tuple[Features, Features]]:
    """Pairs (to fit on, to choose on) that share no group.

    One pair, a fifth of the groups held out, where every class has a group in every fold; otherwise each fold is held out
    in its turn; none where there is a single group.
    """
    fold_of = deal_groups(train, seed)
    num_folds = max(fold_of.values()) + 1
    folds = torch.tensor([fold_of[group] for group in train.groups])
    seen = {(label, fold) for label, fold in zip(train.labels.tolist(), folds.tolist(), strict=True)}
    enough = num_folds == NUM_FOLDS and len(seen) == NUM_FOLDS * len(torch.unique(train.labels))
    for fold in range(1 if enough else num_folds) if num_folds > 1 else ():
        yield train.rows((folds != fold).nonzero()[:, 0]), train.rows((folds == fold).nonzero()[:, 0])


def deal_groups(train: Features, seed: int) -> dict[str, int]:
    """Each group's fold, 0 to at most 4: class by class, so that each class is spread over the folds."""
    groups_of: dict[int, set[str]] = {}
    for label, group in zip(train.labels.tolist(), train.groups, strict=True):
        groups_of.setdefault(label, set()).add(group)
    num_folds = min(NUM_FOLDS, len(set(train.groups)))
    draw, fold_of, sizes = random.Random(seed), dict[str, int](), Counter[int]()
    for label in sorted(groups_of):
        undealt = sorted(groups_of[label] - set(fold_of))
        draw.shuffle(undealt)
        taken = Counter(fold_of[group] for group in groups_of[label] if group in fold_of)
        for group in undealt:
            fold = min(range(num_folds), key=lambda i: (taken[i], sizes[i], i))
            fold_of[group] = fold
            taken[fold] += 1
            sizes[fold] += 1
    return fold_of


def fit_predict(train: Features, queries: Tensor, num_classes: int, strength: float, tolerance: float) -> Tensor:
    """Fit on all of `train` and answer.

    Args:
        train: R rows.
        queries: float32 (Q, F).
        num_classes: C.
        strength: of the L2 penalty.
        tolerance: stop when no entry of the gradient is larger.

    Returns:
        float32 (Q, C) logits; -inf for classes that train does not have.
    """
    mean, std = standardisation(train.values)
    classes, targets = torch.unique(train.labels, return_inverse=True)
    weights = fit_logistic((train.values - mean) / std, targets, len(classes), strength, tolerance)
    logits = torch.full((len(queries), num_classes), -torch.inf)
    logits[:, classes] = torch.addmm(weights[:, -1], (queries - mean) / std, weights[:, :-1].T)
    return logits


def standardisation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, float32 (F,); 1 instead of the deviation where a column is constant."""
    exact = values.double()
    mean, std = exact.mean(dim=0), exact.std(dim=0, correction=0)
    constant = std <= 1e-6 * mean.abs()  # what float32 cannot tell from a constant is noise
    return mean.float(), std.masked_fill(constant, 1.0).float()


def fit_logistic(x: Tensor, targets: Tensor, num_classes: int, strength: float, tolerance: float) -> Tensor:
    """Minimise mean cross-entropy + strength / 2 * |W|^2 by L-BFGS on all rows at once.

    Args:
        x: float32 (R, F), standardised.
        targets: int64 (R,), 0 to C - 1.
        num_classes: C.
        strength: of the penalty; biases are free.
        tolerance: largest entry of the gradient at the end.

    Returns:
        float32 (C, F + 1), the biases in the last column.
    """
    weights = torch.zeros(num_classes, x.shape[1] + 1)
    wanted = torch.zeros(len(x), num_classes).scatter_(1, targets[:, None], 1.0)
    optimizer = torch.optim.LBFGS([weights], max_iter=MAX_STEPS, tolerance_grad=tolerance, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:  # the gradient by hand: autograd takes 1.7 times as long here
        log_shares = torch.addmm(weights[:, -1], x, weights[:, :-1].T).log_softmax(dim=1)
        error = (log_shares.exp() - wanted) / len(x)
        weights.grad = torch.cat([error.T @ x + strength * weights[:, :-1], error.sum(dim=0)[:, None]], dim=1)
        penalty = strength / 2 * weights[:, :-1].square().sum()
        return penalty - log_shares.gather(1, targets[:, None]).mean()

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights


plugin = LinearProbe
