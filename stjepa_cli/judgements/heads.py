"""Small heads on frozen vectors. Each starts as what was there before, and can say how far it is from that start."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stjepa_cli.core.errors import ConfigError


class Head(nn.Module, ABC):
    """A map from the frozen vectors of an item to a vector of another space.

    Attributes:
        kind: Name of the head.
        of_tokens: Whether it reads several vectors per item.
    """

    kind: str
    of_tokens = False

    @abstractmethod
    def forward(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the vectors of items in the space of the head, (N, dim).

        Args:
            vectors: (N, D), or (N, T, D) for a head of tokens.
            mask: For a head of tokens: bool (N, T), True for tokens that are there.
        """

    @abstractmethod
    def distance(self) -> Tensor:
        """Return the squared distance of the parameters from those at the start, a scalar."""


class LinearHead(Head):
    """A matrix. It starts as the identity, or as a projection to fewer channels.

    Args:
        start: Matrix at the start, (dim, D).
    """

    kind = "linear"

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start, persistent=False)
        self.weight = nn.Parameter(start.clone())

    def forward(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        return vectors @ self.weight.T

    def distance(self) -> Tensor:
        found: Tensor = (self.weight - self.get_buffer("start")).square().sum()
        return found


class MlpHead(Head):
    """A matrix that stays as it is, and a hidden layer of the same width beside it whose output starts at zero.

    Args:
        start: The matrix, (dim, D).
        generator: Draws the hidden layer.
    """

    kind = "mlp"

    def __init__(self, start: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        dim, width = start.shape
        self.register_buffer("start", start.clone())
        self.up = nn.Parameter(torch.randn(width, width, generator=generator) / width**0.5)
        self.down = nn.Parameter(torch.zeros(dim, width))
        self.register_buffer("drawn", self.up.detach().clone(), persistent=False)

    def forward(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        hidden = F.gelu(vectors / lengths.clamp_min(1e-12) * vectors.shape[-1] ** 0.5 @ self.up.T)
        found: Tensor = vectors @ self.get_buffer("start").T + lengths / vectors.shape[-1] ** 0.5 * (hidden @ self.down.T)
        return found

    def distance(self) -> Tensor:
        return self.down.square().sum() + (self.up - self.get_buffer("drawn")).square().sum()


class AttentionHead(Head):
    """A learned query over the tokens of an item, then a matrix. It starts as the mean of the tokens.

    Args:
        start: Matrix at the start, (dim, D).
    """

    kind = "attention"
    of_tokens = True

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start, persistent=False)
        self.query = nn.Parameter(torch.zeros(start.shape[1]))
        self.weight = nn.Parameter(start.clone())

    def forward(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = F.normalize(vectors, dim=-1) @ self.query
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        pooled = torch.einsum("nt,ntd->nd", scores.softmax(1), vectors)
        return pooled @ self.weight.T

    def distance(self) -> Tensor:
        return self.query.square().sum() + (self.weight - self.get_buffer("start")).square().sum()


KINDS = ("linear", "mlp", "attention")


def build(kind: str, start: Tensor, generator: torch.Generator) -> Head:
    """Return a head at its start.

    Args:
        kind: `linear`, `mlp` or `attention`.
        start: Matrix (dim, D) that it starts as.
        generator: Source of all randomness.

    Raises:
        ConfigError: There is no such kind.
    """
    if kind == "linear":
        return LinearHead(start)
    if kind == "mlp":
        return MlpHead(start, generator)
    if kind == "attention":
        return AttentionHead(start)
    raise ConfigError("unknown kind of head", got=repr(kind), expected="one of " + ", ".join(KINDS))


def start_of(vectors: Tensor, dim: int) -> Tensor:
    """Return the matrix that a head starts as: the identity, or the directions that hold most of the vectors' length.

    Args:
        vectors: Vectors of many items, (N, D).
        dim: Width of the head, at most D.

    Returns:
        (dim, D) with orthonormal rows.

    Raises:
        ConfigError: The head would be wider than the vectors, or N is smaller than a narrower head.
    """
    width = vectors.shape[1]
    if dim == width:
        return torch.eye(width)
    if not 1 <= dim <= min(width, len(vectors)):
        expected = f"1 to {min(width, len(vectors))}, or {width}"
        raise ConfigError("a head cannot have this width", got=dim, expected=expected, fix="Choose another --dim.")
    directions = torch.linalg.eigh((vectors.T @ vectors).double()).eigenvectors.flip(1)[:, :dim].T
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    found: Tensor = (directions * largest.sign()).float().contiguous()
    return found
