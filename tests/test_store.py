"""The store: bit-exact, plain Zarr, and every kind of damage found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from stjepa_cli.errors import CacheError
from stjepa_cli.nouns import ClipSpec, TeacherCard
from stjepa_cli.projection import Projection, ProjectionFit
from stjepa_cli.records import CacheHeader, ClipRow, RowRecord, clips_digest, header_difference
from stjepa_cli.shards import Latents
from stjepa_cli.store import LatentStore

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)
NUM_CLIPS, DIM, FAILED = 100, 6, 5


def projection() -> Projection:
    fit = ProjectionFit(12, "layernorm")
    fit.add(torch.randn(10, 8, 12, generator=torch.Generator().manual_seed(0)))
    return fit.finish("pca", DIM)


def header(clips: list[ClipRow], fitted: Projection) -> CacheHeader:
    card = TeacherCard("tiny", "hog", "1", "0" * 64, "none", 12, SPEC)
    about = {"kind": fitted.kind, "digest": fitted.digest, "explained": fitted.explained, "num_fit_clips": 10}
    return CacheHeader("ssv2", "train", len(clips), clips_digest(clips), card, DIM, about)


def rows() -> Latents:
    values = np.random.default_rng(0).standard_normal((NUM_CLIPS, SPEC.grid.num_tokens, DIM)).astype(np.float16)
    values[3, 0, :3] = np.array([0x7E01, 0xFE55, 0x8000], np.uint16).view(np.float16)  # NaNs with payloads, and -0.0
    return values


def record(clip: ClipRow) -> RowRecord:
    return RowRecord(clip.id, "ab" * 32, (0, 1, 2, 3), (0, 8, 48, 48), 17)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "cache"
    fitted, clips = projection(), [ClipRow(str(1000 + i), f"{1000 + i}.webm") for i in range(NUM_CLIPS)]
    store = LatentStore.create(path, header(clips, fitted), clips, fitted)
    values = rows()
    for shard in store.pending():
        members = store.rows_of(shard)
        records = [RowRecord(clips[r].id, error="the file is empty") if r == FAILED else record(clips[r]) for r in members]
        store.write(shard, records, [None if r == FAILED else values[r] for r in members])
    return path


@pytest.fixture
def cache(filled: Path, tmp_path: Path) -> Path:
    shutil.copytree(filled, tmp_path / "cache")
    return tmp_path / "cache"


def shard_file(cache: Path, shard: int) -> Path:
    return cache / "latents" / "c" / str(shard) / "0" / "0"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_rows_come_back_bit_for_bit_in_any_order(filled: Path) -> None:
    store, values = LatentStore.open(filled), rows()
    wanted = [*[r for r in range(NUM_CLIPS) if r != FAILED][::-3], 3, 3]
    assert store.read(wanted).view(np.uint16).tolist() == values[wanted].view(np.uint16).tolist()
    assert store.usable_rows() == [r for r in range(NUM_CLIPS) if r != FAILED]


def test_zarr_reads_the_same_bytes_and_sees_nan_where_a_clip_failed(filled: Path) -> None:
    array = zarr.open_group(filled, mode="r")["latents"]
    assert isinstance(array, zarr.Array)
    found, values = np.asarray(array[...]), rows()
    good = [r for r in range(NUM_CLIPS) if r != FAILED]
    assert np.array_equal(found[good].view(np.uint16), values[good].view(np.uint16))
    assert np.isnan(found[FAILED]).all()


def test_shards_are_the_bytes_that_zarr_writes(filled: Path, tmp_path: Path) -> None:
    values = np.asarray(zarr.open_group(filled, mode="r")["latents"][...])  # type: ignore[index]
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
    for shard in (0, 1):
        assert (tmp_path / "peer" / "c" / str(shard) / "0" / "0").read_bytes() == shard_file(filled, shard).read_bytes()


def test_the_projection_comes_back_whole(filled: Path) -> None:
    assert LatentStore.open(filled).projection().digest == projection().digest


def test_what_a_row_was_made_from_comes_back(filled: Path) -> None:
    ref = LatentStore.open(filled).ref(7, Path("/videos"))
    assert ref.path == Path("/videos/1007.webm")
    assert (ref.frame_indices, ref.crop.left, ref.size_px) == ((0, 1, 2, 3), 8, 32)


def assert_right_or_refused(store: LatentStore, row: int, values: Latents, faulty: set[str]) -> None:
    try:
        found = store.read([row])
    except CacheError:
        found = None
    if found is None:
        assert store.clips[row].id in faulty
    else:
        assert np.array_equal(found.view(np.uint16), values[[row]].view(np.uint16))


@pytest.mark.parametrize("shard", [0, 1])
def test_any_flipped_bit_is_found_and_never_read_as_a_number(cache: Path, shard: int) -> None:
    store, values = LatentStore.open(cache), rows()
    path = shard_file(cache, shard)
    original = path.read_bytes()
    for offset in np.random.default_rng(shard).integers(0, len(original), 12).tolist():
        flip(path, offset)
        faults = store.check(shard, every_byte=True)
        assert faults
        assert {fault.kind for fault in faults} == {"corrupt"}
        for row in store.rows_of(shard):
            if row != FAILED:
                assert_right_or_refused(store, row, values, {fault.id for fault in faults})
        path.write_bytes(original)


def test_a_flipped_byte_names_the_clip_that_it_is_in(cache: Path) -> None:
    store = LatentStore.open(cache)
    flip(shard_file(cache, 1), 3 * store.header.layout.chunk_bytes + 11)
    assert [fault.id for fault in store.check(1, every_byte=True)] == ["1067"]
    assert store.check(1, every_byte=False) == []
    with pytest.raises(CacheError, match=r"clip 1067 .* is corrupt"):
        store.read([67])
    assert store.read([66]).shape == (1, 8, DIM)


def test_a_missing_a_short_and_a_foreign_shard_are_each_found(cache: Path) -> None:
    store = LatentStore.open(cache)
    shard_file(cache, 1).unlink()
    assert {fault.kind for fault in store.check(1, every_byte=False)} == {"missing"}
    with pytest.raises(CacheError, match=r"shard 1 of .* is missing"):
        store.read([70])
    shard_file(cache, 1).write_bytes(shard_file(cache, 0).read_bytes()[:-20])
    assert {fault.kind for fault in store.check(1, every_byte=False)} == {"corrupt"}
    layout = store.header.layout
    body, _ = layout.pack([*np.ones((36, *layout.row_shape), np.float16)])
    shard_file(cache, 1).write_bytes(body)
    assert len(store.check(1, every_byte=True)) == 36
    with pytest.raises(CacheError, match="something else"):
        store.read([70])


def test_a_shard_without_its_mark_is_not_done_and_not_read(cache: Path) -> None:
    (cache / "marks" / "1.json").unlink()
    store = LatentStore.open(cache)
    assert store.pending() == [1]
    assert {fault.kind for fault in store.check(1, every_byte=True)} == {"missing"}
    with pytest.raises(CacheError, match=r"shard 1 of .* is not done"):
        store.read([70])


def test_a_damaged_mark_is_corrupt(cache: Path) -> None:
    (cache / "marks" / "1.json").write_text('{"shard": 1, "rows": [')
    assert {fault.kind for fault in LatentStore.open(cache).check(1, every_byte=False)} == {"corrupt"}


def test_a_failed_row_has_its_reason_and_no_latents(filled: Path) -> None:
    store = LatentStore.open(filled)
    assert [(failure.id, failure.error) for failure in store.failures()] == [("1005", "the file is empty")]
    with pytest.raises(CacheError, match="has no latents: the file is empty"):
        store.read([FAILED])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("zarr.json", "", "no cache of stjepa"),
        ("zarr.json", "{}", "no cache of stjepa"),
        ("clips.jsonl", '{"id": "1", "video": "1.webm"}\n', "is not the list"),
        ("clips.jsonl", "not json\n", "cannot be read"),
        ("latents/zarr.json", '{"shape": [1, 2, 3]}', "is not what its header says"),
    ],
)
def test_a_damaged_part_is_refused_when_the_cache_is_opened(cache: Path, name: str, change: str, message: str) -> None:
    (cache / name).write_text(change)
    with pytest.raises(CacheError, match=message):
        LatentStore.open(cache)


def test_an_edited_header_or_projection_is_refused(cache: Path) -> None:
    meta = json.loads((cache / "zarr.json").read_text())
    meta["attributes"]["stjepa"]["surprise"] = 1
    (cache / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(CacheError, match="surprise"):
        LatentStore.open(cache)
    del meta["attributes"]["stjepa"]["surprise"]
    (cache / "zarr.json").write_text(json.dumps(meta))
    store = LatentStore.open(cache)
    flip(cache / "projection" / "matrix" / "c" / "0" / "0", 5)
    with pytest.raises(CacheError, match="projection"):
        store.projection()


def test_no_cache_and_something_else_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="there is no cache at"):
        LatentStore.open(tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    fitted, clips = projection(), [ClipRow("1", "1.webm")]
    with pytest.raises(CacheError, match="exists and is no cache"):
        LatentStore.create(tmp_path / "mine", header(clips, fitted), clips, fitted)
    with pytest.raises(CacheError):
        LatentStore.remove(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_headers_are_compared_field_by_field() -> None:
    fitted, clips = projection(), [ClipRow("1", "1.webm")]
    one = header(clips, fitted)
    assert header_difference(one, one) is None
    other = header([ClipRow("2", "2.webm")], fitted)
    found = header_difference(one, other)
    assert found is not None
    assert found[0] == "clips_digest"


def test_nothing_temporary_is_left_behind(filled: Path) -> None:
    assert [path for path in filled.rglob("*") if path.name.startswith(".")] == []
