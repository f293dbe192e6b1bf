"""The student: a hybrid space-time transformer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stjepa_cli.core.config import StudentConfig
from stjepa_cli.core.errors import CheckpointError, ConfigError, MaskError
from stjepa_cli.core.types import ClipSpec, TokenGrid
from stjepa_cli.models.checkpoint import CheckpointHeader, read_header
from stjepa_cli.models.layers import (
    FactorizedBlock,
    JointBlock,
    attention_flops,
    init_weights,
    linear_flops,
    mlp_flops,
    sincos_positions,
    tubelets,
)
from stjepa_cli.models.masking import Mask, gather_tokens
from stjepa_cli.models.release import WEIGHTS, find_release, load_weights, read_config
from stjepa_cli.models.tensor_file import list_tensors, load_group

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

SMALL = 2**24
"""Numbers of a student for which any machine has memory."""


class Student(nn.Module):
    """Turns clips into tokens: tubelet embedding, factorized blocks, joint blocks, a final norm.

    Hidden tokens are dropped right after the embedding, so that the outputs for visible tokens never depend on hidden pixels.
    Positions are computed from the token grid; there is no class token.

    Args:
        config: Sizes of the student.
        spec: Clips that it takes; S, T, tubelet and patch decide the token grid.
        generator: Random generator for the initial weights.
    """

    activation_checkpointing: bool
    """Recompute activations in the backward pass instead of keeping them."""

    positions: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: StudentConfig, spec: ClipSpec, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.activation_checkpointing = False
        self.embed = nn.Linear(spec.tubelet * spec.patch_px**2 * 3, config.dim)
        sizes = (config.dim, config.num_heads, config.mlp_ratio)
        self.factorized = nn.ModuleList(FactorizedBlock(*sizes) for _ in range(config.num_factorized))
        self.joint = nn.ModuleList(JointBlock(*sizes) for _ in range(config.num_joint))
        self.norm = nn.LayerNorm(config.dim)
        self.register_buffer("positions", sincos_positions(spec.grid, config.dim), persistent=False)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)
        init_weights(self, generator)

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> Student:
        """Load a frozen student on the CPU from a release that `stjepa export --format hf` wrote.

        Args:
            name: Local folder, or a Hugging Face id, which is fetched if it is not in the local cache.
            revision: Branch, tag or commit of an id.

        Raises:
            CheckpointError: There is no such release, it is another kind of model, or its tensors do not fit its configuration.
        """
        folder = find_release(str(name), revision)
        config = read_config(folder)
        _check_size(folder / WEIGHTS, config.student, config.clip)
        student = cls(config.student, config.clip, torch.Generator())
        student.pixel_mean.copy_(torch.tensor(config.pixel_mean).view(3, 1, 1))
        student.pixel_std.copy_(torch.tensor(config.pixel_std).view(3, 1, 1))
        load_weights(student, folder)
        return student.eval().requires_grad_(False)

    @property
    def grid(self) -> TokenGrid:
        """The token grid of its clips."""
        return self.spec.grid

    def forward(self, clips: Tensor, mask: Mask | None = None) -> Tensor:
        """Encode clips.

        Args:
            clips: Tensor uint8 (B, T, 3, S, S), RGB 0 to 255.
            mask: Mask of the visible tokens; None for all tokens.

        Returns:
            Tokens (B, K, D) in the order of `mask.visible`, or (B, N, D) without a mask.

        Raises:
            MaskError: There are factorized blocks and the mask is not made of tubes.
        """
        if mask is not None and self.factorized and not mask.is_tube:
            raise MaskError(
                "factorized blocks need a regular grid of visible tokens",
                got="a mask that is not made of tubes",
                fix="Use a tube mask, or a student of joint blocks only (num_factorized = 0).",
            )
        tokens = self.embed_tokens(clips, None if mask is None else mask.visible)
        return self._through_blocks(tokens, self.factorized, self.joint)

    def forward_features(self, clips: Tensor, layer: int = -1) -> Tensor:
        """Return the tokens of whole clips after one of the blocks, passed through the final norm as in DINO (arXiv 2104.14294).

        Args:
            clips: Tensor uint8 (B, T, 3, S, S), RGB 0 to 255.
            layer: Number of the block, from 1 for the first or from -1 for the last; the last gives the same as `forward`.

        Returns:
            Tokens (B, N, D).

        Raises:
            ConfigError: There is no such block.
        """
        depth = self.block_number(layer)
        num_factorized = min(depth, len(self.factorized))
        blocks = self.factorized[:num_factorized], self.joint[: depth - num_factorized]
        return self._through_blocks(self.embed_tokens(clips, None), *blocks)

    def block_number(self, layer: int) -> int:
        """Return the number of a block of this student, see `block_number`."""
        return block_number(layer, len(self.factorized) + len(self.joint))

    def _through_blocks(self, x: Tensor, factorized: Iterable[nn.Module], joint: Iterable[nn.Module]) -> Tensor:
        """Pass tokens (B, K, D) through factorized blocks, then joint ones, then the norm."""
        b, k, d = x.shape
        x = x.view(b, self.grid.t, -1, d) if self.factorized else x
        for block in factorized:
            x = self._through(block, x)
        x = x.reshape(b, k, d)
        for block in joint:
            x = self._through(block, x)
        return self.norm(x)  # type: ignore[no-any-return]

    def _through(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)  # type: ignore[no-any-return]
        return block(x)  # type: ignore[no-any-return]

    def embed_tokens(self, clips: Tensor, visible: Tensor | None) -> Tensor:
        """Embed clips uint8 (B, T, 3, S, S) as tokens with positions, only those at `visible` (B, K) if given."""
        patches, positions = tubelets(clips, self.spec), self.positions
        if visible is not None:  # select while a pixel is still one byte
            patches, positions = gather_tokens(patches, visible), positions[visible]
        mean, std = (value.flatten().repeat(patches.shape[-1] // 3) for value in (self.pixel_mean, self.pixel_std))
        pixels = (patches.to(mean.dtype) / 255).sub_(mean).div_(std)
        tokens: Tensor = self.embed(pixels) + positions
        return tokens

    def flops(self, num_tokens: int | None = None) -> int:
        """Return the floating-point operations of a forward pass of one clip with `num_tokens` visible tokens (None for all)."""
        n, c, t = num_tokens or self.grid.num_tokens, self.config, self.grid.t
        mlp = mlp_flops(n, c.dim, c.mlp_ratio)
        factorized = attention_flops(n // t, t, c.dim) + attention_flops(t, n // t, c.dim) + mlp
        joint = attention_flops(1, n, c.dim) + mlp
        return linear_flops(n, self.embed.in_features, c.dim) + c.num_factorized * factorized + c.num_joint * joint


def block_number(layer: int, num_blocks: int) -> int:
    """Return the number of a block, 1 to `num_blocks`.

    Args:
        layer: The number of the block, or a negative number that counts from the end.
        num_blocks: The number of blocks of the student.

    Raises:
        ConfigError: There is no such block.
    """
    number = layer if layer >= 0 else num_blocks + 1 + layer
    if not 1 <= number <= num_blocks:
        raise ConfigError("the student has no such block", got=layer, expected=f"1 to {num_blocks}, or -{num_blocks} to -1")
    return number


def load_student(path: Path, device: torch.device) -> tuple[Student, CheckpointHeader]:
    """Load the frozen student of a checkpoint, and the header of the checkpoint.

    This is the moving average of the weights if the run kept one, otherwise the weights at that step.

    Raises:
        CheckpointError: The checkpoint is missing or truncated, or its tensors do not fit the student that its header describes.
    """
    header = read_header(path)
    _check_size(path, header.run.student, header.clip)
    student = Student(header.run.student, header.clip, torch.Generator())
    load_group(student, path, "ema" if any(tensor.name.startswith("ema.") for tensor in list_tensors(path)) else "student")
    return student.to(device).eval().requires_grad_(False), header


def _check_size(path: Path, config: StudentConfig, spec: ClipSpec) -> None:
    """Refuse a file that cannot hold such a student, before memory for it is taken.

    Raises:
        CheckpointError: It has fewer numbers than the embedding and the attention of such a student.
        UnreadableError: It cannot be read.
    """
    least = 3 * spec.tubelet * spec.patch_px**2 * config.dim + 4 * config.dim**2 * (config.num_factorized + config.num_joint)
    if least <= SMALL or not path.is_file():
        return  # tensors that do not fit are told by name
    found = sum(math.prod(tensor.shape) for tensor in list_tensors(path))
    if found < least:
        raise CheckpointError(
            f"{path} holds another student than is described with it", got=f"{found:,} numbers", expected=f"at least {least:,}"
        )


def num_parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters of a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors with their names, types and shapes, in the order of their names; 64 hex digits."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        state.update(tensor.flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()
