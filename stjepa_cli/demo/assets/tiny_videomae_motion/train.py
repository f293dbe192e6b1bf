"""Train the demo's teacher from scratch: `python -m stjepa_cli.demo.assets.tiny_videomae_motion.train OUT`.

A VideoMAE of four layers learns to tell the eight motions of generated clips apart, with labels, in seven minutes on two CPU
cores. Its first two layers are released, because the tokens of the last one hold little but the class and teach a student less.
The seed and the sizes below made the shipped folder.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

from stjepa_cli.core.types import ClipSpec
from stjepa_cli.demo.motions import SCENES
from stjepa_cli.demo.patterns import FamilyName
from stjepa_cli.demo.scenes import draw_clips

CLASSES = tuple(motion.name for motion in SCENES["8"].motions)
SPEC = ClipSpec(num_frames=8, size_px=32, tubelet=2, patch_px=8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEED, NUM_CLIPS, NUM_STEPS, BATCH_SIZE, PEAK_LR = 0, 12_000, 1_600, 64, 2e-3
WIDTH, DEPTH, HEADS, RELEASED_DEPTH = 96, 4, 4, 2


def generate(num_clips: int, seed: int, family: FamilyName) -> tuple[Tensor, Tensor]:
    """Return clips uint8 (B, 8, 3, 32, 32), cut as from files, and their labels (B,)."""
    clips, labels = draw_clips(num_clips, seed, family)
    frames = clips[:, list(SPEC.frame_indices(clips.shape[1]))].flatten(0, 1)
    small = F.interpolate(frames, size=(SPEC.size_px, SPEC.size_px), mode="bilinear", antialias=True)
    return small.view(num_clips, SPEC.num_frames, 3, SPEC.size_px, SPEC.size_px), labels


def model() -> VideoMAEForVideoClassification:
    """Return the untrained classifier. Narrow layers need larger initial weights than the usual 0.02 to leave chance soon."""
    config = VideoMAEConfig(
        image_size=SPEC.size_px,
        patch_size=SPEC.patch_px,
        num_frames=SPEC.num_frames,
        tubelet_size=SPEC.tubelet,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        initializer_range=0.1,
        use_mean_pooling=True,
        label2id={name: i for i, name in enumerate(CLASSES)},
        id2label=dict(enumerate(CLASSES)),
    )
    return VideoMAEForVideoClassification(config)


def pixels(clips: Tensor) -> Tensor:
    """Return uint8 clips as normalised float32."""
    return (clips.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def disturbed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and tint of each clip, and add noise as a codec does."""
    b = len(x)
    gain, tint = torch.randn(b, 1, 1, 1, 1, generator=generator), torch.randn(b, 1, 3, 1, 1, generator=generator)
    return x * (1 + 0.2 * gain) + 0.2 * tint + 0.05 * torch.randn(x.shape, generator=generator)


@torch.inference_mode()
def accuracy(classifier: VideoMAEForVideoClassification, clips: Tensor, labels: Tensor) -> float:
    """Return the fraction of right answers."""
    classifier.eval()
    answers = torch.cat([classifier(pixels(part)).logits.argmax(1) for part in clips.split(200)])  # type: ignore[no-untyped-call]
    classifier.train()
    return (answers == labels).float().mean().item()


def train(out: Path) -> dict[str, float]:
    """Train, release, and return the accuracy of the whole classifier on held-out clips of each family."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    clips, labels = generate(NUM_CLIPS, SEED, "train")
    held_out = {family: generate(800, SEED + 1, family) for family in ("train", "unseen")}
    classifier = model()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=PEAK_LR, weight_decay=0.05, betas=(0.9, 0.95))
    started = time.monotonic()
    for step in range(NUM_STEPS):
        rate = PEAK_LR * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / NUM_STEPS)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = torch.randint(len(clips), (BATCH_SIZE,), generator=generator)
        logits = classifier(disturbed(pixels(clips[rows]), generator)).logits
        loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            shown = {family: round(accuracy(classifier, *data), 4) for family, data in held_out.items()}
            print(f"step {step + 1}: loss {loss.item():.3f}, accuracy {shown}, {time.monotonic() - started:.0f} s", flush=True)
    release(classifier, out)
    return {family: accuracy(classifier, *data) for family, data in held_out.items()}


def release(classifier: VideoMAEForVideoClassification, out: Path) -> None:
    """Save the first layers, without the head, as float16."""
    config = VideoMAEConfig(**(classifier.config.to_dict() | {"num_hidden_layers": RELEASED_DEPTH, "dtype": None}))
    encoder = VideoMAEModel(config)
    known = encoder.state_dict()
    encoder.load_state_dict({name: tensor for name, tensor in classifier.videomae.state_dict().items() if name in known})
    encoder.half().save_pretrained(out)
    (out / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD, "size": SPEC.size_px}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    print(train(parser.parse_args().out))
