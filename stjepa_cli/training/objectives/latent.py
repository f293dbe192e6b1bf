"""Predict a frozen teacher's latents: of hidden tubes through a predictor, of visible tokens through a linear head.

The sum of four named terms, each with a weight. `hidden` is masked prediction (SALT, arXiv 2509.24317, with cached targets);
`visible` aligns the student's own visible tokens through a linear layer, as UMT (arXiv 2303.16058) and V-JEPA 2.1 (arXiv
2603.14482) do; `dense` is the same head on all tokens of a clip that is not masked, in a random fraction of the steps;
`visible_predictor` asks the predictor for the visible tokens too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from stjepa_cli.core.config import RunConfig, check, check_between, check_one_of
from stjepa_cli.data.loader import Batch
from stjepa_cli.models.layers import init_weights, linear_flops
from stjepa_cli.models.masking import Mask, gather_tokens, num_hidden_positions
from stjepa_cli.models.predictor import Predictor
from stjepa_cli.models.student import Student
from stjepa_cli.training.objectives._distances import distance, monitors
from stjepa_cli.training.objectives.base import Loss, Objective, settings_of


@dataclass(frozen=True)
class LatentSettings:
    """Weights of the terms and the distance.

    Attributes:
        hidden_weight: Weight of the predictor's answers for hidden tokens.
        visible_weight: Weight of the linear head's answers for visible tokens.
        visible_predictor_weight: Weight of the predictor's answers for visible tokens.
        dense_fraction: Fraction of the steps, 0 to 1, that see whole clips: the linear head answers for all tokens, and nothing
            is hidden. Which steps is a function of the seed.
        dense_weight: Weight of the loss of such a step.
        second_weight: Weight of the second cache's latents, where there is one, in every term.
        loss: Distance: `cosine`, `smooth_l1` or `l1`.
    """

    hidden_weight: float = 1.0
    visible_weight: float = 0.0
    visible_predictor_weight: float = 0.0
    dense_fraction: float = 0.0
    dense_weight: float = 1.0
    second_weight: float = 1.0
    loss: str = "cosine"

    def __post_init__(self) -> None:
        for name in ("hidden_weight", "visible_weight", "visible_predictor_weight", "dense_weight", "second_weight"):
            check_between(getattr(self, name), name, 0, 1e6, low="cannot be negative")
        check(0 <= self.dense_fraction <= 1, "dense_fraction is a fraction of the steps", got=self.dense_fraction, expected="0 to 1")
        check_one_of(self.loss, ("cosine", "smooth_l1", "l1"), "loss")
        masked = self.masked and (self.hidden_weight or self.uses_visible)
        dense = self.dense_fraction and self.dense_weight
        if not dense or self.masked:
            check(bool(masked), "the loss has no term: all its weights are 0", got="0", expected="a weight above 0")

    @property
    def masked(self) -> bool:
        """Some steps hide tokens."""
        return self.dense_fraction < 1

    @property
    def uses_predictor(self) -> bool:
        """The predictor is trained."""
        return self.masked and bool(self.hidden_weight or self.visible_predictor_weight)

    @property
    def uses_visible(self) -> bool:
        """The latents of visible tokens are targets too."""
        return bool(self.visible_weight or self.visible_predictor_weight)

    @property
    def uses_head(self) -> bool:
        """The linear head is trained."""
        return bool(self.visible_weight and self.masked) or self.dense_fraction > 0


class LatentObjective(Objective):
    """A weighted sum of distances between predicted and cached latents."""

    Settings: ClassVar[type] = LatentSettings

    def __init__(self, student: Student, run: RunConfig, latent_dims: Sequence[int], generator: torch.Generator) -> None:
        super().__init__(student, run, latent_dims, generator)
        self.settings: LatentSettings = settings_of(run)
        self.latent_dims = tuple(latent_dims)
        out_dim = sum(latent_dims)
        self.skips_modules = 0 < self.settings.dense_fraction < 1
        if self.settings.uses_predictor:
            self.predictor = Predictor(run.predictor, student.grid, student.config.dim, out_dim, generator)
        if self.settings.uses_head:
            self.head = nn.Linear(student.config.dim, out_dim)
            init_weights(self.head, generator)

    def forward(self, batch: Batch, generator: torch.Generator) -> Loss:
        if self._is_dense(generator):
            return self._dense(batch)
        return Loss.mean([self._masked(mask, batch) for mask in self.masks(batch, generator)])

    def _is_dense(self, generator: torch.Generator) -> bool:
        """Decide whether a step sees whole clips; held-out clips are always masked, where any step is."""
        fraction = self.settings.dense_fraction
        if fraction in (0.0, 1.0) or not self.training:
            return fraction == 1.0
        return float(torch.rand((), generator=generator)) < fraction

    def _dense(self, batch: Batch) -> Loss:
        tokens = self.student(batch.clips)
        term = self.term(self.head(tokens), batch.targets)
        watched = monitors(tokens, batch.latents, None, self.student.grid.num_tokens, self.settings.loss)
        return Loss(self.settings.dense_weight * term, {"dense": term.detach()}, self._scaled(watched, self.settings.dense_weight))

    def _masked(self, mask: Mask, batch: Batch) -> Loss:
        s, context = self.settings, self.student(batch.clips, mask)
        terms: dict[str, tuple[float, Tensor]] = {}
        hidden = tuple(gather_tokens(latents, mask.predict) for latents in batch.targets)
        visible = tuple(gather_tokens(latents, mask.visible) for latents in batch.targets) if s.uses_visible else ()
        if s.uses_predictor:
            answers = self.predictor(context, mask, visible_too=s.visible_predictor_weight > 0)
            if s.hidden_weight:
                terms["hidden"] = s.hidden_weight, self.term(answers[:, -mask.predict.shape[1] :], hidden)
            if s.visible_predictor_weight:
                terms["visible_predictor"] = s.visible_predictor_weight, self.term(answers[:, : mask.visible.shape[1]], visible)
        if s.visible_weight:
            terms["visible"] = s.visible_weight, self.term(self.head(context), visible)
        total = torch.stack([weight * term for weight, term in terms.values()]).sum()
        watched = monitors(context, hidden[0], mask.predict, self.student.grid.num_tokens, s.loss)
        weights = sum(weight for weight, _ in terms.values())
        return Loss(total, {name: term.detach() for name, (_, term) in terms.items()}, self._scaled(watched, weights))

    def _scaled(self, watched: dict[str, Tensor], weights: float) -> dict[str, Tensor]:
        """Scale what trivial answers lose in one term to all terms, so that it can be compared with the total."""
        factor = weights * (1 + self.settings.second_weight * (len(self.latent_dims) - 1))
        return {name: value * factor if name.endswith("_loss") else value for name, value in watched.items()}

    def term(self, answers: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """Return the distance of answers (B, M, sum of E) to the targets (B, M, E) of each cache, weighted."""
        parts = torch.split(answers, list(self.latent_dims), dim=-1)
        first, *more = (distance(part, target, self.settings.loss) for part, target in zip(parts, targets, strict=True))
        return first + self.settings.second_weight * sum(more) if more else first

    def flops(self) -> int:
        s, grid = self.settings, self.student.grid
        dense = self.student.flops() + self._head_flops(grid.num_tokens) if s.dense_fraction else 0
        return round((1 - s.dense_fraction) * self._masked_flops() + s.dense_fraction * dense) if s.masked else dense

    def _masked_flops(self) -> int:
        s, grid = self.settings, self.student.grid
        hidden = grid.t * num_hidden_positions(grid, self.run.mask_ratio)
        visible = grid.num_tokens - hidden
        predictor = self.predictor.flops(visible, hidden) if s.uses_predictor else 0
        head = self._head_flops(visible) if s.visible_weight else 0
        return self.run.masks_per_clip * (self.student.flops(visible) + predictor + head)

    def _head_flops(self, num_tokens: int) -> int:
        return linear_flops(num_tokens, self.head.in_features, self.head.out_features)


plugin = LatentObjective
