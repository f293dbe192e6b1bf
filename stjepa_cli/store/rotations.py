"""Rotations that spread variance evenly over channels: Hadamard matrices, and rotations for the widths that have none."""

from __future__ import annotations

import torch
from torch import Tensor


def equalising_rotation(variances: Tensor) -> Tensor:
    """Return an orthogonal matrix R such that R diag(variances) R^T has a constant diagonal.

    Where a Hadamard matrix can be constructed (Sylvester's doubling of Paley's first construction: 2^k, and 2^k (q + 1) for a
    prime q = 3 mod 4, so 96, 192, 384, 768, 1024, 1280 and 1408), R is that matrix over sqrt(D), as in PHI-S: every channel
    is then a mixture of all components with equal weights. The public code of PHI-S falls back to a random orthogonal matrix
    for other widths, which equalises variances only on average; here n - 1 plane rotations do it exactly and without chance:
    each one turns the largest and the smallest variance into the mean and the rest (Schur-Horn; Bendel and Mickey, 1978).

    Args:
        variances: Non-negative float64 (D,).

    Returns:
        float64 (D, D).
    """
    matrix = hadamard(len(variances))
    return _by_planes(variances) if matrix is None else matrix / len(variances) ** 0.5


def hadamard(size: int) -> Tensor | None:
    """Return a Hadamard matrix, float64 (size, size) of 1 and -1 with orthogonal rows, or None if none is constructed here."""
    order, doublings = size, 0
    while order > 1 and not (order % 4 == 0 and _is_prime(order - 1)):
        if order % 2:
            return None
        order, doublings = order // 2, doublings + 1
    matrix = torch.ones(1, 1, dtype=torch.float64) if order == 1 else _paley(order - 1)
    for _ in range(doublings):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def _paley(q: int) -> Tensor:
    """Return Paley's matrix of order q + 1, for a prime q = 3 mod 4."""
    squares = {i * i % q for i in range(1, q)}
    signs = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)], dtype=torch.float64)
    number = torch.arange(q)
    matrix = torch.ones(q + 1, q + 1, dtype=torch.float64)
    matrix[1:, 0] = -1
    matrix[1:, 1:] = signs[(number[:, None] - number[None]) % q] + torch.eye(q, dtype=torch.float64)
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, int(number**0.5) + 1))


def _by_planes(variances: Tensor) -> Tensor:
    """Equalise variances by one plane rotation after the other."""
    size, target = len(variances), float(variances.mean())
    matrix, covariance = torch.eye(size, dtype=torch.float64), torch.diag(variances.double())
    todo = set(range(size))
    while len(todo) > 1:
        high, low = max(todo, key=lambda i: float(covariance[i, i])), min(todo, key=lambda i: float(covariance[i, i]))
        a, b, c = float(covariance[high, high]), float(covariance[low, low]), float(covariance[high, low])
        if high == low or a - b <= 1e-15 * max(1.0, abs(target)):
            break
        # tan t with cos^2 t a + 2 sin t cos t c + sin^2 t b = target; both roots are real, because b <= target <= a
        tangent = _root(b - target, 2 * c, a - target)
        cosine = (1 + tangent * tangent) ** -0.5
        plane = torch.tensor([[cosine, tangent * cosine], [-tangent * cosine, cosine]], dtype=torch.float64)
        pair = [high, low]
        covariance[pair] = plane @ covariance[pair]
        covariance[:, pair] = covariance[:, pair] @ plane.T
        matrix[pair] = plane @ matrix[pair]
        todo.remove(high)
    return matrix


def _root(square: float, linear: float, constant: float) -> float:
    """Return the smaller root in magnitude of square t^2 + linear t + constant = 0, which has real roots."""
    discriminant = max(0.0, linear * linear - 4 * square * constant) ** 0.5
    far = -(linear + discriminant) / 2 if linear >= 0 else -(linear - discriminant) / 2
    return constant / far if far else 0.0
