"""Linear probe: multinomial logistic regression on standardised frozen features.

The L2 strength is chosen on held-out groups of train, and the probe is then fitted again on all of train. The loss is
mean cross-entropy + strength / 2 * |W|^2 without a penalty on biases, so scikit-learn's C is 1 / (strength * R).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stjepa_cli.encoders.features import Features
from stjepa_cli.encoders.heads import Head
from stjepa_cli.evaluation.probes._folds import group_splits
from stjepa_cli.evaluation.probes.base import Probe, ProbeResult, scored_by_clip

STRENGTHS = (1.0, 0.1, 0.01, 1e-3, 1e-4)
UNCHOSEN_STRENGTH = 0.01
MAX_STEPS = 200
SWEEP_TOLERANCE = 1e-4  # largest entry of the gradient: enough to rank the strengths
FINAL_TOLERANCE = 1e-5


class LinearProbe(Probe):
    """One linear layer, fitted on clips. Class probabilities are averaged over the clips of a test video."""

    gives_head = True

    def _fit_score(self, train: Features, test: Features, num_classes: int, seed: int) -> ProbeResult:
        num_fits = 1 + len(STRENGTHS) * len(list(group_splits(train, seed)))
        with self.runtime.progress.task("linear probe", total=num_fits, unit="fits") as task:
            chosen = choose_strength(train, seed, task.advance)
            head = fit(train.by_clip(), num_classes, chosen["strength"], FINAL_TOLERANCE)
            task.advance()
        return scored_by_clip(head.logits(test.by_clip().values), test, chosen, head)


def choose_strength(train: Features, seed: int, fitted: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Choose the strength with the best accuracy on held-out groups of train. Of equally good ones the strongest is taken.

    Args:
        train: R rows.
        seed: Seed of the groups that are held out.
        fitted: Called after each fit.

    Returns:
        `strength`, and what it was chosen on: `folds` (0 if there is one group, so that the default is taken), `held_out_groups`,
        `held_out_videos`, and `held_out_top1`, the accuracy of the chosen strength.
    """
    hits, groups, num_videos, num_folds = [0] * len(STRENGTHS), set[str](), 0, 0
    for fit_rows, held_out_rows in group_splits(train, seed):
        held_out, problem, start = train.rows(held_out_rows), Problem.of(train.rows(fit_rows).by_clip()), None
        for i, strength in enumerate(STRENGTHS):  # starting from the weights of the previous strength, which are close
            start = problem.solve(strength, SWEEP_TOLERANCE, start)
            scores = problem.logits(start, held_out.by_clip().values).softmax(dim=1)
            best = problem.classes[scores.view(len(held_out), -1, scores.shape[1]).mean(dim=1).argmax(dim=1)]
            hits[i] += int((best == held_out.labels).sum())
            fitted()
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
    """Fit a linear head on all of `train`. Classes that train lacks are never predicted.

    Args:
        train: R rows.
        num_classes: C.
        strength: Strength of the L2 penalty.
        tolerance: Stop when no entry of the gradient is larger than this.
    """
    problem = Problem.of(train)
    weights = problem.solve(strength, tolerance)
    tensors = {"weight": weights[:, :-1].contiguous(), "bias": weights[:, -1].clone()}
    return Head("linear", tensors, problem.mean, problem.std, problem.classes, num_classes)


def standardisation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each column, float32 (F,). A constant column has the deviation 1."""
    exact = values.double()
    mean, std = exact.mean(dim=0), exact.std(dim=0, correction=0)
    constant = std <= 1e-6 * mean.abs()  # smaller deviations are rounding errors of float32
    return mean.float(), std.masked_fill(constant, 1.0).float()


@dataclass(frozen=True)
class Problem:
    """Standardised features and targets of a logistic regression, prepared once for all strengths.

    Attributes:
        x: float32 (R, F), standardised features.
        targets: int64 (R,), indices into `classes`.
        classes: int64 (C',), the classes that train has.
        mean: float32 (F,), column means before standardisation.
        std: float32 (F,), column deviations before standardisation.
    """

    x: Tensor
    targets: Tensor
    classes: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, train: Features) -> Problem:
        """Prepare the features of a train set."""
        mean, std = standardisation(train.values)
        classes, targets = torch.unique(train.labels, return_inverse=True)
        return cls((train.values - mean) / std, targets, classes, mean, std)

    def logits(self, weights: Tensor, values: Tensor) -> Tensor:
        """Return logits float32 (Q, C') for features (Q, F) that are not standardised."""
        return torch.addmm(weights[:, -1], (values - self.mean) / self.std, weights[:, :-1].T)

    def solve(self, strength: float, tolerance: float, start: Tensor | None = None) -> Tensor:
        """Minimise mean cross-entropy + strength / 2 * |W|^2 with L-BFGS on all rows at once.

        Args:
            strength: Strength of the penalty, which biases are exempt from.
            tolerance: Largest entry of the gradient at the end.
            start: Initial weights, or None for zeros.

        Returns:
            Weights float32 (C', F + 1), with the biases in the last column.
        """
        shape = len(self.classes), self.x.shape[1] + 1
        weights = self.x.new_zeros(shape) if start is None else start.clone()
        optimizer = torch.optim.LBFGS(
            [weights], max_iter=MAX_STEPS, tolerance_grad=tolerance, history_size=10, line_search_fn="strong_wolfe"
        )
        truths, num_rows = self.targets[:, None], len(self.x)

        def loss() -> Tensor:  # the gradient is computed by hand and in place, because autograd takes 1.7 times as long
            log_probs = torch.addmm(weights[:, -1], self.x, weights[:, :-1].T).log_softmax(dim=1)
            cross_entropy = -log_probs.gather(1, truths).mean()
            error = log_probs.exp_()
            error.scatter_add_(1, truths, error.new_full((1, 1), -1.0).expand(num_rows, 1))
            gradient = (error.T @ self.x).div_(num_rows).add_(weights[:, :-1], alpha=strength)
            weights.grad = torch.cat([gradient, error.mean(dim=0)[:, None]], dim=1)
            return cross_entropy + strength / 2 * weights[:, :-1].square().sum()

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        return weights


plugin = LinearProbe
