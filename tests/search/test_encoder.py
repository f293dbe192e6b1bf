"""The Python API: one video, many videos, and batches of columns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import stjepa_cli
from stjepa_cli import EmbedVideos, Encoder
from stjepa_cli.core.errors import ConfigError, StjepaError, TeacherError, VideoError
from stjepa_cli.core.locations import Location
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.data.datasets.base import VideoItem
from stjepa_cli.data.eval_clips import ONE_CLIP
from stjepa_cli.encoders.base import encode_videos
from stjepa_cli.search import pooling
from tests.media import upload, write_empty
from tests.search.clips import DIM, MODEL, NUM_TOKENS, write_clips


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.from_pretrained(MODEL, device="cpu", batch_size=4, workers=2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_clips(tmp_path_factory.mktemp("clips"), 10)


def test_the_api_is_imported_on_first_use() -> None:
    code = "import sys, stjepa_cli; assert 'torch' not in sys.modules; stjepa_cli.Encoder; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        stjepa_cli.nothing  # noqa: B018


def test_a_video_becomes_tokens(encoder: Encoder, clips: list[Path]) -> None:
    tokens = encoder.embed(clips[0])
    assert (tokens.shape, tokens.dtype, tokens.device.type) == ((NUM_TOKENS, DIM), torch.float32, "cpu")
    assert (encoder.name, encoder.dim, encoder.grid.num_tokens, len(encoder.digest)) == (MODEL, DIM, NUM_TOKENS, 64)


def test_the_tokens_are_those_that_are_scored(encoder: Encoder, clips: list[Path]) -> None:
    [(_, expected)] = encode_videos(encoder.model, [VideoItem("0", clips[0], 0, "")], ONE_CLIP, pool="mean", runtime=Runtime("cpu"))
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(encoder.embed(clips[0]).mean(0), expected[0])


@pytest.mark.parametrize("pool", pooling.POOLS)
def test_pooling_is_that_of_the_recipe(encoder: Encoder, clips: list[Path], pool: str) -> None:
    tokens = encoder.embed(str(clips[1]))
    torch.testing.assert_close(encoder.embed(clips[1], pool), pooling.pool(tokens[None], encoder.grid, pool)[0])


def test_many_videos_come_in_their_order_and_do_not_depend_on_batches_or_threads(encoder: Encoder, clips: list[Path]) -> None:
    found = torch.stack(list(encoder.embed_many(clips, "mean")))
    one = Encoder.from_pretrained(MODEL, device="cpu", batch_size=1, workers=1)
    single = torch.stack([one.embed(clip, "mean") for clip in clips])
    torch.testing.assert_close(found, single, rtol=0, atol=1e-6)
    assert (found @ found.T).fill_diagonal_(0).max() < 1 - 1e-4


def test_sources_may_be_endless(encoder: Encoder, clips: list[Path]) -> None:
    def forever() -> Iterator[Path]:
        while True:
            yield from clips

    endless = encoder.embed_many(forever())
    assert [next(endless).shape for _ in range(12)] == [(NUM_TOKENS, DIM)] * 12


def test_a_remote_video_gives_the_same_vector(encoder: Encoder, clips: list[Path], bucket: Location) -> None:
    remote = upload(clips[2], bucket / "clip.mp4")
    assert torch.equal(encoder.embed(str(remote), "mean"), encoder.embed(clips[2], "mean"))


def test_a_broken_video_is_an_error_in_its_place(encoder: Encoder, clips: list[Path], tmp_path: Path) -> None:
    sources = [clips[0], write_empty(tmp_path / "empty.mp4"), clips[1]]
    found = list(encoder.embed_or_errors(sources, "mean"))
    assert [type(each) for each in found] == [torch.Tensor, VideoError, torch.Tensor]
    many = encoder.embed_many(sources)
    next(many)
    with pytest.raises(VideoError, match=r"empty\.mp4: the file is empty"):
        next(many)


def test_frames_are_chosen_where_the_model_lets_one(clips: list[Path]) -> None:
    hog = Encoder.from_pretrained("hog", device="cpu", num_frames=4)
    assert hog.embed(clips[0]).shape[0] == 2 * 14 * 14
    with pytest.raises((ConfigError, TeacherError), match="6"):
        Encoder.from_pretrained(MODEL, device="cpu", num_frames=6)


@pytest.mark.parametrize("name", ["/no/such/model", "nosuch"])
def test_a_model_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StjepaError, match=name):
        Encoder.from_pretrained(name)


def test_an_unknown_pooling_is_refused(encoder: Encoder, clips: list[Path]) -> None:
    with pytest.raises(ConfigError, match="unknown pooling"):
        encoder.embed(clips[0], "median")


class TestBatches:
    def test_columns_in_columns_out(self, encoder: Encoder, clips: list[Path], tmp_path: Path) -> None:
        batch = {"uri": np.array([str(clips[0]), str(tmp_path / "none.mp4")]), "label": np.array([1, 2])}
        found = EmbedVideos(MODEL, "vector", pool="max", device="cpu")(batch)
        assert list(found) == ["uri", "label", "vector", "vector_error"]
        np.testing.assert_allclose(found["vector"][0], encoder.embed(clips[0], "max"), atol=1e-6)
        assert np.isnan(found["vector"][1]).all()
        assert list(found["vector_error"]) == ["", f"{tmp_path}/none.mp4: there is no such file"]

    def test_a_batch_without_rows_has_the_right_width(self) -> None:
        found = EmbedVideos(MODEL, pool="segments", device="cpu")({"uri": []})
        assert found["video_embedding"].shape == (0, 3 * DIM)

    def test_a_data_frame_stays_one(self, clips: list[Path]) -> None:
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame({"path": [str(clips[0]), "/none.mp4"]}, index=[7, 8])
        found = EmbedVideos(MODEL, uri_column="path", device="cpu")(frame)
        assert list(found.columns) == ["path", "video_embedding", "video_embedding_error"]
        assert found.loc[7, "video_embedding"].shape == (DIM,)
        assert found.loc[8, "video_embedding"] is None

    @pytest.mark.filterwarnings("ignore")  # Ray Data warns about itself
    def test_it_maps_over_a_dataset_of_ray(self, encoder: Encoder, clips: list[Path]) -> None:
        ray = pytest.importorskip("ray")
        data = pytest.importorskip("ray.data")
        ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=10**8, log_to_driver=False, logging_level="ERROR")
        try:
            data.DataContext.get_current().enable_progress_bars = False
            videos = data.from_items([{"uri": str(clip)} for clip in clips[:5]])
            arguments = {"model": MODEL, "device": "cpu", "workers": 1}
            mapped = videos.map_batches(EmbedVideos, fn_constructor_kwargs=arguments, concurrency=1, batch_size=3)
            found = {row["uri"]: row["video_embedding"] for row in mapped.take_all()}
        finally:
            ray.shutdown()
        for clip in clips[:5]:
            np.testing.assert_allclose(found[str(clip)], encoder.embed(clip, "mean"), atol=1e-6)

    @pytest.mark.filterwarnings("ignore")  # geneva and what it brings warn about themselves
    def test_it_is_a_function_for_geneva(self, encoder: Encoder, clips: list[Path]) -> None:
        geneva = pytest.importorskip("geneva")
        pyarrow = pytest.importorskip("pyarrow")
        embed = EmbedVideos(MODEL, device="cpu")

        @geneva.udf(data_type=pyarrow.list_(pyarrow.float32(), DIM))  # type: ignore[untyped-decorator,unused-ignore]
        def video_embedding(uri: str) -> object:
            [vector], _ = embed.embed([uri])
            return vector

        np.testing.assert_allclose(video_embedding(str(clips[0])), encoder.embed(clips[0], "mean"), atol=1e-6)
