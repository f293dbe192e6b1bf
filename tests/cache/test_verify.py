"""`verify` at the level recompute: the cache belongs to these videos and this teacher, or it does not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from stjepa_cli.cache.build import BuildRequest, build
from stjepa_cli.cache.verify import TOLERANCE, Recompute, VerifyResult, verify
from stjepa_cli.core.errors import CacheError, ConfigError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.store.latent_store import LatentStore
from tests.caches import fill_shard
from tests.media import write_tiny_ssv2

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)
VIDEOS = "20bn-something-something-v2"


@pytest.fixture(scope="module", params=["float16", "int8"])
def built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("verification")
    root = write_tiny_ssv2(folder / "ssv2", train=8, validation=1, test=1)
    build(BuildRequest.of(root, folder / "cache", teacher="hog", clip=SPEC, latent_dim=16, views=2, dtype=request.param))
    return root, folder / "cache"


@pytest.fixture
def copy(built: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    for source, name in zip(built, ("ssv2", "cache"), strict=True):
        shutil.copytree(source, tmp_path / name)
    return tmp_path / "ssv2", tmp_path / "cache"


def again(cache: Path, root: Path, **more: object) -> VerifyResult:
    return verify(cache, level="recompute", recompute=Recompute(root, sample=100, **more))  # type: ignore[arg-type]


def test_a_cache_of_these_videos_and_this_teacher_passes(built: tuple[Path, Path]) -> None:
    found = again(built[1], built[0])
    assert (found.ok, found.recomputed, found.changed) == (True, 16, ())
    assert found.worst_error is not None
    assert found.worst_error < 0.02 < TOLERANCE


def test_the_sample_is_drawn_by_the_seed(built: tuple[Path, Path]) -> None:
    found = verify(built[1], level="recompute", recompute=Recompute(built[0], sample=3, seed=5))
    assert (found.ok, found.recomputed) == (True, 3)


def test_another_file_of_the_same_name_is_found_by_its_digest(copy: tuple[Path, Path]) -> None:
    root, cache = copy
    shutil.copy(root / VIDEOS / "1.webm", root / VIDEOS / "2.webm")
    found = again(cache, root)
    assert (found.ok, found.changed) == (False, ("2", "2 view 1"))
    assert "no longer the file that was cached" in found.faults[0].reason


def test_a_damaged_middle_that_still_decodes_is_found(copy: tuple[Path, Path]) -> None:
    root, cache = copy
    video = root / VIDEOS / "3.webm"
    data = bytearray(video.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 16] = bytes(16)
    video.write_bytes(data)
    assert set(again(cache, root).changed) == {"3", "3 view 1"}


def test_a_video_that_is_gone_is_told(copy: tuple[Path, Path]) -> None:
    root, cache = copy
    (root / VIDEOS / "4.webm").unlink()
    found = again(cache, root)
    assert set(found.changed) == {"4", "4 view 1"}
    assert "its video is gone" in found.faults[0].reason


def test_latents_of_something_else_are_beyond_the_tolerance(copy: tuple[Path, Path]) -> None:
    """Whole, marked and checksummed, but not what the teacher says: only computing them again can tell."""
    root, cache = copy
    store = LatentStore.open(cache)
    values = store.read(range(16))[::-1].copy()
    shard = store.manifest(0)
    store.manifests.discard(0)
    fill_shard(store, 0, values, records=shard.rows)
    store.tidy()
    assert verify(cache, level="full").ok
    found = again(cache, root)
    assert len(found.changed) == 16
    assert "the teacher gives other latents" in found.faults[0].reason
    assert found.worst_error is not None
    assert found.worst_error > 0.5


def test_a_decoder_that_gives_other_pixels_is_told(built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from stjepa_cli.data import video

    monkeypatch.setattr("stjepa_cli.cache.verify.decode", lambda ref: video.decode(ref) ^ 1)
    found = again(built[1], built[0])
    assert len(found.changed) == 16
    assert "decodes to other pixels" in found.faults[0].reason


def test_another_teacher_is_refused(built: tuple[Path, Path], tmp_path: Path) -> None:
    store = LatentStore.open(built[1])
    other = replace(store.header, teacher=replace(store.header.teacher, weights_digest="0" * 64))
    clone = LatentStore.create(tmp_path / "clone", other, store.clips, store.projection())
    with pytest.raises(CacheError, match=r"is not the one that made .* its weights differ"):
        again(tmp_path / "clone", built[0])
    assert clone.pending() == [0]


def test_levels_are_three(built: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="expected quick, full or recompute"):
        verify(built[1], level="deep")
