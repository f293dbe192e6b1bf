"""Transformer layers on (B, L, D) tokens: attention, MLP, joint and factorized blocks, positions, and their FLOPs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stjepa_cli.core.types import ClipSpec, TokenGrid


class Attention(nn.Module):
    """Multi-head self-attention over (B, L, D) with a fused qkv (arXiv 1706.03762)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return mixed


class Mlp(nn.Sequential):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, ratio: float) -> None:
        hidden = int(dim * ratio)
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class JointBlock(nn.Module):
    """A pre-norm block whose attention spans all L tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(dim), Attention(dim, num_heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), Mlp(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        mixed: Tensor = x + self.mlp(self.mlp_norm(x))
        return mixed


class FactorizedBlock(nn.Module):
    """A pre-norm block on a regular (B, t, k, D) grid: attention over time, then over space, then the MLP.

    This is the divided attention of TimeSformer (arXiv 2102.05095): a position attends to itself at other time steps, then to the
    other positions of its own time step.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.time_norm, self.time_attention = nn.LayerNorm(dim), Attention(dim, num_heads)
        self.space_norm, self.space_attention = nn.LayerNorm(dim), Attention(dim, num_heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), Mlp(dim, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        b, t, k, d = x.shape
        columns = self.time_norm(x).transpose(1, 2).reshape(b * k, t, d)
        x = x + self.time_attention(columns).view(b, k, t, d).transpose(1, 2)
        x = x + self.space_attention(self.space_norm(x).view(b * t, k, d)).view(b, t, k, d)
        mixed: Tensor = x + self.mlp(self.mlp_norm(x))
        return mixed


def tubelets(clips: Tensor, spec: ClipSpec) -> Tensor:
    """Cut clips (B, T, 3, S, S) into tokens of pixels (B, N, tubelet * patch * patch * 3), in (t, h, w) order."""
    b = clips.shape[0]
    grid, p = spec.grid, spec.patch_px
    x = clips.view(b, grid.t, spec.tubelet, 3, grid.h, p, grid.w, p)
    return x.permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(b, grid.num_tokens, spec.tubelet * p * p * 3)


def sincos_positions(grid: TokenGrid, dim: int) -> Tensor:
    """Return fixed 3-D sine and cosine positions float32 (N, dim) of a token grid; a quarter of `dim` encodes time, the rest space.

    They are computed from the grid and never learned, so that other clip lengths and sizes need no new parameters.
    """
    t_dim = dim // 4 // 2 * 2
    h_dim = (dim - t_dim) // 2 // 2 * 2
    w_dim = dim - t_dim - h_dim
    t, h, w = torch.meshgrid(torch.arange(grid.t), torch.arange(grid.h), torch.arange(grid.w), indexing="ij")
    parts = [_sincos(axis.flatten(), width) for axis, width in ((t, t_dim), (h, h_dim), (w, w_dim))]
    return torch.cat(parts, dim=1)


def _sincos(positions: Tensor, dim: int) -> Tensor:
    frequencies = 10_000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / max(1, dim // 2))
    angles = positions.double().unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def init_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Initialise linear weights with Xavier uniform, as MAE does (arXiv 2111.06377), biases with 0 and norms with 1.

    A fixed standard deviation of 0.02 suits wide models only: a narrow one starts so close to zero that it stays at chance for long.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def linear_flops(num_tokens: int, in_dim: int, out_dim: int) -> int:
    """Return the floating-point operations of a linear layer; a multiply-add counts as two."""
    return 2 * num_tokens * in_dim * out_dim


def attention_flops(num_sequences: int, length: int, dim: int) -> int:
    """Return the floating-point operations of self-attention and its projections over sequences of `length` tokens."""
    tokens = num_sequences * length
    return linear_flops(tokens, dim, 4 * dim) + 4 * num_sequences * length * length * dim


def mlp_flops(num_tokens: int, dim: int, ratio: float) -> int:
    """Return the floating-point operations of an MLP."""
    return 2 * linear_flops(num_tokens, dim, int(dim * ratio))
