"""Writing one shard: whatever is cut or flipped, a correct prefix stays and the finished shard is the same."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.store.records import CRC_BYTES, RowRecord, ShardManifest
from stjepa_cli.store.shard_format import checksum, index_bytes, sealed
from stjepa_cli.store.shard_writer import JOURNAL, NewRow, ShardWriter

CACHE, SHARD, PLACES = "c" * 64, 3, 8
COLUMNS = ("latents", "frames")
FAILED = 4


def new_rows() -> list[NewRow]:
    """Seven rows: latents of one length, frames of many, one row failed."""
    rng = random.Random(0)
    rows = []
    for i in range(7):
        if i == FAILED:
            rows.append(NewRow(RowRecord(str(i), error="the file is empty"), {}))
            continue
        data = {"latents": rng.randbytes(6), "frames": rng.randbytes(1 + i * 3 % 5)}
        rows.append(NewRow(RowRecord(str(i), 1, "ab", (0, 2), (0, 0, 4, 4), i), data))
    return rows


ROWS = new_rows()


def batches(rows: Sequence[NewRow], size: int) -> Iterator[Sequence[NewRow]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


def opened(folder: Path, *, cache: str = CACHE, shard: int = SHARD, published: dict[str, Path] | None = None) -> ShardWriter:
    return ShardWriter(folder, cache, shard, COLUMNS, published)


def finished(writer: ShardWriter) -> dict[str, bytes]:
    """The bytes of the shard's files and of its manifest, once the rows that are missing have been added."""
    for batch in batches(ROWS[len(writer.rows) :], 2):
        writer.append(batch)
    manifest, files = writer.finish(PLACES)
    return {"manifest": manifest.to_json()} | {name: file.read_bytes() for name, file in files.items()}


