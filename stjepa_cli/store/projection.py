"""The map from the tokens of a teacher to stored latents: normalise, centre, map to the stored width, scale."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.errors import ConfigError, TeacherError
from stjepa_cli.store.rotations import equalising_rotation

KINDS = ("pca", "random", "identity", "standardize", "phi-s")


@dataclass(frozen=True)
class Projection:
    """A fitted map of tokens from E to D channels.

    Tokens are normalised (LayerNorm without affine over E, if `token_norm` asks for it), centred by `mean`, multiplied by
    `matrix` and by one global `scale`, after which the mean square of a latent is 1 over the clips that the map was fitted on.
    Centring matters: against targets that are not centred a constant answer already has a high cosine.

    Attributes:
        kind: One of KINDS. `pca` keeps the leading principal components, `random` is an orthogonal map (the control) and
            `identity` keeps the channels. `standardize` divides each channel by its standard deviation, and keeps the
            principal components of the result where D < E. `phi-s` (arXiv 2410.01680) rotates the principal components so
            that all stored channels have the same variance.
        token_norm: `layernorm` or `none`.
        mean: float32 (E,).
        matrix: float32 (D, E). Its rows are orthonormal except for `standardize`; for `pca`, `random` and `standardize` the
            rows beyond E are zero.
        scale: A positive number.
        explained: Fraction of the (for `standardize`: standardised) variance that the map keeps, 0 to 1.
        num_fit_clips: Number of clips that it was fitted on.
    """

    kind: str
    token_norm: str
    mean: Tensor
    matrix: Tensor
    scale: float
    explained: float
    num_fit_clips: int

    def __call__(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., E) to latents (..., D), float32."""
        x = normalise(tokens, self.token_norm) - self.mean.to(tokens.device)
        return x @ self.matrix.to(tokens.device).T * self.scale

    def inverse(self, latents: Tensor) -> Tensor:
        """Map latents (..., D) back to normalised tokens (..., E), float32: exactly where nothing was dropped, else the nearest ones."""
        back = torch.linalg.pinv(self.matrix.double()).to(latents.device)
        tokens: Tensor = (latents.double() / self.scale) @ back.T + self.mean.double().to(latents.device)
        return tokens.float()

    @property
    def digest(self) -> str:
        """sha256 over everything that changes the result; 64 hex digits."""
        state = hashlib.sha256(f"{self.kind} {self.token_norm} {self.scale!r} {tuple(self.matrix.shape)}".encode())
        state.update(self.mean.numpy().tobytes())
        state.update(self.matrix.numpy().tobytes())
        return state.hexdigest()


class ProjectionFit:
    """Accumulates the mean and covariance of tokens in float64, batch by batch.

    Args:
        dim: E, width of a token.
        token_norm: Normalisation that the card of the teacher asks for.
    """

    def __init__(self, dim: int, token_norm: str) -> None:
        self.dim, self.token_norm = dim, token_norm
        self.num_clips = self.num_tokens = 0
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._outer = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, tokens: Tensor) -> None:
        """Add the tokens (B, N, E) of B clips.

        Raises:
            TeacherError: A token is not finite.
        """
        x = normalise(tokens, self.token_norm).flatten(0, 1).double().cpu()
        if not torch.isfinite(x).all():
            raise TeacherError("the teacher gives tokens that are not finite", fix="Try another precision (`--device cpu`) or teacher.")
        self.num_clips += len(tokens)
        self.num_tokens += len(x)
        self._sum += x.sum(0)
        self._outer += x.T @ x

    def finish(self, kind: str, out_dim: int, seed: int = 0) -> Projection:
        """Return the map from E to `out_dim` channels.

        Raises:
            ConfigError: The kind is unknown, or `identity` is asked to change the width.
        """
        check_kind(kind, self.dim, out_dim)
        mean = self._sum / max(1, self.num_tokens)
        covariance = self._outer / max(1, self.num_tokens) - torch.outer(mean, mean)
        weights = _inverse_std(covariance) if kind == "standardize" else torch.ones(self.dim, dtype=torch.float64)
        weighted = weights[:, None] * covariance * weights
        matrix = _matrix(kind, out_dim, weighted, seed)
        kept, total = float((matrix @ weighted * matrix).sum()), float(weighted.trace())
        return Projection(
            kind=kind,
            token_norm=self.token_norm,
            mean=mean.float(),
            matrix=(matrix * weights).float().contiguous(),
            scale=(out_dim / kept) ** 0.5 if kept > 0 else 1.0,
            explained=kept / total if total > 0 else 1.0,
            num_fit_clips=self.num_clips,
        )


def check_kind(kind: str, dim: int, out_dim: int) -> None:
    """Refuse a kind of projection that cannot map `dim` to `out_dim` channels.

    Raises:
        ConfigError: The kind is unknown, or `identity` is asked to change the width.
    """
    if kind not in KINDS:
        raise ConfigError("unknown projection", got=repr(kind), expected="one of " + ", ".join(KINDS))
    if kind == "identity" and out_dim != dim:
        raise ConfigError("the identity keeps the width", got=f"{dim} channels to {out_dim}", expected="equal widths, or pca")


def default_kind(teacher_dim: int, out_dim: int) -> str:
    """Return `identity` when the widths agree, else `pca`."""
    return "identity" if teacher_dim == out_dim else "pca"


def normalise(tokens: Tensor, token_norm: str) -> Tensor:
    """Return tokens (..., E) as float32, normalised over E if `token_norm` is `layernorm`.

    A VideoMAE that was fine-tuned with mean pooling has no final norm: its last hidden state is a raw residual stream in which
    a few channels drown the others.
    """
    x = tokens.float()
    return F.layer_norm(x, x.shape[-1:]) if token_norm == "layernorm" else x


def _matrix(kind: str, out_dim: int, covariance: Tensor, seed: int) -> Tensor:
    """Return the orthonormal rows (D, E) of a projection, before scaling."""
    dim = len(covariance)
    if kind == "random":
        return _orthonormal_rows(out_dim, dim, seed)
    if kind == "identity" or (kind == "standardize" and out_dim == dim):
        return torch.eye(dim, dtype=torch.float64)
    rows = _principal_rows(covariance, out_dim)
    if kind == "phi-s":
        return equalising_rotation((rows @ covariance * rows).sum(1).clamp_min(0)) @ rows
    return rows


def _inverse_std(covariance: Tensor) -> Tensor:
    """Return one over the standard deviation of each channel (E,), 0 for channels that do not vary."""
    std = covariance.diagonal().clamp_min(0).sqrt()
    varies = std > 1e-6 * std.max()
    return torch.where(varies, 1 / std.where(varies, torch.ones_like(std)), torch.zeros_like(std))


def _principal_rows(covariance: Tensor, num_rows: int) -> Tensor:
    """Return the leading eigenvectors as rows, largest first, with fixed signs; zero rows where there are too few."""
    _, vectors = torch.linalg.eigh(covariance)
    rows = vectors.T.flip(0)[:num_rows]
    largest = rows.abs().argmax(dim=1, keepdim=True)
    rows = rows * rows.gather(1, largest).sign()
    return F.pad(rows, (0, 0, 0, num_rows - len(rows)))


def _orthonormal_rows(num_rows: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return F.pad(q[:num_rows], (0, 0, 0, max(0, num_rows - dim)))
