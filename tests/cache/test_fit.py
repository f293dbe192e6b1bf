"""The projection is fitted on a sample of the whole list."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from stjepa_cli.cache.build import BuildRequest, build
from stjepa_cli.cache.fit import spread_sample
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.video import read_clip
from stjepa_cli.store.latent_store import LatentStore
from stjepa_cli.store.projection import ProjectionFit
from stjepa_cli.teachers.base import open_teacher
from tests.media import write_empty, write_tiny_ssv2

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=16)
RUNTIME = Runtime("cpu", workers=2, batch_size=4)


@pytest.fixture
def request_(tiny_ssv2: Path, tmp_path: Path) -> BuildRequest:
    return BuildRequest.of(tiny_ssv2, tmp_path / "cache", teacher="hog", clip=SPEC, latent_dim=16, fit_clips=5, fit_seed=3)


@pytest.mark.parametrize(("total", "count"), [(12, 4), (1000, 256), (169, 169), (7, 3), (1, 1), (5, 0)])
def test_a_sample_has_one_clip_of_every_stretch_and_the_rest_follows(total: int, count: int) -> None:
    order = list(spread_sample(total, count, seed=1))
    assert sorted(order) == list(range(total))
    assert [i * count // total for i in order[:count]] == pytest.approx(list(range(count)), abs=1)
    edges = [i * total // count for i in range(count + 1)] if count else []
    assert all(start <= i < stop for i, start, stop in zip(order, edges, edges[1:], strict=False))


def test_the_sample_depends_on_the_seed_alone() -> None:
    orders = [list(spread_sample(1000, 20, seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0][:20] != orders[2][:20]


def test_a_list_in_the_order_of_its_classes_gives_a_sample_of_all_classes() -> None:
    labels = [i // 100 for i in range(1000)]
    assert {labels[i] for i, _ in zip(spread_sample(1000, 10, seed=0), range(10), strict=False)} == set(range(10))


def test_the_projection_is_that_of_the_sample_and_the_header_says_how_it_was_taken(request_: BuildRequest, tiny_ssv2: Path) -> None:
    build(request_, RUNTIME)
    store, teacher = LatentStore.open(request_.cache), open_teacher("hog", clip=SPEC)
    chosen = list(spread_sample(12, 5, seed=3))[:5]
    clips = torch.stack([read_clip(tiny_ssv2 / store.clips[i].video, SPEC).pixels for i in chosen])
    fit = ProjectionFit(teacher.card.dim, teacher.card.token_norm)
    for batch in (clips[:4], clips[4:]):
        fit.add(teacher.encode(batch))
    fitted = fit.finish("pca", 16)
    assert torch.allclose(store.projection().matrix, fitted.matrix, atol=1e-5)
    about = store.header.projection
    assert (about["num_fit_clips"], about["fit_sample"], about["fit_seed"]) == (5, "spread", 3)


def test_videos_that_cannot_be_used_are_replaced_by_others(request_: BuildRequest, tmp_path: Path) -> None:
    root = write_tiny_ssv2(tmp_path / "broken")
    chosen = list(spread_sample(12, 5, seed=3))[:5]
    for i in chosen[:3]:
        write_empty(root / "20bn-something-something-v2" / f"{i + 1}.webm")
    assert build(request_.replace(data_root=root), RUNTIME).written == 9
    assert LatentStore.open(request_.cache).header.projection["num_fit_clips"] == 5


def test_a_cache_of_the_version_before_keeps_its_projection_when_a_build_resumes_it(request_: BuildRequest, tmp_path: Path) -> None:
    """Its header does not say how the clips were chosen: they were the first ones."""
    build(request_.replace(rows_per_shard=5), RUNTIME)
    store = LatentStore.open(request_.cache)
    about = {name: value for name, value in store.header.projection.items() if not name.startswith("fit_")}
    fitted = store.projection()
    shutil.rmtree(tmp_path / "cache")

    LatentStore.create(tmp_path / "cache", dataclasses.replace(store.header, projection=about), store.clips, fitted)
    result = build(request_.replace(rows_per_shard=5, fit_seed=8, fit_clips=2), RUNTIME)
    assert (result.written, result.missing) == (12, 0)
    again = LatentStore.open(request_.cache)
    assert again.header.projection == about
    assert again.projection().digest == fitted.digest


@pytest.mark.parametrize("kind", ["pca", "random", "standardize", "phi-s"])
def test_every_kind_of_projection_can_be_built(request_: BuildRequest, kind: str) -> None:
    build(request_.replace(projection=kind, fit_clips=12), RUNTIME)
    store = LatentStore.open(request_.cache)
    latents = torch.from_numpy(store.read(range(12))).float().flatten(0, 1)
    assert store.header.projection["kind"] == kind
    assert latents.square().mean().item() == pytest.approx(1, abs=0.05)
    if kind == "phi-s":
        assert latents.var(0).std() < 0.02
