"""The predictor, from the student's visible tokens to the latents of hidden ones. It is trained with the student, never released."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stjepa_cli.core.config import PredictorConfig
from stjepa_cli.core.types import TokenGrid
from stjepa_cli.models.layers import JointBlock, attention_flops, init_weights, linear_flops, mlp_flops, sincos_positions
from stjepa_cli.models.masking import Mask


class Predictor(nn.Module):
    """Predicts the latents of hidden tokens from the student's visible ones.

    A learned mask token with the position of each hidden token joins the context; joint blocks mix them (I-JEPA, arXiv 2301.08243).

    Args:
        config: Sizes of the predictor.
        grid: Token grid of the clip.
        context_dim: Width D of the student.
        out_dim: Width E of the latents.
        generator: Random generator for the initial weights.
    """

    MLP_RATIO = 4.0
    positions: Tensor

    def __init__(self, config: PredictorConfig, grid: TokenGrid, context_dim: int, out_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        self.embed = nn.Linear(context_dim, config.dim)
        self.mask_token = nn.Parameter(torch.zeros(config.dim))
        self.blocks = nn.ModuleList(JointBlock(config.dim, config.num_heads, self.MLP_RATIO) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.out = nn.Linear(config.dim, out_dim)
        self.register_buffer("positions", config.position_scale * sincos_positions(grid, config.dim), persistent=False)
        init_weights(self, generator)
        nn.init.trunc_normal_(self.mask_token, std=0.02, generator=generator)

    def forward(self, context: Tensor, mask: Mask, *, visible_too: bool = False) -> Tensor:
        """Predict latents.

        Args:
            context: Tokens (B, K, D) of the student at `mask.visible`.
            mask: Mask that says which tokens are visible and which ones to predict.
            visible_too: Predict the latents of the visible tokens too.

        Returns:
            Predictions (B, M, E) for the tokens `mask.predict`; with `visible_too` (B, K + M, E), those for visible tokens first.
        """
        visible, hidden = self.positions[mask.visible], self.positions[mask.predict]
        x = torch.cat([self.embed(context) + visible, self.mask_token + hidden], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x if visible_too else x[:, context.shape[1] :]))  # type: ignore[no-any-return]

    def flops(self, num_visible: int, num_predicted: int) -> int:
        """Return the floating-point operations of a forward pass of one clip."""
        n, c = num_visible + num_predicted, self.config
        block = attention_flops(1, n, c.dim) + mlp_flops(n, c.dim, self.MLP_RATIO)
        ends = linear_flops(num_visible, self.embed.in_features, c.dim) + linear_flops(num_predicted, c.dim, self.out.out_features)
        return ends + c.depth * block
