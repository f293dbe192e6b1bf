"""Requests: options find their group, parts cover all shards, nonsense is refused."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from stjepa_cli.cache.request import WHOLE, BuildRequest, Part, Source, Storage, TeacherChoice, default_cache, parse_layers
from stjepa_cli.cache.verify import runs_of
from stjepa_cli.commands.cache import build as build_command
from stjepa_cli.core.errors import CacheError, ConfigError
from stjepa_cli.store.folder import read_header
from tests.caches import DIM, make_cache


def test_flat_options_go_to_the_group_that_has_them() -> None:
    request = BuildRequest.of(Path("data"), Path("cache"), teacher="hog", limit=3, views=2, engine="ray", layers=(1, 2))
    assert request.source == Source(Path("data"), limit=3)
    assert request.teacher == TeacherChoice("hog", layers=(1, 2))
    assert (request.storage, request.engine, request.part) == (Storage(views=2), "ray", WHOLE)
    assert request.replace(views=1, limit=None, cache=Path("other")).source.limit is None
    with pytest.raises(TypeError, match="no option colour"):
        request.replace(colour="red")


def test_every_option_of_a_request_is_an_option_of_the_command_with_the_same_default() -> None:
    shown = inspect.signature(build_command).parameters
    elsewhere = {"clip", "layers", "part", "dtype", "rows_per_shard"}  # other names or other types of value
    assert elsewhere < BuildRequest.option_names()
    defaults = {f.name: f.default for group in (Source, TeacherChoice, Storage, BuildRequest) for f in fields(group)}
    for name in BuildRequest.option_names() - elsewhere:
        assert shown[name].default == defaults[name], name
    assert (str(shown["dtype"].default), shown["part"].default) == (Storage.dtype, str(WHOLE))


@pytest.mark.parametrize("name", ["latent_dim", "fit_clips", "views", "rows_per_shard", "limit"])
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_below_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1: got {value}"):
        BuildRequest.of(Path("data"), Path("cache")).replace(**{name: value})
    with pytest.raises(ConfigError, match=f"{name} is out of range: got {10**20}"):
        BuildRequest.of(Path("data"), Path("cache")).replace(**{name: 10**20})


def test_parts_are_all_shards_once() -> None:
    for count in (1, 2, 3, 8, 40):
        shards = [shard for i in range(count) for shard in Part(i + 1, count).shards(29)]
        assert shards == list(range(29))
        assert all(shard in Part.holding(shard, 29, count).shards(29) for shard in shards)
    assert [(run.start, run.stop) for run in runs_of([1, 2, 3, 7, 9, 10])] == [(1, 4), (7, 8), (9, 11)]


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2", "\u00b2/\u00b3", "1/" + "9" * 40])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a part is written i/n"):
        Part.parse(text)


def test_layers_are_numbers_with_commas() -> None:
    assert (parse_layers(None), parse_layers("8, 16,-1")) == (None, (8, 16, -1))
    with pytest.raises(ConfigError, match="layers are numbers separated by commas: got '8;9'"):
        parse_layers("8;9")


def test_the_default_cache_of_yesterday_is_gone_on_with_by_its_own_teacher_alone(tmp_path: Path) -> None:
    assert default_cache(tmp_path, "hog", 384) == tmp_path / "cache_hog_384"
    make_cache(tmp_path / "cache_videomae_huge_384", num_clips=2)  # of the teacher `tiny`, under the name that every cache had
    assert default_cache(tmp_path, "tiny", DIM) == tmp_path / "cache_videomae_huge_384"
    assert default_cache(tmp_path, "tiny", DIM + 1) == tmp_path / f"cache_tiny_{DIM + 1}"
    assert default_cache(tmp_path, "hog", 384) == tmp_path / "cache_hog_384"
    make_cache(tmp_path / f"cache_tiny_{DIM}", num_clips=2)
    assert default_cache(tmp_path, "tiny", DIM) == tmp_path / f"cache_tiny_{DIM}"
    with pytest.raises(CacheError, match=f"Beside it there is cache_tiny_{DIM}, cache_videomae_huge_384: name one with --cache"):
        read_header(tmp_path / "cache_none")
