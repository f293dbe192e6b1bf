"""Attentive pooling from tokens to class scores, for H heads at once: every weight has the heads as its leading axis.

This is V-JEPA 2's attentive probe (arXiv 2506.09985): self-attention blocks, then a cross-attention block with a learned query, then
a linear layer; without self-attention blocks only the pooling remains. Tokens are read once for all heads. Keys and values are never
computed per token: the learned query is projected back through the key weights, and values are computed after pooling. This is the
same sum in another order, at heads / D of the cost.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ATTENTION_HEADS = 16
MLP_RATIO = 4
MAX_ACTIVATIONS = 1 << 27  # numbers kept for the backward pass, about 0.5 GB of float32
_PER_BLOCK, _PER_POOLING = 32, 4  # activations that a block keeps, in copies of its tokens

Weights = Mapping[str, Tensor]


def num_attention_heads(dim: int) -> int:
    """Return the largest divisor of `dim` up to 16."""
    return max(n for n in range(1, MAX_ATTENTION_HEADS + 1) if dim % n == 0)


def initial_weights(dim: int, num_classes: int, num_blocks: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the initial weights of one head, float32 without a leading axis; linear weights (in, out) are Xavier uniform.

    Args:
        dim: Width D of the tokens.
        num_classes: Number of classes C.
        num_blocks: Number of self-attention blocks before the pooling.
        generator: Random generator on the CPU.
    """
    linears = {"pool.q": (dim, dim), "pool.k": (dim, dim), "pool.v": (dim, dim)}
    for prefix in (*(f"blocks.{i}." for i in range(num_blocks)), "pool."):
        linears |= {f"{prefix}mlp_in": (dim, MLP_RATIO * dim), f"{prefix}mlp_out": (MLP_RATIO * dim, dim)}
    for i in range(num_blocks):
        linears |= {f"blocks.{i}.qkv": (dim, 3 * dim), f"blocks.{i}.proj": (dim, dim)}
    weights = {"pool.query": torch.randn(dim, generator=generator)}
    for name in sorted(linears):
        bound = (6 / sum(linears[name])) ** 0.5
        weights[f"{name}.weight"] = torch.empty(linears[name]).uniform_(-bound, bound, generator=generator)
        weights[f"{name}.bias"] = torch.zeros(linears[name][1])
    del weights["pool.k.bias"]  # softmax over tokens cancels it
    for prefix in (*(f"blocks.{i}." for i in range(num_blocks)), "pool."):
        for norm in ("norm", "mlp_norm"):
            weights |= {f"{prefix}{norm}.weight": torch.ones(dim), f"{prefix}{norm}.bias": torch.zeros(dim)}
    return weights | {"out.weight": torch.zeros(dim, num_classes), "out.bias": torch.zeros(num_classes)}


def decays(name: str) -> bool:
    """Return True if weight decay applies to the weight `name`: to matrices and the query, not to norms and biases."""
    return name == "pool.query" or (name.endswith(".weight") and "norm" not in name)


def num_self_blocks(weights: Weights) -> int:
    return sum(name.endswith(".qkv.weight") for name in weights)


def rows_at_once(weights: Weights, num_tokens: int) -> int:
    """Return how many rows of L tokens fit in memory for a step of all heads."""
    num_heads, dim = weights["pool.query"].shape
    copies = num_heads * _PER_BLOCK * num_self_blocks(weights) + _PER_POOLING * (1 + num_heads * num_attention_heads(dim) // dim)
    return max(1, MAX_ACTIVATIONS // (copies * num_tokens * dim))


def pooled_logits(weights: Weights, tokens: Tensor) -> Tensor:
    """Compute the class scores of every head.

    Args:
        weights: Tensors (H, ...), named as by `initial_weights`.
        tokens: Tensor float32 (B, L, D), standardised.

    Returns:
        Class scores, float (H, B, C).
    """
    x = tokens[None]  # (1, B, L, D) as long as all heads see the same
    for i in range(num_self_blocks(weights)):
        prefix = f"blocks.{i}."
        x = x + _self_attention(weights, prefix, x)
        x = x + _mlp(weights, prefix, x)
    y = _pool(weights, x)
    y = y + _mlp(weights, "pool.", y)
    return _linear(y, weights["out.weight"], weights["out.bias"])


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply weights (H, D, O) to (1 or H, ..., D), giving (H, ..., O)."""
    rows = x.flatten(1, -2)
    out = torch.baddbmm(bias[:, None], rows.expand(len(weight), *rows.shape[1:]), weight)
    return out.view(len(weight), *x.shape[1:-1], weight.shape[2])


def _norm_linear(weights: Weights, x: Tensor, norm: str, linear: str) -> Tensor:
    """Apply a layer norm and the linear layer behind it, folding the norm's scale and shift into the linear weights."""
    scale, shift, weight = weights[f"{norm}.weight"], weights[f"{norm}.bias"], weights[f"{linear}.weight"]
    bias = weights[f"{linear}.bias"] + (shift[:, None] @ weight)[:, 0]
    return _linear(F.layer_norm(x, x.shape[-1:]), scale[:, :, None] * weight, bias)


def _mlp(weights: Weights, prefix: str, x: Tensor) -> Tensor:
    hidden = F.gelu(_norm_linear(weights, x, f"{prefix}mlp_norm", f"{prefix}mlp_in"))
    return _linear(hidden, weights[f"{prefix}mlp_out.weight"], weights[f"{prefix}mlp_out.bias"])


def _self_attention(weights: Weights, prefix: str, x: Tensor) -> Tensor:
    """Apply self-attention to (1 or H, B, L, D), giving (H, B, L, D)."""
    n = num_attention_heads(x.shape[-1])
    qkv = _norm_linear(weights, x, f"{prefix}norm", f"{prefix}qkv")
    h, b, length, _ = qkv.shape
    q, k, v = qkv.view(h * b, length, 3, n, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h, b, length, x.shape[-1])
    return _linear(mixed, weights[f"{prefix}proj.weight"], weights[f"{prefix}proj.bias"])


def _pool(weights: Weights, x: Tensor) -> Tensor:
    """Apply cross-attention of the learned query to (1 or H, B, L, D), giving (H, B, D).

    Softmax over tokens cancels terms that are the same for all tokens (a key bias, the norm's shift), and its weights sum to 1.
    """
    query, scale, shift = weights["pool.query"], weights["pool.norm.weight"], weights["pool.norm.bias"]
    (h, dim), (groups, b) = query.shape, x.shape[:2]
    n = num_attention_heads(dim)
    x = F.layer_norm(x, (dim,))
    q = (query[:, None] @ weights["pool.q.weight"])[:, 0] + weights["pool.q.bias"]
    keys = weights["pool.k.weight"].view(h, dim, n, dim // n)
    q_back = torch.einsum("hdnk,hnk->hnd", keys, q.view(h, n, -1)) * scale[:, None] * (dim // n) ** -0.5
    attention = (x @ q_back.reshape(groups, 1, -1, dim).mT).softmax(dim=2)  # (1 or H, B, L, heads)
    pooled = (attention.mT @ x).view(groups, b, h // groups, n, dim).transpose(1, 2).reshape(h, b, n, dim)
    pooled = pooled * scale[:, None, None] + shift[:, None, None]
    values = torch.einsum("hbnd,hdnk->hbnk", pooled, weights["pool.v.weight"].view(h, dim, n, dim // n))
    return query[:, None] + values.reshape(h, b, dim) + weights["pool.v.bias"][:, None]
