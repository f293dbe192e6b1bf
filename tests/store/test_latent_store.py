"""The store: bit-exact, plain Zarr, and never a wrong number."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import zarr

from stjepa_cli.core.errors import CacheError
from stjepa_cli.core.locations import Location
from stjepa_cli.store.errors import UnreadableError
from stjepa_cli.store.folder import remove_remote_cache
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.records import header_difference
from stjepa_cli.store.shard_format import roomy
from tests.caches import (
    DIM,
    FAILED,
    NUM_CLIPS,
    SPEC,
    cache_header,
    clip_rows,
    fill_shard,
    fitted_projection,
    make_cache,
    row_pixels,
    row_values,
)
from tests.permissions import ordinary_user

GOOD = [row for row in range(NUM_CLIPS) if row != FAILED]

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have a Zarr V3 specification.*")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "cache"
    make_cache(path)
    return path


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With int8 latents, frames, and three views of each clip."""
    path = tmp_path_factory.mktemp("store") / "rich"
    make_cache(path, num_clips=30, dtype="int8", frames=True, num_views=3)
    return path


@pytest.fixture
def cache(filled: Path, tmp_path: Path) -> Path:
    shutil.copytree(filled, tmp_path / "cache")
    return tmp_path / "cache"


def bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    return values.view(np.uint16)


def through_zarr(path: Path, name: str) -> npt.NDArray[Any]:
    return np.asarray(zarr.open_group(path, mode="r")[name][...])  # type: ignore[index]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_rows_come_back_bit_for_bit_in_any_order(filled: Path, threads: int) -> None:
    store, values = LatentStore.open(filled), row_values()
    wanted = [*GOOD[::-3], 3, 3]
    assert np.array_equal(bits(store.read(wanted, threads=threads)), bits(values[wanted]))
    assert store.usable_rows() == GOOD
    assert store.read([]).shape == (0, SPEC.grid.num_tokens, DIM)


def test_a_buffer_is_filled_again_and_again(filled: Path) -> None:
    store, values = LatentStore.open(filled), row_values()
    out = store.buffer(4)
    for rows in ([0, 1, 2, 3], [99, 4, 50, 6]):
        assert store.read(rows, out) is out
        assert np.array_equal(bits(out), bits(values[rows]))
    with pytest.raises(ValueError, match="are read into contiguous float16"):
        store.read([1], out)
    with pytest.raises(ValueError, match="are read into contiguous float16"):
        store.read([0, 1], np.empty((2, SPEC.grid.num_tokens, DIM), np.float32))


def test_a_roomy_array_starts_in_the_middle_of_a_page() -> None:
    array = roomy((3, 1568, 384), np.float16)
    assert (array.shape, array.dtype.name, array.flags.c_contiguous) == ((3, 1568, 384), "float16", True)
    assert array.ctypes.data % 4096 == 2048


def test_zarr_reads_the_same_bytes_and_sees_nan_where_a_clip_failed(filled: Path) -> None:
    found, values = through_zarr(filled, "latents"), row_values()
    assert np.array_equal(bits(found[GOOD]), bits(values[GOOD]))
    assert np.isnan(found[FAILED]).all()


def test_tensorstore_reads_the_same_bytes(filled: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    array = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(filled / "latents")}}).result()
    found = np.asarray(array[...].read().result())
    assert np.array_equal(bits(found[GOOD]), bits(row_values()[GOOD]))


def test_zarr_reads_scales_and_jpegs_too(rich: Path) -> None:
    store = LatentStore.open(rich)
    rows = store.usable_rows()
    numbers, scales = through_zarr(rich, "latents"), through_zarr(rich, "scales")
    product = (numbers.astype(np.float32) * scales[..., None].astype(np.float32)).astype(np.float16)
    assert np.array_equal(store.read(rows), product[rows])
    jpeg = through_zarr(rich, "frames")[7, 0]
    assert jpeg[:2] == b"\xff\xd8"
    assert through_zarr(rich, "frames")[FAILED, 0] == b""


