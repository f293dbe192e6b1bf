"""Conversion between the latents of a clip and the bytes of its columns: float16, or int8 with a float16 scale per token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stjepa_cli.store.shard_format import Latents

LEVELS = 127


def encode(latents: Tensor, dtype: str) -> list[dict[str, bytes]]:
    """Return the bytes of each row, by column.

    Args:
        latents: Finite float32 (B, N, D).
        dtype: `float16`, or `int8`: each token divided by its largest magnitude / 127 and rounded.
    """
    if dtype == "float16":
        return [{"latents": row.tobytes()} for row in latents.half().cpu().numpy()]
    scales, numbers = quantised(latents)
    pairs = zip(numbers.cpu().numpy(), scales.cpu().numpy(), strict=True)
    return [{"latents": row.tobytes(), "scales": scale.tobytes()} for row, scale in pairs]


def quantised(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return float16 scales (B, N) and int8 numbers (B, N, D) whose product approximates the latents (B, N, D)."""
    scales = (latents.abs().amax(-1) / LEVELS).half()
    divisor = scales.float().where(scales > 0, torch.ones((), device=scales.device))
    return scales, (latents / divisor.unsqueeze(-1)).round().clamp(-LEVELS, LEVELS).to(torch.int8)


def decode_int8(numbers: npt.NDArray[np.int8], scales: npt.NDArray[np.float16], into: Latents) -> None:
    """Fill `into`, float16 (N, D), from numbers (N, D) and scales (N,)."""
    np.multiply(numbers, scales.astype(np.float32)[:, None], out=into, casting="same_kind", dtype=np.float32)


def cosine(latents: Tensor, rows: Sequence[dict[str, bytes]], dtype: str) -> float:
    """Return the mean cosine between the tokens of latents (B, N, D) and their stored form."""
    stored = np.empty(tuple(latents.shape), np.float16)
    for row, into in zip(rows, stored, strict=True):
        decode(row, dtype, into)
    return float(torch.nn.functional.cosine_similarity(latents.float().cpu(), torch.from_numpy(stored).float(), dim=-1).mean())


def decode(row: dict[str, bytes], dtype: str, into: Latents) -> None:
    """Fill `into`, float16 (N, D), from the bytes of a row."""
    if dtype == "float16":
        into[...] = np.frombuffer(row["latents"], np.float16).reshape(into.shape)
    else:
        decode_int8(np.frombuffer(row["latents"], np.int8).reshape(into.shape), np.frombuffer(row["scales"], np.float16), into)
