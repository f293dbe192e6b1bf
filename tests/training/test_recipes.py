"""Recipes: which settings win, what old files mean, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from stjepa_cli.core.config import RunConfig
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.serialization import write_toml
from stjepa_cli.training.cost import recipe_costs
from stjepa_cli.training.objectives.base import settings_of
from stjepa_cli.training.recipes import DEFAULT_RECIPE, RECIPES, resolve_run

PLACES = {"data_root": "data", "cache": "cache"}


def resolved(text: str, folder: Path, **flags: object) -> RunConfig:
    (folder / "run.toml").write_text(text)
    return resolve_run(PLACES, file=folder / "run.toml", flags=flags)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_resolves_and_its_settings_are_written_out(name: str, tmp_path: Path) -> None:
    run = resolve_run(PLACES, flags={"recipe": name})
    assert run.recipe == name
    assert run.mask_ratio == RECIPES[name].mask_ratio
    write_toml(tmp_path / "run.toml", run)
    assert resolve_run({}, file=tmp_path / "run.toml") == run
    assert set(run.objective) == {"name", *settings_of(run).__dataclass_fields__}


def test_without_a_word_the_default_recipe_is_taken() -> None:
    assert resolve_run(PLACES) == resolve_run(PLACES, flags={"recipe": DEFAULT_RECIPE})


def test_a_flag_wins_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    text = 'recipe = "umt"\nmask_ratio = 0.3\n[objective]\nvisible_weight = 2.0\n'
    run = resolved(text, tmp_path)
    assert (run.mask_ratio, settings_of(run).visible_weight, settings_of(run).hidden_weight) == (0.3, 2.0, 0.0)
    run = resolved(text, tmp_path, visible_weight=3.0, mask_ratio=0.6)
    assert (run.mask_ratio, settings_of(run).visible_weight) == (0.6, 3.0)
    run = resolved(text, tmp_path, recipe="st-jepa")
    assert (run.mask_ratio, settings_of(run).visible_weight, settings_of(run).hidden_weight) == (0.75, 0.0, 1.0)
    run = resolved(text, tmp_path, objective="pixels")
    assert (run.recipe, run.objective) == ("", {"name": "pixels", "normalise": True})


def test_a_file_of_an_earlier_version_means_what_it_meant(tmp_path: Path) -> None:
    text = 'objective = "latent"\nloss = "l1"\nvisible_weight = 0.5\nrecompute = true\nval_share = 0.1\nmask_ratio = 0.5\n'
    run = resolved(text, tmp_path)
    assert (run.activation_checkpointing, run.val_fraction, run.recipe) == (True, 0.1, "")
    settings = settings_of(run)
    assert (settings.hidden_weight, settings.visible_weight, settings.visible_predictor_weight, settings.loss) == (1.0, 0.0, 0.5, "l1")


@pytest.mark.parametrize("text", ["mask_ratio = 0.5", "masks_per_clip = 2", "[objective]\nvisible_weight = 0.5"])
def test_settings_of_the_masks_mean_the_masked_default(text: str, tmp_path: Path) -> None:
    assert resolved("", tmp_path).recipe == "dense"
    assert resolved(text, tmp_path).recipe == "mixed"


def test_masks_of_a_run_that_hides_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--mask-ratio has no effect: no step of this run hides tokens"):
        resolved("", tmp_path, recipe="dense", mask_ratio=0.5)
    assert resolved("", tmp_path, mask_ratio=0.5).recipe == "mixed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('recipe = "best"', "unknown recipe: got 'best', expected one of dense, mixed"),
        ('[objective]\nname = "magic"', "unknown objective: got 'magic', expected one of latent, pixels"),
        ("[objective]\nname = 3", r"\[objective\] has no name"),
        ("objective = 3", "objective has a wrong type"),
        (
            '[objective]\nname = "pixels"\nvisible_weight = 1.0',
            r"\[objective\] has an unknown key: got visible_weight, expected one of normalise",
        ),
        ('loss = "l1"\n[objective]\nname = "latent"', r"belong to the table \[objective\]"),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolved(text, tmp_path)
    assert "\n" not in str(caught.value)


def test_the_default_cache_is_for_objectives_that_need_latents(tmp_path: Path) -> None:
    assert resolve_run(PLACES).cache == Path("cache")
    assert resolve_run(PLACES, flags={"recipe": "videomae"}).cache is None
    assert resolve_run(PLACES, flags={"recipe": "videomae", "cache": "frames"}).cache == Path("frames")
    write_toml(tmp_path / "run.toml", resolve_run(PLACES, flags={"objective": "pixels"}))
    assert resolve_run(PLACES, file=tmp_path / "run.toml").cache is None, "a run goes on as it was, whatever the default"


def test_costs_are_counted_without_weights() -> None:
    costs = recipe_costs()
    assert set(costs) == set(RECIPES)
    assert costs["mixed"]["gflops_per_clip"] == pytest.approx(costs["st-jepa"]["gflops_per_clip"], rel=0.02)
    assert costs["dense"]["gflops_per_clip"] > 2.5 * costs["mixed"]["gflops_per_clip"]
    assert costs["videomae"]["needs"] == "clips"
