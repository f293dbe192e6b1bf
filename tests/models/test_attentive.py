"""Attentive pooling: the short way of the learned query against attention as it is written in the paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.models.attentive import initial_weights, num_attention_heads, pooled_logits


def plain(w: dict[str, Tensor], x: Tensor, num_blocks: int) -> Tensor:
    """One head on (B, L, D), with keys and values of every token."""
    b, _, dim = x.shape
    n = num_attention_heads(dim)

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (dim,), w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"] + w.get(f"{name}.bias", torch.zeros(()))

    def mlp(prefix: str, x: Tensor) -> Tensor:
        return x + linear(f"{prefix}mlp_out", F.gelu(linear(f"{prefix}mlp_in", norm(f"{prefix}mlp_norm", x))))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.view(b, -1, n, dim // n).transpose(1, 2) for part in (q, k, v))
        mixed: Tensor = (((q @ k.mT) * (dim // n) ** -0.5).softmax(dim=-1) @ v).transpose(1, 2).reshape(b, -1, dim)
        return mixed

    for i in range(num_blocks):
        q, k, v = linear(f"blocks.{i}.qkv", norm(f"blocks.{i}.norm", x)).chunk(3, dim=-1)
        x = mlp(f"blocks.{i}.", x + linear(f"blocks.{i}.proj", attend(q, k, v)))
    seen, query = norm("pool.norm", x), w["pool.query"].expand(b, 1, dim)
    y = query + attend(linear("pool.q", query), linear("pool.k", seen), linear("pool.v", seen))
    return linear("out", mlp("pool.", y))[:, 0]


@pytest.mark.parametrize("num_blocks", [0, 2])
def test_all_heads_at_once_equal_plain_attention_head_by_head(num_blocks: int) -> None:
    draw = torch.Generator().manual_seed(0)
    heads = [initial_weights(24, 5, num_blocks, draw) for _ in range(3)]
    heads = [{name: w + 0.2 * torch.randn(w.shape, generator=draw) for name, w in head.items()} for head in heads]
    x = torch.randn(4, 7, 24, generator=draw)
    found = pooled_logits({name: torch.stack([head[name] for head in heads]) for name in heads[0]}, x)
    assert torch.allclose(found, torch.stack([plain(head, x, num_blocks) for head in heads]), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("dim", "heads"), [(384, 16), (768, 16), (6, 6), (100, 10), (17, 1)])
def test_heads_are_the_largest_divisor_up_to_sixteen(dim: int, heads: int) -> None:
    assert num_attention_heads(dim) == heads
