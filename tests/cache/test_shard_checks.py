"""Every kind of damage is found and called by its name, and no damage is ever read as a number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from stjepa_cli.cache.request import Part
from stjepa_cli.cache.shard_checks import check_shard
from stjepa_cli.cache.verify import VerifyResult, verify
from stjepa_cli.core.errors import CacheError
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.store.latent_store import LatentStore
from tests.caches import FAILED, NUM_CLIPS, fill_shard, make_cache, row_values
from tests.permissions import ordinary_user

FLIPS = 200


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checks") / "cache"
    make_cache(path, rows_per_shard=16)
    return path


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checks") / "rich"
    make_cache(path, num_clips=12, dtype="int8", frames=True, num_views=2, rows_per_shard=8)
    return path


@pytest.fixture
def cache(filled: Path, tmp_path: Path) -> Path:
    shutil.copytree(filled, tmp_path / "cache")
    return tmp_path / "cache"


def shard_file(cache: Path, shard: int, column: str = "latents") -> Path:
    return cache / column / "c" / str(shard) / ("0" if column != "latents" else "0/0")


def flip(path: Path, offset: int, mask: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def kinds(result: VerifyResult) -> set[str]:
    return {fault.kind for fault in result.faults}


def test_a_whole_cache_passes_every_level(filled: Path, rich: Path) -> None:
    for path, rows in ((filled, NUM_CLIPS), (rich, 24)):
        for level in ("quick", "full"):
            found = verify(path, level=level, runtime=Runtime(workers=2))
            assert (found.ok, found.expected, found.present, found.failed, found.missing) == (True, rows, rows - 1, 1, 0), found.faults


@pytest.mark.parametrize(("name", "columns"), [("filled", ("latents",)), ("rich", ("latents", "scales", "frames"))])
def test_any_flipped_byte_of_a_data_file_is_found_and_never_read_as_a_number(
    name: str, columns: tuple[str, ...], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = tmp_path / "cache"
    shutil.copytree(request.getfixturevalue(name), path)
    store = LatentStore.open(path)
    usable = store.usable_rows()
    whole = store.read(usable).view(np.uint16)
    draw = np.random.default_rng(0)
    for _ in range(FLIPS):
        column, shard = columns[draw.integers(len(columns))], int(draw.integers(store.header.num_shards))
        file = shard_file(path, shard, column)
        offset, mask = int(draw.integers(file.stat().st_size)), 1 << int(draw.integers(8))
        flip(file, offset, mask)
        faults = check_shard(store, shard, every_byte=True)
        assert {fault.kind for fault in faults} == {"corrupt"}, (column, shard, offset)
        faulty = {fault.id for fault in faults}
        for place, row in enumerate(usable):
            if row in store.rows_of(shard):
                assert_right_or_refused(store, row, whole[place], faulty, column)
        flip(file, offset, mask)
    assert verify(path, level="full").ok


def assert_right_or_refused(store: LatentStore, row: int, whole: npt.NDArray[np.uint16], faulty: set[str], column: str) -> None:
    try:
        found = store.read([row])[0]
        if column == "frames":
            store.read_frames([row])
    except CacheError:
        assert store.record(row).name in faulty
    else:
        assert np.array_equal(found.view(np.uint16), whole)


def test_a_flipped_byte_names_the_clip_that_it_is_in(cache: Path) -> None:
    store = LatentStore.open(cache)
    size = store.manifest(1).rows[0].chunks["latents"].length + 4
    flip(shard_file(cache, 1), 3 * size + 11)
    found = verify(cache, level="full")
    assert found.corrupt == ("1019",)
    assert (found.ok, found.present) == (False, NUM_CLIPS - 2)
    assert verify(cache).ok  # quick does not read every byte
    with pytest.raises(CacheError, match=r"clip 1019 .* is corrupt"):
        store.read([19])


def cut_short(cache: Path) -> None:
    data = shard_file(cache, 1).read_bytes()
    shard_file(cache, 1).write_bytes(data[:-20])


def grown(cache: Path) -> None:
    with shard_file(cache, 1).open("ab") as file:
        file.write(b"more")


def emptied(cache: Path) -> None:
    shard_file(cache, 1).write_bytes(b"")


def index_damaged(cache: Path) -> None:
    flip(shard_file(cache, 1), shard_file(cache, 1).stat().st_size - 100)


def gone(cache: Path) -> None:
    shard_file(cache, 1).unlink()


def unfinished(cache: Path) -> None:
    (cache / "marks" / "1.json").unlink()


def manifest_damaged(cache: Path) -> None:
    (cache / "marks" / "1.json").write_text('{"shard": 1, "rows": [')


def manifest_of_another_shard(cache: Path) -> None:
    shutil.copy(cache / "marks" / "2.json", cache / "marks" / "1.json")


def not_built(cache: Path) -> None:
    unfinished(cache)
    gone(cache)


@pytest.mark.parametrize(
    ("damage", "kind", "reason"),
    [
        (cut_short, "corrupt", "is cut short"),
        (grown, "corrupt", "is too long"),
        (emptied, "corrupt", "is cut short: 0 bytes"),
        (index_damaged, "corrupt", "has a damaged index"),
        (gone, "missing", "is finished but its file"),
        (unfinished, "missing", "has a file (latents) but no manifest"),
        (not_built, "missing", "shard 1 is not built yet"),
        (manifest_damaged, "corrupt", "is damaged"),
        (manifest_of_another_shard, "foreign", "belongs to another shard"),
    ],
)
@pytest.mark.parametrize("level", ["quick", "full"])
def test_each_damage_is_named_for_what_it_is(cache: Path, level: str, damage: Callable[[Path], None], kind: str, reason: str) -> None:
    damage(cache)
    found = verify(cache, level=level)
    assert (found.ok, kinds(found)) == (False, {kind})
    assert [fault.id for fault in found.faults] == [str(1016 + i) for i in range(16)]
    assert all(reason in fault.reason for fault in found.faults), found.faults[0]
    assert found.present == NUM_CLIPS - 16 - 1
    if damage not in (cut_short, grown, index_damaged):  # there the bytes of clip 1020 are still the right ones
        with pytest.raises(CacheError):
            LatentStore.open(cache).read([20])


@pytest.mark.parametrize("level", ["quick", "full"])
def test_swapped_shards_are_foreign_and_their_owners_named(cache: Path, level: str) -> None:
    one, two = shard_file(cache, 1), shard_file(cache, 2)
    body = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(body)
    found = verify(cache, level=level)
    assert kinds(found) == {"foreign"}
    assert len(found.foreign) == 32
    assert found.faults[0].reason == "holds the latents of clip 1032 of shard 2"
    with pytest.raises(CacheError, match="holds something else"):
        LatentStore.open(cache).read([16])


@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_shard_of_another_cache_is_foreign_even_with_its_own_manifest(cache: Path, tmp_path: Path, level: str) -> None:
    make_cache(tmp_path / "other", first=1000, seed=1, rows_per_shard=16, num_views=1, view_seed=9)
    shutil.copy(shard_file(tmp_path / "other", 1), shard_file(cache, 1))
    found = verify(cache, level=level)
    assert (kinds(found), len(found.foreign)) == ({"foreign"}, 16)
    assert found.faults[0].reason == "holds the latents of a row of another cache"
    shutil.copy(tmp_path / "other" / "marks" / "1.json", cache / "marks" / "1.json")
    found = verify(cache, level=level)
    assert (kinds(found), len(found.foreign)) == ({"foreign"}, 16)
    assert "belongs to another cache" in found.faults[0].reason


def test_a_whole_shard_with_other_failures_is_foreign(cache: Path) -> None:
    shutil.copy(shard_file(cache, 0), shard_file(cache, 1))  # it holds one row less
    assert kinds(verify(cache)) == {"foreign"}


def test_files_that_do_not_belong_are_extra(cache: Path) -> None:
    shutil.copytree(cache / "latents" / "c" / "1", cache / "latents" / "c" / "99")
    (cache / "marks" / "99.json").write_text("{}")
    (cache / "notes.txt").write_text("mine")
    found = verify(cache)
    assert not found.ok
    assert found.extra == ("latents/c/99/0/0", "marks/99.json", "notes.txt")
    assert found.present == NUM_CLIPS - 1


def test_an_edited_header_is_one_sentence(cache: Path) -> None:
    text = (cache / "zarr.json").read_text().replace('"hog"', '"gho"')
    (cache / "zarr.json").write_text(text)
    with pytest.raises(CacheError, match="was edited"):
        verify(cache)


def test_repair_sets_exactly_the_bad_manifests_aside_and_a_build_fills_exactly_those(cache: Path) -> None:
    whole = {path: path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}
    cut_short(cache)
    gone_file = shard_file(cache, 3)
    gone_file.unlink()
    (cache / "marks" / "4.json").write_text("x")
    flip(shard_file(cache, 5), 100)
    assert not verify(cache, level="full", repair=True).ok
    store = LatentStore.open(cache)
    assert store.pending() == [1, 3, 4, 5]
    assert (cache / "marks" / "4.json.bad").read_text() == "x"
    assert verify(cache).extra == ()
    for shard in store.pending():
        fill_shard(store, shard, row_values())
    store.tidy()
    assert verify(cache, level="full").ok
    assert {path: path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()} == whole


@pytest.mark.parametrize("name", ["marks/1.json", "latents/c/1/0/0", "latents/c/1"])
def test_a_shard_that_cannot_be_read_is_said_and_repair_leaves_it_alone(cache: Path, name: str) -> None:
    (cache / name).chmod(0)
    try:
        with ordinary_user():
            found = verify(cache, level="full", repair=True)
    finally:
        (cache / name).chmod(0o755)
    assert (kinds(found), len(found.unreadable), found.present) == ({"unreadable"}, 16, NUM_CLIPS - 16 - 1)
    assert "Permission denied" in found.faults[0].reason
    assert LatentStore.open(cache).pending() == []
    assert verify(cache, level="full").ok


def test_gaps_are_told_by_part(cache: Path) -> None:
    for shard in (0, 3, 4, 6):
        (cache / "marks" / f"{shard}.json").unlink()
    gaps = verify(cache, parts=3).gaps
    assert [(gap.part, gap.shards, gap.rows) for gap in gaps] == [("1/3", "0", 16), ("2/3", "3", 16), ("3/3", "4 6", 16 + 4)]
    assert gaps[1].command == f"stjepa cache build --cache {cache} --part 2/3"
    many = verify(cache, parts=99_999_999).gaps  # more parts than shards: each shard is a part of its own
    assert [gap.shards for gap in many] == ["0", "3", "4", "6"]
    assert [list(Part.parse(gap.part).shards(7)) for gap in many] == [[0], [3], [4], [6]]


def test_the_failed_row_is_known_and_no_fault(filled: Path) -> None:
    found = verify(filled, level="full")
    assert (found.failed, found.faults) == (1, ())
    assert json.loads((filled / "failures.jsonl").read_text())["row"] == FAILED