def test_shards_are_the_bytes_that_zarr_writes(filled: Path, tmp_path: Path) -> None:
    values = through_zarr(filled, "latents")
    shape = values.shape[1:]
    array = zarr.create_array(
        tmp_path / "peer",
        shape=values.shape,
        dtype="float16",
        chunks=(1, *shape),
        shards=(64, *shape),
        compressors=[zarr.codecs.Crc32cCodec()],
        fill_value=float("nan"),
    )
    array[...] = values
    for shard in ("0", "1"):
        peer = (tmp_path / "peer" / "c" / shard / "0" / "0").read_bytes()
        assert peer == (filled / "latents" / "c" / shard / "0" / "0").read_bytes()


def test_other_codecs_are_read_through_zarr_with_the_same_result(cache: Path) -> None:
    values = through_zarr(cache, "latents")
    shutil.rmtree(cache / "latents")
    array = zarr.create_array(
        cache / "latents",
        shape=values.shape,
        dtype="float16",
        chunks=(1, *values.shape[1:]),
        shards=(64, *values.shape[1:]),
        compressors=[zarr.codecs.ZstdCodec(level=3)],
        fill_value=float("nan"),
    )
    array[...] = values
    store = LatentStore.open(cache)
    assert not store.reader.direct
    assert np.array_equal(bits(store.read(GOOD)), bits(row_values()[GOOD]))
    array[4] = array[6]
    with pytest.raises(CacheError, match=r"clip 1004 .* holds something else"):
        store.read([4])


def test_an_object_store_gives_the_same_rows(bucket: Location) -> None:
    store = make_cache(bucket / "cache", num_clips=30, dtype="int8", frames=True, num_views=3)
    assert not store.reader.direct
    again = LatentStore.open(bucket / "cache")
    rows = again.usable_rows()
    assert len(rows) == 89
    assert again.pending() == []
    assert [failure.row for failure in again.failures()] == [FAILED]
    assert again.projection().digest == fitted_projection().digest
    values = row_values(90)
    error = np.abs(again.read(rows).astype(np.float32) - np.nan_to_num(values[rows].astype(np.float32)))
    assert error.max() < 0.02
    assert again.read_frames([0, 40]).shape == (2, 4, 3, 32, 32)
    remove_remote_cache(bucket / "cache")
    with pytest.raises(CacheError, match="there is no cache"):
        LatentStore.open(bucket / "cache")


def test_frames_come_back_and_a_cache_without_them_says_so(rich: Path, filled: Path) -> None:
    store = LatentStore.open(rich)
    found = store.read_frames([0, 89, 17], threads=2)
    for i, row in enumerate((0, 89, 17)):
        assert (found[i].float() - row_pixels(row).float()).abs().mean() < 6
    with pytest.raises(CacheError, match="keeps no frames"):
        LatentStore.open(filled).read_frames([0])


def test_views_of_a_clip_are_rows_one_after_the_other(rich: Path) -> None:
    store = LatentStore.open(rich)
    assert [(store.clip_of(row)[0].id, store.clip_of(row)[1]) for row in (0, 1, 2, 3)] == [
        ("1000", 0),
        ("1000", 1),
        ("1000", 2),
        ("1001", 0),
    ]
    assert store.record(FAILED).name == "1001 view 2"


def test_the_projection_comes_back_whole(filled: Path) -> None:
    assert LatentStore.open(filled).projection().digest == fitted_projection().digest


def test_what_a_row_was_made_from_comes_back(filled: Path) -> None:
    ref = LatentStore.open(filled).ref(7, Path("/videos"))
    assert ref.path == Path("/videos/1007.webm")
    assert (ref.frame_indices, ref.crop.left, ref.size_px) == ((0, 1, 2, 3), 8, 32)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_what_their_parent_reads(filled: Path, method: str) -> None:
    store = LatentStore.open(filled)
    store.read(GOOD, threads=2)  # the parent has threads of its own by now
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=read_elsewhere, args=(store, queue))
    process.start()
    found = queue.get(timeout=60)
    process.join()
    assert np.array_equal(bits(found), bits(row_values()[[1, 99]]))
    assert pickle.loads(pickle.dumps(store)).read([2]).shape == (1, SPEC.grid.num_tokens, DIM)


