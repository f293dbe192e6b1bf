"""Linear probe: multinomial logistic regression on standardised frozen features.

Its L2 strength is chosen on train videos alone, held out by whole groups, and the probe is then fitted again on all of
them. The loss is mean cross-entropy + strength / 2 * |W|^2 with free biases: scikit-learn's C is 1 / (strength * R).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.heads import Head
from stjepa_cli.probes.base import Features, Probe, ProbeResult, group_splits, top_k_share

STRENGTHS = (1.0, 0.1, 0.01, 1e-3, 1e-4)
UNCHOSEN_STRENGTH = 0.01
MAX_STEPS = 200
SWEEP_TOLERANCE = 1e-4  # largest entry of the gradient; enough to rank the strengths
FINAL_TOLERANCE = 1e-5


class LinearProbe(Probe):
    """One linear layer; the features stay as they are."""

    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        chosen = choose_strength(train, seed)
        head = fit(train, num_classes, chosen["strength"], FINAL_TOLERANCE)
        logits = head.logits(test.values)
        figures = {f"top{k}": top_k_share(logits, test.labels, k) for k in (1, 5)}
        return ProbeResult(figures, logits.softmax(dim=1), chosen, head)


def choose_strength(train: Features, seed: int) -> dict[str, float]:
    """The strength with the best accuracy on held-out groups of train; the strongest of equal ones.

    Returns:
        `strength`, and on what it was chosen: `folds` held out (0: there is one group, so the default was taken),
        `held_out_groups`, `held_out_videos`, and `held_out_top1` of the chosen strength.
    """
    hits, groups, num_videos, num_folds = [0] * len(STRENGTHS), set[str](), 0, 0
    for fit_rows, held_out_rows in group_splits(train, seed):
        held_out, problem, start = train.rows(held_out_rows), Problem.of(train.rows(fit_rows)), None
        for i, strength in enumerate(STRENGTHS):  # from the last one's weights: the next is never far away
            start = problem.solve(strength, SWEEP_TOLERANCE, start)
            best = problem.classes[problem.logits(start, held_out.values).argmax(dim=1)]
            hits[i] += int((best == held_out.labels).sum())
        groups |= set(held_out.groups)
        num_videos += len(held_out)
        num_folds += 1
    if not num_folds:
        return {"strength": UNCHOSEN_STRENGTH, "folds": 0.0}
    chosen = hits.index(max(hits))  # the first of equal ones, and the strengths fall
    return {
        "strength": STRENGTHS[chosen],
        "folds": float(num_folds),
        "held_out_groups": float(len(groups)),
        "held_out_videos": float(num_videos),
        "held_out_top1": hits[chosen] / num_videos,
    }


def fit(train: Features, num_classes: int, strength: float, tolerance: float) -> Head:
    """Fit on all of `train`.

    Args:
        train: R rows.
        num_classes: C.
        strength: of the L2 penalty.
        tolerance: stop when no entry of the gradient is larger.

    Returns:
        a linear head; classes that train does not have are never its answer.
    """
    problem = Problem.of(train)
    weights = problem.solve(strength, tolerance)
    tensors = {"weight": weights[:, :-1] @ problem.axes.T, "bias": weights[:, -1].clone()}
    return Head("linear", tensors, problem.mean, problem.std, problem.classes, num_classes)


def standardisation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, float32 (F,); 1 instead of the deviation where a column is constant."""
    exact = values.double()
    mean, std = exact.mean(dim=0), exact.std(dim=0, correction=0)
    constant = std <= 1e-6 * mean.abs()  # what float32 cannot tell from a constant is noise
    return mean.float(), std.masked_fill(constant, 1.0).float()


@dataclass(frozen=True)
class Problem:
    """Standardised features on their principal axes, where the loss is easy to descend; turning them changes no optimum.

    Attributes:
        x: float32 (R, F), standardised and turned.
        targets: int64 (R,), places in `classes`.
        classes: int64 (C,), those that are there.
        spread: float32 (F,), variance along each axis.
        mean, std: float32 (F,), of the columns as they came.
        axes: float32 (F, F), an axis a column.
    """

    x: Tensor
    targets: Tensor
    classes: Tensor
    spread: Tensor
    mean: Tensor
    std: Tensor
    axes: Tensor

    @classmethod
    def of(cls, train: Features) -> Problem:
        mean, std = standardisation(train.values)
        classes, targets = torch.unique(train.labels, return_inverse=True)
        x = (train.values - mean) / std
        spread, axes = torch.linalg.eigh(x.T @ x / len(x))
        return cls(x @ axes, targets, classes, spread.clamp(min=0), mean, std, axes)

    def logits(self, weights: Tensor, values: Tensor) -> Tensor:
        """float32 (Q, C) of features as they come (Q, F)."""
        return torch.addmm(weights[:, -1], (values - self.mean) / self.std @ self.axes, weights[:, :-1].T)

    def solve(self, strength: float, tolerance: float, start: Tensor | None = None) -> Tensor:
        """Minimise mean cross-entropy + strength / 2 * |W|^2 by L-BFGS on all rows at once.

        Each axis is scaled by what its curvature is about, (variance / C + strength)^-1/2: L-BFGS then takes a fifth of the
        steps where features are correlated, as frozen ones are.

        Args:
            strength: of the penalty; biases are free.
            tolerance: largest entry of the gradient, along the scaled axes, at the end.
            start: weights to begin with; zeros if None.

        Returns:
            float32 (C, F + 1), the biases in the last column, along the axes.
        """
        scale = torch.cat([(self.spread / len(self.classes) + strength).rsqrt(), self.spread.new_ones(1)])
        penalty = strength * scale.square().index_fill(0, torch.tensor([len(scale) - 1], device=scale.device), 0.0)
        x, wanted = self.x * scale[:-1], F.one_hot(self.targets, len(self.classes)).float()
        weights = x.new_zeros(len(self.classes), len(scale)) if start is None else start / scale
        optimizer = torch.optim.LBFGS(
            [weights], max_iter=MAX_STEPS, tolerance_grad=tolerance, history_size=10, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:  # the gradient by hand: autograd takes 1.7 times as long here
            log_shares = torch.addmm(weights[:, -1], x, weights[:, :-1].T).log_softmax(dim=1)
            error = (log_shares.exp() - wanted) / len(x)
            weights.grad = torch.cat([error.T @ x, error.sum(dim=0)[:, None]], dim=1) + penalty * weights
            return (penalty * weights.square()).sum() / 2 - log_shares.gather(1, self.targets[:, None]).mean()

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        return weights * scale


plugin = LinearProbe
