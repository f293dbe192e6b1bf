"""One description of a run: defaults, file, flags; nothing unknown, nothing of a wrong type."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stjepa_cli.core.config import DEFAULT_TEACHER, PRESETS, RunConfig
from stjepa_cli.core.errors import ConfigError
from stjepa_cli.core.locations import location
from stjepa_cli.core.places import cache_name, cache_path, ssv2_root, ucf101_root
from stjepa_cli.core.serialization import from_dict, read_toml, to_dict, write_toml
from stjepa_cli.training.recipes import resolve_run

PLACES = {"data_root": Path("data"), "cache": Path("cache")}


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('epochs = 7\nseed = 3\npreset = "tiny"\n[optimizer]\nlr = 0.5\nclip_norm = 2.0\n')
    run = resolve_run(PLACES, file=file, flags={"epochs": 9, "lr": 0.25, "batch_size": None})
    assert (run.epochs, run.seed, run.batch_size) == (9, 3, RunConfig.batch_size)
    assert (run.optimizer.lr, run.optimizer.clip_norm) == (0.25, 2.0)
    assert (run.student, run.predictor) == PRESETS["tiny"]


def test_a_resolved_run_written_as_toml_gives_the_same_run(tmp_path: Path) -> None:
    run = resolve_run(PLACES, flags={"preset": "small", "max_steps": 5, "mask_ratio": 0.4})
    write_toml(tmp_path / "run.toml", run)
    assert resolve_run({}, file=tmp_path / "run.toml") == run
    assert from_dict(RunConfig, to_dict(run), where="test") == run


def test_urls_in_a_run_survive_being_written(tmp_path: Path) -> None:
    run = resolve_run({"data_root": "memory://bucket/ssv2", "cache": location("memory://bucket//odd/cache")})
    assert to_dict(run)["data_root"] == "memory://bucket/ssv2"
    write_toml(tmp_path / "run.toml", run)
    assert 'cache = "memory://bucket//odd/cache"' in (tmp_path / "run.toml").read_text()
    again = resolve_run({}, file=tmp_path / "run.toml")
    assert again == run
    assert again.data_root == location("memory://bucket/ssv2")
    assert again.checkpoints == Path("checkpoints")


def test_a_file_url_in_a_run_is_its_path() -> None:
    run = resolve_run({"data_root": "file:///data/v2", "cache": "cache"})
    assert (run.data_root, run.cache) == (Path("/data/v2"), Path("cache"))


def test_a_place_that_is_no_text_or_a_url_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="cache has a wrong type: got 3, expected Location"):
        resolve_run({"data_root": "data", "cache": 3})
    with pytest.raises(ConfigError, match="unknown protocol: got foo://data"):
        resolve_run({"data_root": "foo://data", "cache": "cache"})


def test_sizes_in_the_file_change_a_preset_and_a_preset_flag_brings_its_own(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('preset = "tiny"\n[student]\nnum_joint = 5\n')
    assert resolve_run(PLACES, file=file).student == dataclasses.replace(PRESETS["tiny"][0], num_joint=5)
    assert resolve_run(PLACES, file=file, flags={"preset": "base"}).student == PRESETS["base"][0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 4", "unknown key: got epoch, expected one of"),
        ("[optimizer]\nlearning_rate = 1.0", "unknown key: got learning_rate"),
        ('epochs = "four"', "epochs has a wrong type: got 'four', expected int"),
        ("epochs = true", "epochs has a wrong type"),
        ("optimizer = 3", "optimizer has a wrong type: got 3, expected a table"),
        ("epochs = 0", "epochs must be at least 1: got 0"),
        ("mask_ratio = 1.5", "mask_ratio is a fraction: got 1.5"),
        ('preset = "huge"', "unknown preset: got 'huge', expected one of base, small, tiny"),
        ("[optimizer]\nlr = -1.0", "lr must be positive and finite: got -1.0"),
        ("[student]\nnum_heads = 7", "multiple of its heads"),
        ("epochs = ", "cannot be read as TOML"),
        ("[clip]\nnum_frames = 1979-05-27T07:32:00Z", "num_frames has a wrong type"),
        ("[clip]\nsize_px = 100", "the size a multiple of the patch"),
        ("masks_per_clip = 2147483647", "masks_per_clip is out of range: got 2147483647, expected 1 to 1024"),
        ("recipe = []", "unknown recipe"),
        ("preset = [[[]]]", "unknown preset"),
        ("epochs = 99999999999999999999", "epochs is out of range: got 99999999999999999999, expected 1 to 2147483647"),
        ("[student]\nnum_heads = 0", "num_heads of the student must be at least 1: got 0"),
        ("[student]\ndim = -96", "dim of the student must be at least 2: got -96"),
        ("[student]\ndim = 9223372036854775808", "dim of the student is out of range"),
        ("[student]\nnum_joint = 9223372036854775808", "num_joint is out of range"),
        ("[student]\nnum_joint = -1", "num_joint cannot be negative: got -1"),
        ("[predictor]\ndepth = 99999999", "depth is out of range"),
        ("[predictor]\nposition_scale = nan", "position_scale is out of range: got nan"),
        ("[optimizer]\nbeta1 = 1.0", "beta1 is out of range: got 1.0"),
        ("[optimizer]\nweight_decay = -1.0", "weight_decay cannot be negative: got -1.0"),
        ("[optimizer]\nfinal_weight_decay = inf", "final_weight_decay is out of range: got inf"),
        ("checkpoint_every = '" + "9" * 5000 + "m'", "checkpoint_every is steps or minutes"),
        ("schedule = 3", "schedule is out of range: got 3, expected 1 to 2"),
        ("a = " + "[" * 5000, "cannot be read as TOML"),
        ("[" + "a." * 5000 + "b]", "unknown key"),
    ],
)
def test_a_wrong_file_is_one_clear_sentence(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="(?s)" + message.replace("(", r"\(")) as caught:
        resolve_run(PLACES, file=file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        read_toml(tmp_path / "none.toml")


def test_environment_variables_move_the_default_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STJEPA_SSV2", raising=False)
    monkeypatch.delenv("STJEPA_CACHE", raising=False)
    assert ssv2_root() == Path("/mnt/ssv2")
    assert cache_path(None, ssv2_root()) == Path("/mnt/ssv2/cache_videomae_huge_384")
    monkeypatch.setenv("STJEPA_SSV2", "/data/v2")
    assert cache_path(None, ssv2_root()) == Path("/data/v2/cache_videomae_huge_384")
    assert cache_path(Path("mine"), ssv2_root(Path("other"))) == Path("mine")


def test_the_default_cache_is_the_one_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STJEPA_CACHE", raising=False)
    for name in ("cache_hog_384", "cache_vjepa2_vitl_fpc64_256_384", "cache_videomae_huge_384"):
        (tmp_path / name).mkdir()
    assert cache_path(None, tmp_path).name == "cache_videomae_huge_384"  # folders that are no caches
    (tmp_path / "cache_hog_384" / "zarr.json").touch()
    assert cache_path(None, tmp_path).name == "cache_hog_384"
    (tmp_path / "cache_vjepa2_vitl_fpc64_256_384" / "zarr.json").touch()
    assert cache_path(None, tmp_path).name == "cache_videomae_huge_384"  # of several, that of the default teacher


def test_the_name_of_a_cache_comes_from_its_teacher() -> None:
    assert cache_name(DEFAULT_TEACHER, 384) == "cache_videomae_huge_384"
    assert cache_name("facebook/vjepa2-vitl-fpc64-256", 192) == "cache_vjepa2_vitl_fpc64_256_192"
    assert cache_name("runs/a/checkpoint_step5.safetensors", 384) == "cache_checkpoint_step5_384"
    assert cache_name("/models/mine/", 384) == "cache_mine_384"
    assert cache_name("../..", 384) == "cache_teacher_384"


def test_flags_and_environment_variables_may_be_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STJEPA_UCF101", "memory://bucket/ucf101")
    monkeypatch.delenv("STJEPA_CACHE", raising=False)
    assert ucf101_root() == location("memory://bucket/ucf101")
    root = ssv2_root("memory://bucket/ssv2")
    assert str(cache_path(None, root)) == "memory://bucket/ssv2/cache_videomae_huge_384"
    monkeypatch.setenv("STJEPA_CACHE", "memory://fast/cache")
    assert cache_path(None, root) == location("memory://fast/cache")
    assert cache_path("file:///cache", root) == Path("/cache")
