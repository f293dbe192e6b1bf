"""The cost of a recipe, counted on the student that it would train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stjepa_cli.core.config import LATENT_DIM
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.models.student import Student
from stjepa_cli.training.objectives.base import build, objective_class
from stjepa_cli.training.recipes import RECIPES, resolve_run


def recipe_costs(preset: str = "base") -> dict[str, dict[str, Any]]:
    """Return for each recipe its source, needs, finding and forward GFLOP per clip of 16 frames x 224 px, without allocating weights."""
    found = {}
    for name, recipe in RECIPES.items():
        run = resolve_run({"data_root": Path(), "cache": Path()}, flags={"recipe": name, "preset": preset})
        needs = objective_class(run).needs
        with torch.device("meta"):
            generator = torch.Generator("cpu")
            objective = build(Student(run.student, ClipSpec(), generator), run, [LATENT_DIM] if "latents" in needs else [], generator)
        found[name] = {
            "gflops_per_clip": round(objective.flops() / 1e9, 1),
            "mask_ratio": recipe.mask_ratio,
            "needs": " and ".join(sorted(needs)),
            "objective": run.objective,
            "source": recipe.source,
            "finding": recipe.finding,
        }
    return found
