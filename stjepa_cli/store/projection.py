"""From a teacher's tokens to what is stored: normalise, centre, map to the stored width, scale."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.errors import ConfigError, TeacherError

KINDS = ("pca", "random", "identity")


@dataclass(frozen=True)
class Projection:
    """A fitted map of tokens, E to D channels.

    Tokens are normalised (LayerNorm without affine over E, if `token_norm` asks for it), centred by `mean`, multiplied by
    `matrix` and by one global `scale`, after which a channel's mean square is 1 over the clips that it was fitted on.
    Centring matters: against uncentred targets a constant answer already has a high cosine.

    Attributes:
        kind: `pca`, `random` (orthogonal, the control) or `identity`.
        token_norm: `layernorm` or `none`.
        mean: float32 (E,).
        matrix: float32 (D, E); orthonormal rows, zero rows where D > E.
        scale: positive.
        explained: share of the variance that the map keeps, 0 to 1.
        num_fit_clips: clips that it was fitted on.
    """

    kind: str
    token_norm: str
    mean: Tensor
    matrix: Tensor
    scale: float
    explained: float
    num_fit_clips: int

    def __call__(self, tokens: Tensor) -> Tensor:
        """Tokens (..., E) to latents (..., D), float32."""
        x = normalise(tokens, self.token_norm) - self.mean.to(tokens.device)
        return x @ self.matrix.to(tokens.device).T * self.scale

    @property
    def digest(self) -> str:
        """sha256 over everything that changes the result; 64 hex digits."""
        state = hashlib.sha256(f"{self.kind} {self.token_norm} {self.scale!r} {tuple(self.matrix.shape)}".encode())
        state.update(self.mean.numpy().tobytes())
        state.update(self.matrix.numpy().tobytes())
        return state.hexdigest()


class ProjectionFit:
    """Gathers the mean and covariance of tokens in float64, batch by batch.

    Args:
        dim: E, width of a token.
        token_norm: as the teacher's card says.
    """

    def __init__(self, dim: int, token_norm: str) -> None:
        self.dim, self.token_norm = dim, token_norm
        self.num_clips = self.num_tokens = 0
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._outer = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, tokens: Tensor) -> None:
        """Take in tokens (B, N, E) of B clips.

        Raises:
            TeacherError: a token is not finite.
        """
        x = normalise(tokens, self.token_norm).flatten(0, 1).double().cpu()
        if not torch.isfinite(x).all():
            raise TeacherError("the teacher gives tokens that are not finite", fix="Try another precision (`--device cpu`) or teacher.")
        self.num_clips += len(tokens)
        self.num_tokens += len(x)
        self._sum += x.sum(0)
        self._outer += x.T @ x

    def finish(self, kind: str, out_dim: int, seed: int = 0) -> Projection:
        """The map from E to `out_dim` channels.

        Raises:
            ConfigError: an unknown kind, or `identity` between different widths.
        """
        mean = self._sum / max(1, self.num_tokens)
        covariance = self._outer / max(1, self.num_tokens) - torch.outer(mean, mean)
        matrix = self._matrix(kind, out_dim, covariance, seed)
        kept, total = float((matrix @ covariance * matrix).sum()), float(covariance.trace())
        return Projection(
            kind=kind,
            token_norm=self.token_norm,
            mean=mean.float(),
            matrix=matrix.float().contiguous(),
            scale=(out_dim / kept) ** 0.5 if kept > 0 else 1.0,
            explained=kept / total if total > 0 else 1.0,
            num_fit_clips=self.num_clips,
        )

    def _matrix(self, kind: str, out_dim: int, covariance: Tensor, seed: int) -> Tensor:
        if kind == "pca":
            return _principal_rows(covariance, out_dim)
        if kind == "random":
            return _orthonormal_rows(out_dim, self.dim, seed)
        if kind == "identity" and out_dim == self.dim:
            return torch.eye(self.dim, dtype=torch.float64)
        if kind == "identity":
            raise ConfigError("the identity keeps the width", got=f"{self.dim} channels to {out_dim}", expected="equal widths, or pca")
        raise ConfigError("unknown projection", got=repr(kind), expected="one of " + ", ".join(KINDS))


def default_kind(teacher_dim: int, out_dim: int) -> str:
    """`identity` when the widths agree, else `pca`."""
    return "identity" if teacher_dim == out_dim else "pca"


def normalise(tokens: Tensor, token_norm: str) -> Tensor:
    """Tokens (..., E) as float32, each normalised over E if asked for.

    A VideoMAE fine-tuned with mean pooling has no final norm: its last hidden state is a raw residual stream in which a few
    channels drown the rest.
    """
    x = tokens.float()
    return F.layer_norm(x, x.shape[-1:]) if token_norm == "layernorm" else x


def _principal_rows(covariance: Tensor, num_rows: int) -> Tensor:
    """The leading eigenvectors as rows, largest first, signs fixed; zero rows where the width does not suffice."""
    _, vectors = torch.linalg.eigh(covariance)
    rows = vectors.T.flip(0)[:num_rows]
    largest = rows.abs().argmax(dim=1, keepdim=True)
    rows = rows * rows.gather(1, largest).sign()
    return F.pad(rows, (0, 0, 0, num_rows - len(rows)))


def _orthonormal_rows(num_rows: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return F.pad(q[:num_rows], (0, 0, 0, max(0, num_rows - dim)))