def read_elsewhere(store: LatentStore, queue: Any) -> None:
    queue.put(store.read([1, 99], threads=2))


def test_a_shard_without_its_manifest_is_not_read(cache: Path) -> None:
    (cache / "marks" / "1.json").unlink()
    store = LatentStore.open(cache)
    assert store.pending() == [1]
    with pytest.raises(CacheError, match=r"shard 1 of .* is not finished"):
        store.read([70])


def test_a_manifest_without_its_shard_is_one_sentence(cache: Path) -> None:
    (cache / "latents" / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(CacheError, match=r"clip 1070 .* its shard 1 of latents is gone"):
        LatentStore.open(cache).read([70])


def test_a_failed_row_has_its_reason_and_no_latents(filled: Path) -> None:
    store = LatentStore.open(filled)
    assert [(failure.id, failure.row, failure.error) for failure in store.failures()] == [("1005", 5, "the file is empty")]
    lines = (filled / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"id": "1005", "view": 0, "row": 5, "error": "the file is empty"}]
    with pytest.raises(CacheError, match="has no latents: the file is empty"):
        store.read([FAILED])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("zarr.json", "", "is not a cache of stjepa"),
        ("zarr.json", "{}", "is not a cache of stjepa"),
        ("clips.jsonl", '{"id": "1", "video": "1.webm"}\n', "is not the list"),
        ("clips.jsonl", "not json\n", "is damaged"),
        ("latents/zarr.json", '{"shape": [1, 2, 3]}', "is damaged"),
        ("latents/zarr.json", '{"shape": [1, 2, 3], "chunk_grid": {"configuration": {"chunk_shape": [1]}}, "codecs": []}', "is not what"),
    ],
)
def test_a_damaged_part_is_refused_when_the_cache_is_opened(cache: Path, name: str, change: str, message: str) -> None:
    (cache / name).write_text(change)
    with pytest.raises(CacheError, match=message):
        LatentStore.open(cache)


@pytest.mark.parametrize("header", [[], 5, None, "x", {}, {"rows_per_shard": 0}, {"num_clips": -1}, {"latent_dim": 0}, {"projection": 3}])
def test_a_header_that_is_none_is_one_sentence(cache: Path, header: Any) -> None:
    meta = json.loads((cache / "zarr.json").read_text())
    if isinstance(header, dict) and header:
        header = meta["attributes"]["stjepa"] | header
    meta["attributes"]["stjepa"] = header
    (cache / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(CacheError, match=r"is not a cache of stjepa, or its header is damaged: got .*Build it again"):
        LatentStore.open(cache)


@pytest.mark.parametrize("text", ["[]", "5", "null", "[" * 100_000, '{"attributes": []}', '{"attributes": null}'])
def test_a_group_file_that_is_no_group_is_one_sentence(cache: Path, text: str) -> None:
    (cache / "zarr.json").write_text(text)
    with pytest.raises(CacheError, match="is not a cache of stjepa, or its header is damaged"):
        LatentStore.open(cache)


def test_a_cache_of_a_future_version_is_refused_in_words(cache: Path) -> None:
    meta = json.loads((cache / "zarr.json").read_text())
    meta["attributes"]["stjepa"] |= {"schema": 99, "surprise": 1}
    (cache / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(CacheError, match="was written by a newer stjepa: got schema 99, expected 2"):
        LatentStore.open(cache)


@pytest.mark.parametrize("name", ["zarr.json", "clips.jsonl", "latents/zarr.json", "marks/1.json", "latents/c/1/0/0", "marks", "."])
def test_what_cannot_be_read_is_said_and_never_called_damaged(cache: Path, name: str) -> None:
    path = cache / name
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with ordinary_user(), pytest.raises(UnreadableError, match=r"cannot be read: got Permission denied. Check its permissions") as told:
            read_all(cache)
        assert "--overwrite" not in str(told.value)
    finally:
        path.chmod(mode)


def read_all(cache: Path) -> None:
    store = LatentStore.open(cache)
    store.read(store.usable_rows())


def test_a_cache_may_be_opened_twice_and_two_caches_of_one_list_agree_in_its_digest(filled: Path, rich: Path) -> None:
    one, two = LatentStore.open(filled), LatentStore.open(filled)
    assert np.array_equal(bits(one.read([1, 2])), bits(two.read([1, 2])))
    assert one.clips_digest == two.clips_digest != LatentStore.open(rich).clips_digest


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "null", '"x"', "{}", "[" * 10_000, '{"zarr_format": 3, "node_type": "group", "attributes": 5}']
)
@pytest.mark.parametrize("name", ["zarr.json", "mean/zarr.json", "matrix/zarr.json"])
def test_a_projection_whose_description_is_damaged_is_refused_in_words(filled: Path, tmp_path: Path, name: str, text: str) -> None:
    cache = Path(shutil.copytree(filled, tmp_path / "copy"))
    (cache / "projection" / name).write_text(text)
    with pytest.raises(CacheError, match=r"the projection of the cache .* is damaged"):
        LatentStore.open(cache).projection()