def half_written(folder: Path, num_rows: int = len(ROWS)) -> Path:
    """A shard's folder as a killed writer leaves it, batches of two rows."""
    writer = opened(folder)
    for batch in batches(ROWS[:num_rows], 2):
        writer.append(batch)
    writer.close()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return finished(opened(tmp_path_factory.mktemp("whole") / "3"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return half_written(tmp_path_factory.mktemp("stopped") / "3")


def assert_goes_on(writer: ShardWriter, whole: dict[str, bytes], at_least: int = 0) -> None:
    """The rows that a writer kept are a prefix of whole batches, and the shard ends as it must."""
    kept = len(writer.rows)
    assert kept >= at_least
    assert kept % 2 == 0 or kept == len(ROWS)
    expected = ShardManifest.from_json(whole["manifest"]).rows
    assert writer.rows == list(expected[:kept])
    assert finished(writer) == whole


# ------------------------------------------------------------------------------------------------------------- bytes


def test_a_shard_is_chunks_checksums_and_an_index(whole: dict[str, bytes]) -> None:
    for name in COLUMNS:
        chunks = b"".join(sealed(row.data[name]) for row in ROWS if name in row.data)
        assert whole[name] == chunks + index_bytes(ShardManifest.from_json(whole["manifest"]).lengths(name), PLACES)
    rows = ShardManifest.from_json(whole["manifest"]).rows
    assert [row.id for row in rows] == [row.record.id for row in ROWS]
    assert (rows[FAILED].error, rows[FAILED].chunks) == ("the file is empty", {})
    assert rows[2].chunks["frames"] == (len(ROWS[2].data["frames"]), checksum(ROWS[2].data["frames"]))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_any_batching_gives_the_same_bytes(tmp_path: Path, whole: dict[str, bytes], size: int) -> None:
    writer = opened(tmp_path / "3")
    for batch in batches(ROWS, size):
        writer.append(batch)
    assert finished(writer) == whole


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_writer_opened_anew_for_every_batch_gives_the_same_bytes(tmp_path: Path, whole: dict[str, bytes], size: int) -> None:
    done = 0
    for batch in batches(ROWS, size):
        writer = opened(tmp_path / "3")
        assert len(writer.rows) == done
        writer.append(batch)
        writer.close()
        done += len(batch)
    assert finished(opened(tmp_path / "3")) == whole


def test_a_shard_of_failed_rows_only_has_no_chunks(tmp_path: Path) -> None:
    failed = [NewRow(RowRecord(str(i), error="gone"), {}) for i in range(3)]
    writer = opened(tmp_path / "3")
    writer.append(failed)
    writer.close()
    manifest, files = opened(tmp_path / "3").finish(PLACES)
    assert [row.error for row in manifest.rows] == ["gone"] * 3
    assert files["latents"].read_bytes() == sealed(b"\xff" * 16 * PLACES)


# ------------------------------------------------------------------------------------------------------------ resume


def test_every_batch_that_was_appended_is_kept(tmp_path: Path, whole: dict[str, bytes]) -> None:
    for num_rows in (0, 2, 4, 6, 7):
        writer = opened(half_written(tmp_path / str(num_rows), num_rows))
        assert len(writer.rows) == num_rows
        assert_goes_on(writer, whole)


EVERYWHERE = [("latents", 1), ("frames", 1), (JOURNAL, 31), pytest.param(JOURNAL, 1, marks=pytest.mark.slow)]
"""Files and strides: the journal is long."""


@pytest.mark.parametrize(("name", "stride"), EVERYWHERE)
def test_a_file_cut_anywhere_leaves_the_batches_before_the_cut(
    tmp_path: Path, stopped: Path, whole: dict[str, bytes], name: str, stride: int
) -> None:
    ends = batch_ends(stopped, name)
    for size in places(ends, stride):
        folder = tmp_path / str(size)
        shutil.copytree(stopped, folder)
        os.truncate(folder / name, size)
        writer = opened(folder)
        assert len(writer.rows) == max(rows for end, rows in ends if end <= size), size
        assert_goes_on(writer, whole)
        shutil.rmtree(folder)


@pytest.mark.parametrize(("name", "stride"), EVERYWHERE)
def test_a_flipped_bit_anywhere_leaves_the_batches_before_it(
    tmp_path: Path, stopped: Path, whole: dict[str, bytes], name: str, stride: int
) -> None:
    data, ends = (stopped / name).read_bytes(), batch_ends(stopped, name)
    for place in places(ends, stride)[:-1]:
        folder = tmp_path / str(place)
        shutil.copytree(stopped, folder)
        (folder / name).write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        writer = opened(folder)
        assert len(writer.rows) == max(rows for end, rows in ends if end <= place), place
        assert_goes_on(writer, whole)
        shutil.rmtree(folder)


def batch_ends(stopped: Path, name: str) -> list[tuple[int, int]]:
    """Where each batch ends in a file, and how many rows there are up to there."""
    if name == JOURNAL:
        lines = (stopped / JOURNAL).read_bytes().splitlines(keepends=True)
        sizes = [len(line) for line in lines]
    else:
        sizes = [sum(len(row.data[name]) + CRC_BYTES for row in batch if row.data) for batch in batches(ROWS, 2)]
    return [(sum(sizes[:n]), min(2 * n, len(ROWS))) for n in range(len(sizes) + 1)]


def places(ends: list[tuple[int, int]], stride: int) -> list[int]:
    """Offsets in a file from its start to its end, each `stride`-th and all around the ends of batches."""
    last = ends[-1][0]
    return sorted({*range(0, last, stride), *(end + by for end, _ in ends for by in (-1, 0, 1) if 0 <= end + by <= last)})


def test_several_files_cut_at_once_leave_what_all_of_them_hold(tmp_path: Path, stopped: Path, whole: dict[str, bytes]) -> None:
    rng = random.Random(1)
    for number in range(40):
        folder = tmp_path / str(number)
        shutil.copytree(stopped, folder)
        for name in (*COLUMNS, JOURNAL):
            size = (folder / name).stat().st_size
            os.truncate(folder / name, rng.randrange(size + 1))
            if rng.random() < 0.3:  # a power cut may leave zeros where data were to come
                os.truncate(folder / name, size)
        assert_goes_on(opened(folder), whole)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", [*COLUMNS, JOURNAL])
def test_a_file_that_is_gone_costs_the_rows_but_not_the_shard(tmp_path: Path, whole: dict[str, bytes], name: str) -> None:
    folder = half_written(tmp_path / "3")
    (folder / name).unlink()
    assert_goes_on(opened(folder), whole)


def test_rubbish_behind_the_last_batch_is_cut_off(tmp_path: Path, whole: dict[str, bytes]) -> None:
    folder = half_written(tmp_path / "3", 4)
    for name in (*COLUMNS, JOURNAL):
        with (folder / name).open("ab") as file:
            file.write(b"\n\t00000000\n" * 5)
    writer = opened(folder)
    assert len(writer.rows) == 4
    assert_goes_on(writer, whole)


@pytest.mark.parametrize(("cache", "shard"), [("d" * 64, SHARD), (CACHE, SHARD + 1)])
def test_the_journal_of_another_cache_or_shard_is_dropped(tmp_path: Path, cache: str, shard: int) -> None:
    folder = half_written(tmp_path / "3")
    writer = opened(folder, cache=cache, shard=shard)
    assert writer.rows == []
    writer.close()
    assert [(folder / name).stat().st_size for name in (*COLUMNS, JOURNAL)] == [0, 0, 0]


def test_a_batch_copied_from_behind_is_not_taken_twice(tmp_path: Path, whole: dict[str, bytes]) -> None:
    folder = half_written(tmp_path / "3", 2)
    line = (folder / JOURNAL).read_bytes()
    (folder / JOURNAL).write_bytes(line + line)
    writer = opened(folder)
    assert len(writer.rows) == 2
    assert_goes_on(writer, whole)


# -------------------------------------------------------------------------------------------- kills while publishing


@pytest.mark.parametrize("moved", [(), ("latents",), ("frames",), ("latents", "frames")])
def test_a_kill_between_the_renames_loses_no_row(tmp_path: Path, whole: dict[str, bytes], moved: tuple[str, ...]) -> None:
    folder, published = half_written(tmp_path / "work" / "3"), {name: tmp_path / name / "3" for name in COLUMNS}
    _, files = opened(folder).finish(PLACES)
    for name in moved:
        published[name].parent.mkdir()
        files[name].rename(published[name])
    writer = opened(folder, published=published)
    assert len(writer.rows) == len(ROWS)
    assert not any(path.exists() for path in published.values())
    assert finished(writer) == whole


def test_a_kill_while_the_files_are_brought_back_loses_no_row(tmp_path: Path, whole: dict[str, bytes]) -> None:
    folder, published = half_written(tmp_path / "work" / "3"), {name: tmp_path / f"{name}.shard" for name in COLUMNS}
    for name, file in opened(folder).finish(PLACES)[1].items():
        file.rename(published[name])
    published["latents"].rename(folder / "latents")  # the first is back, then the kill
    writer = opened(folder, published=published)
    assert len(writer.rows) == len(ROWS)
    assert finished(writer) == whole


def test_published_files_without_a_journal_are_left_where_they_are(tmp_path: Path) -> None:
    shard = tmp_path / "latents.shard"
    shard.write_bytes(b"of an earlier build")
    writer = opened(tmp_path / "3", published={"latents": shard})
    writer.close()
    assert (writer.rows, shard.read_bytes()) == ([], b"of an earlier build")


def test_a_shard_that_is_written_again_does_not_take_the_old_file_for_its_own(tmp_path: Path, whole: dict[str, bytes]) -> None:
    old = tmp_path / "latents.shard"
    old.write_bytes(b"old")
    writer = opened(half_written(tmp_path / "3", 4), published={"latents": old})
    assert len(writer.rows) == 4
    assert_goes_on(writer, whole)
    assert old.read_bytes() == b"old"


def test_drop_removes_the_folder_and_nothing_else(tmp_path: Path) -> None:
    other = half_written(tmp_path / "work" / "4")
    writer = opened(half_written(tmp_path / "work" / "3"))
    writer.drop()
    assert sorted(path.name for path in other.parent.iterdir()) == ["4"]
    writer.close()


# -------------------------------------------------------------------------------------------------- storage that fails


@pytest.mark.parametrize("fails_at", range(1, 9))
def test_an_append_that_fails_changes_nothing_and_can_be_repeated(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """Two rows of two columns are four writes, two syncs, a line and its sync: the disk fills up at each of these."""
    writer, calls = opened(tmp_path / "3"), 0
    writer.append(ROWS[:2])
    before = {name: (tmp_path / "3" / name).read_bytes() for name in (*COLUMNS, JOURNAL)}

    def failing(real: object) -> object:
        def call(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls == fails_at:
                if len(arguments) == 2:  # a full disk takes the first half of the data
                    os.pwrite(arguments[0], b"half", os.lseek(arguments[0], 0, os.SEEK_CUR))  # type: ignore[arg-type]
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patch:
        for name in ("write", "fdatasync"):
            patch.setattr(os, name, failing(getattr(os, name)))
        with pytest.raises(StjepaError, match="the disk is full"):
            writer.append(ROWS[2:4])
    assert calls == fails_at
    assert {name: (tmp_path / "3" / name).read_bytes() for name in before} == before
    assert len(writer.rows) == 2
    assert finished(writer) == whole


def test_short_writes_are_continued(tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, bytes(data)[:3]))
    assert finished(opened(tmp_path / "3")) == whole


def test_an_unwritable_place_is_one_sentence_and_leaves_no_open_file(tmp_path: Path) -> None:
    (tmp_path / "3").write_text("a file in the way")
    open_files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StjepaError, match=r"cannot write .*3: a (file is in the way|part of the path is a file)"):
        opened(tmp_path / "3")
    (tmp_path / "4" / "frames").mkdir(parents=True)
    with pytest.raises(StjepaError, match="the path is a folder"):
        opened(tmp_path / "4")
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_records_of_any_text_survive_the_journal(tmp_path: Path) -> None:
    odd = [replace(row, record=replace(row.record, id=f"a\nb\tc\r{row.record.id}é\u2028")) for row in ROWS[:2]]
    writer = opened(tmp_path / "3")
    writer.append(odd)
    writer.close()
    again = opened(tmp_path / "3")
    again.close()
    assert again.rows == writer.rows
