"""Tiny models of every kind of teacher, saved as people save them. `write_<plug-in>(folder)` returns what the teacher is opened by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VJEPA2Config,
    VJEPA2Model,
)

from stjepa_cli.core.config import RunConfig, StudentConfig
from stjepa_cli.core.types import ClipSpec, TeacherCard
from stjepa_cli.models.checkpoint import CheckpointHeader, checkpoint_path, write_checkpoint
from stjepa_cli.models.student import Student

STUDENT_SPEC = ClipSpec(num_frames=4, size_px=16, tubelet=2, patch_px=8)
STUDENT_CONFIG = StudentConfig(dim=16, num_factorized=1, num_joint=2, num_heads=2)
DINOV3_REGISTERS = 2


def filled(model: Any, std: float = 0.3) -> Any:
    """Give every parameter of a model random values, biases and norms too, so that each of them matters."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    return model.eval()


def videomae_config(*, mean_pooling: bool = True) -> VideoMAEConfig:
    """Clips of 4 frames of 32 px."""
    return VideoMAEConfig(
        num_frames=4, image_size=32, patch_size=8, tubelet_size=2, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=96, decoder_hidden_size=24, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=48, use_mean_pooling=mean_pooling,
    )  # fmt: skip


def write_videomae(folder: Path) -> Path:
    """Write a fine-tuned model."""
    filled(VideoMAEForVideoClassification(videomae_config()), std=0.1).save_pretrained(folder)
    return folder


def vjepa2_config(**values: object) -> VJEPA2Config:
    """Clips of 6 frames of 32 px."""
    sizes: dict[str, object] = {
        "frames_per_clip": 6, "crop_size": 32, "patch_size": 8, "tubelet_size": 2, "hidden_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "mlp_ratio": 2.0, "num_pooler_layers": 1, "pred_hidden_size": 24, "pred_num_hidden_layers": 2,
        "pred_num_attention_heads": 2, "pred_num_mask_tokens": 2,
    }  # fmt: skip
    return VJEPA2Config(**(sizes | values))


def write_vjepa2(folder: Path) -> Path:
    """Write a pretrained model."""
    filled(VJEPA2Model(vjepa2_config())).save_pretrained(folder)
    return folder


def dinov2_sizes() -> dict[str, Any]:
    """6 x 6 positions, patches of 7 px."""
    return {"image_size": 42, "patch_size": 7, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}


def write_dinov2(folder: Path) -> Path:
    """Write a model without registers."""
    filled(Dinov2Model(Dinov2Config(**dinov2_sizes()))).save_pretrained(folder)
    return folder


def write_dinov3(folder: Path) -> Path:
    """Write a model of patches of 10 px, with registers."""
    config = DINOv3ViTConfig(
        image_size=40, patch_size=10, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_register_tokens=DINOV3_REGISTERS,
    )  # fmt: skip
    filled(DINOv3ViTModel(config)).save_pretrained(folder)
    return folder


def write_student(folder: Path, step: int = 12, *, ema: bool = False) -> Path:
    """Write the checkpoint of a student whose weights follow from the step."""
    header = CheckpointHeader(
        step=step,
        epoch=1,
        run=RunConfig(Path("videos"), Path("cache"), student=STUDENT_CONFIG),
        clip=STUDENT_SPEC,
        latent_dim=12,
        teacher=TeacherCard("someone/teacher", "videomae", "local", "0" * 64, "CC-BY-NC-4.0", 12, STUDENT_SPEC),
        cache_digest="1" * 64,
        dataset="ssv2/train",
    )
    seeds = {"student": step, "ema": 1000 + step} if ema else {"student": step}
    students = {group: Student(STUDENT_CONFIG, STUDENT_SPEC, torch.Generator().manual_seed(seed)) for group, seed in seeds.items()}
    tensors = {f"{group}.{name}": tensor for group, student in students.items() for name, tensor in student.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(checkpoint_path(folder, step), header, tensors | {"predictor.out.bias": torch.zeros(3)}, {})
    return checkpoint_path(folder, step)