def test_an_edited_header_or_projection_is_refused(cache: Path) -> None:
    original = (cache / "zarr.json").read_text()
    for edit, message in (({"surprise": 1}, "surprise"), ({"split": "validation"}, "was edited"), ({"num_clips": 99}, "was edited")):
        meta = json.loads(original)
        meta["attributes"]["stjepa"] |= edit
        (cache / "zarr.json").write_text(json.dumps(meta))
        with pytest.raises(CacheError, match=message):
            LatentStore.open(cache)
    (cache / "zarr.json").write_text(original)
    matrix = cache / "projection" / "matrix" / "c" / "0" / "0"
    data = bytearray(matrix.read_bytes())
    data[5] ^= 1
    matrix.write_bytes(data)
    with pytest.raises(CacheError, match="projection"):
        LatentStore.open(cache).projection()


def test_no_cache_and_something_else_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="there is no cache at"):
        LatentStore.open(tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    fitted, clips = fitted_projection(), clip_rows(1)
    with pytest.raises(CacheError, match="exists and is not a cache"):
        LatentStore.create(tmp_path / "mine", cache_header(clips, fitted), clips, fitted)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_what_is_left_of_another_cache_is_never_taken_for_this_one(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", num_clips=9)
    (tmp_path / "cache" / "zarr.json").unlink()
    fitted, clips = fitted_projection(), clip_rows(9, first=2000)
    with pytest.raises(CacheError, match="exists and is not a cache"):
        LatentStore.create(tmp_path / "cache", cache_header(clips, fitted), clips, fitted)


def test_headers_are_compared_field_by_field() -> None:
    fitted, clips = fitted_projection(), clip_rows(1)
    one = cache_header(clips, fitted)
    assert header_difference(one, one) is None
    for other, name in (
        (cache_header(clip_rows(1, first=7), fitted), "clips_digest"),
        (cache_header(clips, fitted, dtype="int8"), "dtype"),
        (cache_header(clips, fitted, num_views=2), "num_views"),
        (cache_header(clips, fitted, frames=True), "frames"),
    ):
        found = header_difference(one, other)
        assert found is not None
        assert found[0] == name


def test_the_planned_size_is_the_size(tmp_path: Path) -> None:
    for dtype in ("float16", "int8"):
        fitted, clips = fitted_projection(), clip_rows(5)
        store = LatentStore.create(tmp_path / dtype, cache_header(clips, fitted, dtype=dtype, rows_per_shard=2), clips, fitted)
        for shard in store.pending():
            fill_shard(store, shard, row_values(5))
        shards = [path for column in store.header.columns for path in (tmp_path / dtype / column.name / "c").rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in shards) == store.header.planned_bytes() == store.num_bytes()


def test_a_finished_cache_has_nothing_temporary(filled: Path, rich: Path) -> None:
    for path in (filled, rich):
        assert [file for file in path.rglob("*") if file.name.startswith(".")] == []
        assert not (path / "work").exists()


def test_reading_opens_nothing_for_long(filled: Path) -> None:
    store = LatentStore.open(filled)
    store.read(GOOD, threads=1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        store.read(GOOD, threads=2)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert torch.from_numpy(store.read([0])).isfinite().all()
