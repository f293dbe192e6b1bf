"""Pixels as targets: VideoMAE's normalisation and loss, and a run without any cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from stjepa_cli.core.config import PredictorConfig, RunConfig, StudentConfig
from stjepa_cli.core.errors import CacheError, DatasetError
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.models.checkpoint import read_header
from stjepa_cli.models.layers import tubelets
from stjepa_cli.models.masking import gather_tokens, tube_mask
from stjepa_cli.training.objectives.pixels import pixel_targets
from stjepa_cli.training.pretrain import open_clips, pretrain
from stjepa_cli.training.recipes import resolve_run
from tests.caches import make_cache

SPEC = ClipSpec(num_frames=4, size_px=32, tubelet=2, patch_px=8)


def test_targets_are_those_of_videomae() -> None:
    """The loss of transformers' own model equals the mean squared error of its logits to our targets."""
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=32, norm_pix_loss=True,
    )  # fmt: skip
    model = VideoMAEForPreTraining(config).eval()
    clips = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    mask = tube_mask(SPEC.grid, 2, 0.5, torch.Generator().manual_seed(0))
    hidden = torch.zeros(2, SPEC.grid.num_tokens, dtype=torch.bool).scatter(1, mask.predict, True)
    with torch.no_grad():
        theirs = model((clips.float() / 255 - mean) / std, bool_masked_pos=hidden)
    targets = pixel_targets(gather_tokens(tubelets(clips, SPEC), mask.predict))
    torch.testing.assert_close(torch.nn.functional.mse_loss(theirs.logits, targets), theirs.loss, atol=1e-5, rtol=1e-5)


def test_each_colour_of_each_token_has_mean_0_and_deviation_1() -> None:
    patches = torch.randint(0, 256, (2, 5, 2 * 8 * 8 * 3), dtype=torch.uint8)
    colours = pixel_targets(patches).view(2, 5, -1, 3)
    torch.testing.assert_close(colours.mean(2), torch.zeros(2, 5, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(colours.std(2), torch.ones(2, 5, 3), atol=1e-4, rtol=0)
    assert pixel_targets(torch.full_like(patches, 7)).abs().max() == 0, "a flat patch is no division by zero"
    assert torch.equal(pixel_targets(patches, normalise=False), patches.float() / 255)


def small(root: Path, folder: Path, **more: object) -> RunConfig:
    tables = {
        "clip": {"num_frames": 4, "size_px": 32, "patch_px": 8},
        "student": {"dim": 32, "num_factorized": 1, "num_joint": 1, "num_heads": 2},
        "predictor": {"dim": 24, "depth": 1, "num_heads": 2},
    }
    flags = {"recipe": "videomae", "checkpoints": folder, "steps": 6, "batch_size": 4, "device": "cpu", "workers": 2, **more}
    return resolve_run({"data_root": root, **tables}, flags=flags)


def test_a_run_on_videos_alone_needs_no_cache_and_resumes(tiny_ssv2: Path, tmp_path: Path) -> None:
    result = pretrain(small(tiny_ssv2, tmp_path / "run", max_steps=3))
    assert (result.steps, result.clips) == (3, 12)
    assert pretrain(small(tiny_ssv2, tmp_path / "run")).steps == 6
    header = read_header(Path(pretrain(small(tiny_ssv2, tmp_path / "run")).checkpoint))
    assert (header.teacher.name, header.dataset, header.latent_dim) == ("pixels", "ssv2/train", 0)
    assert header.run.mask_ratio == 0.9


def test_of_a_cache_it_reads_the_frames_alone(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", num_clips=12, frames=True)  # row 3 holds latents that are no numbers
    run = small(tmp_path / "nowhere", tmp_path / "run", cache=tmp_path / "cache")
    assert open_clips(run).stores == ()
    assert pretrain(run).steps == 6


def test_videos_that_cannot_be_decoded_are_stood_in_for_by_the_next(tmp_path: Path) -> None:
    from tests.media import write_tiny_ssv2

    root = write_tiny_ssv2(tmp_path / "data")
    videos = sorted(root.rglob("*.webm"))
    for video in videos[:2]:
        video.write_bytes(b"no video")
    assert pretrain(small(root, tmp_path / "run")).steps == 6
    for video in videos:
        video.write_bytes(b"no video")
    with pytest.raises(Exception, match=r"\.webm: "):
        pretrain(small(root, tmp_path / "none"))


def test_what_is_missing_is_told_before_the_first_step(tiny_ssv2: Path, tmp_path: Path) -> None:
    run = RunConfig(tiny_ssv2, None, tmp_path / "run", student=StudentConfig(32, 1, 1, 2), predictor=PredictorConfig(24, 1, 2))
    with pytest.raises(CacheError, match="the objective latent needs a cache of latents"):
        pretrain(run)
    with pytest.raises(DatasetError):
        pretrain(small(tmp_path / "nowhere", tmp_path / "run"))
