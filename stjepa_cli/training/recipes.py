"""Named settings of a run, and the run that a file, flags and default places describe together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stjepa_cli.core.config import PRESETS, RunConfig
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.serialization import from_dict, read_toml
from stjepa_cli.training.objectives.base import objective_class, with_all_settings


@dataclass(frozen=True)
class Recipe:
    """Settings of an objective under a name.

    Attributes:
        objective: Table `[objective]`.
        mask_ratio: Fraction of the positions whose tubes are hidden.
        source: Where the idea comes from.
        finding: What it was shown to give here; `docs/results.md` has the runs.
    """

    objective: Mapping[str, Any]
    mask_ratio: float
    source: str
    finding: str


RECIPES: dict[str, Recipe] = {
    "dense": Recipe(
        {"name": "latent", "hidden_weight": 0.0, "dense_fraction": 1.0},
        0.75,
        "plain distillation of every token through a linear head, nothing hidden",
        "best in equal time for a teacher that saw the labels, about level with `mixed` for others",
    ),
    "mixed": Recipe(
        {"name": "latent", "hidden_weight": 1.0, "visible_weight": 1.0},
        0.75,
        "masked latent prediction (SALT, arXiv 2509.24317) and a linear head on visible tokens (UMT, arXiv 2303.16058)",
        "a third of the cost of `dense` per clip; about level with it, but far below for a teacher that saw the labels",
    ),
    "st-jepa": Recipe(
        {"name": "latent", "hidden_weight": 1.0},
        0.75,
        "masked latent prediction alone: the published form of this system (SALT, arXiv 2509.24317)",
        "kNN at chance on small sets with 64 tokens, little above it with 256",
    ),
    "half-dense": Recipe(
        {"name": "latent", "hidden_weight": 1.0, "visible_weight": 1.0, "dense_fraction": 0.5},
        0.75,
        "`mixed` and `dense` in turn, step by step at random",
        "between `mixed` and `dense` in cost; no better than the better of the two",
    ),
    "umt": Recipe(
        {"name": "latent", "hidden_weight": 0.0, "visible_weight": 1.0},
        0.8,
        "Unmasked Teacher (arXiv 2303.16058): visible tokens alone; tubes hidden at random instead of by attention",
        "fewest operations; varies most from seed to seed",
    ),
    "videomae": Recipe(
        {"name": "pixels"},
        0.9,
        "VideoMAE (arXiv 2203.12602): normalised pixels of hidden tubes; needs neither teacher nor cache",
        "first stage of SALT; at chance after 900 small steps",
    ),
}
DEFAULT_RECIPE = "dense"
DEFAULT_MASKED_RECIPE = "mixed"
"""The default where a setting of the masks or of the terms on masked clips is given, which `dense` does not read."""

_MASK_KEYS = ("mask_ratio", "mask_sampler", "masks_per_clip")
_MASKED_TERMS = ("hidden_weight", "visible_weight", "visible_predictor_weight")

# flags that belong to a table inside the run
_OPTIMIZER_FLAGS = {"lr": "lr", "weight_decay": "weight_decay", "optimizer": "name"}
_OBJECTIVE_FLAGS = ("hidden_weight", "visible_weight", "dense_fraction", "second_weight", "loss")
_CLIP_FLAGS = ("num_frames", "size_px")


def resolve_run(places: Mapping[str, Any], *, file: Path | None = None, flags: Mapping[str, Any] | None = None) -> RunConfig:
    """Return the run that default places, a TOML file and flags describe; flags win over the file, the file over defaults.

    Args:
        places: Default values of `data_root`, `cache` and `checkpoints`. The default cache is for objectives that need latents; others
            read a cache only where the file or a flag names one.
        file: A `run.toml`; unknown keys are refused.
        flags: What was given on the command line; None counts as not given. A preset or a recipe given as a flag replaces the
            sizes or the objective of the file.

    Raises:
        ConfigError: An unknown key or name, a wrong type or value, or a file that is not TOML.
    """
    written = RunConfig.upgrade(read_toml(file) if file else {})
    data = dict(places) | written
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    names_cache = "cache" in written or "cache" in given
    optimizer = _table(data, "optimizer") | {key: given.pop(flag) for flag, key in _OPTIMIZER_FLAGS.items() if flag in given}
    clip = _table(data, "clip") | {key: given.pop(key) for key in _CLIP_FLAGS if key in given}
    if "preset" in given:
        data = {key: value for key, value in data.items() if key not in ("student", "predictor")}
    if "recipe" in given or "objective" in given:
        data = {key: value for key, value in data.items() if key not in ("objective", "mask_ratio", "recipe")}
    terms = {key: given.pop(key) for key in _OBJECTIVE_FLAGS if key in given}
    if "objective" in given:
        given["objective"] = {"name": given["objective"]}
    data |= given
    data = _with_recipe(data, terms) | {"optimizer": optimizer, "clip": clip}
    preset = data.get("preset", RunConfig.preset)
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError("unknown preset", got=repr(preset), expected="one of " + ", ".join(PRESETS))
    student, predictor = PRESETS[preset]
    data["student"] = asdict(student) | _table(data, "student")
    data["predictor"] = asdict(predictor) | _table(data, "predictor")
    run = with_all_settings(from_dict(RunConfig, data, where=str(file) if file else "the run"))
    _refuse_masks_of_nothing(run, [key for key in (*_MASK_KEYS, *_MASKED_TERMS) if (flags or {}).get(key)])
    return run if names_cache or "latents" in objective_class(run).needs else replace(run, cache=None)


def _refuse_masks_of_nothing(run: RunConfig, given: list[str]) -> None:
    """Refuse flags that only matter in steps that hide tokens, for a run that has none."""
    if given and run.objective.get("dense_fraction") == 1:
        option = f"--{given[0].replace('_', '-')}"
        raise ConfigError(
            f"{option} has no effect: no step of this run hides tokens", fix=f"Leave it out, or add `--recipe {DEFAULT_MASKED_RECIPE}`."
        )


def _with_recipe(data: Mapping[str, Any], terms: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what the recipe of a run says and the file and flags do not."""
    table = _table(data, "objective")
    hides = any(key in data for key in _MASK_KEYS) or any(key in table or key in terms for key in _MASKED_TERMS)
    default = DEFAULT_MASKED_RECIPE if hides else DEFAULT_RECIPE
    name = data.get("recipe", "" if table.get("name", "latent") != "latent" else default)
    if not isinstance(name, str) or (name and name not in RECIPES):
        raise ConfigError("unknown recipe", got=repr(name), expected="one of " + ", ".join(RECIPES))
    recipe = RECIPES.get(name)
    if recipe and table.get("name", recipe.objective["name"]) == recipe.objective["name"]:
        table = dict(recipe.objective) | table
    filled = {"mask_ratio": recipe.mask_ratio} if recipe else {}
    return filled | dict(data) | {"recipe": name, "objective": {"name": "latent"} | table | dict(terms)}


def _table(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = data.get(name, {})
    if not isinstance(part, Mapping):
        raise ConfigError(f"{name} has a wrong type", got=repr(part), expected=f"a table, [{name}]")
    return dict(part)
