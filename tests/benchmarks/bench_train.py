"""What a step of pretraining costs: with the real loader, against a teacher run online, against a plain ViT, in memory, from the start.

    python -m tests.benchmarks.bench_train [--quick] [--json] [--only loader,online,...] [--out DIR] [--device cuda] [--folder FOLDER]

One call measures everything, on a GPU (real geometry, 16 x 224, base preset) or small on a CPU; what cannot be measured is left out
with its reason, never guessed. Contenders run in turns in one process; a ratio is the median over rounds of the ratio within a round.
It needs torch, safetensors, crc32c, simplejpeg, typer and rich; transformers for `online`; neither zarr nor a video decoder.

*loader*: steps of the real trainer fed by `ClipFeed` from a cache with frames, every clip read, checked and decoded anew, over the
same steps on one batch that already lies on the device.
*online*: steps of the real trainer with cached latents over the same steps with VideoMAE run on the same frames and projected at
each of them (under inference mode, bfloat16 on a GPU, as a build runs it). On a GPU a VideoMAE-H with random weights; on a CPU a
scaled pair. `predicted` is (FLOPs of a training step + of the teacher's forward pass) / (FLOPs of a training step).
*hybrid*: forward, backward and optimizer of the base student alone at mask ratio 0.75 over those of a plain ViT-S (12 joint blocks
of 384, all tokens, SDPA) on the same 16 x 224 clips.
*mfu* (GPU): the whole step on a resident batch, the largest power of two that fits, with and without `torch.compile`.
*memory*: the most that two steps of the base preset at batch 64 take; on a CPU an estimate, see `estimated_peak`.
*probes*: seconds of kNN and linear on UCF-101-sized features, and a grid of attentive heads in one pass over separate runs, as
`bench_probes` has them.
*start*: from typing `stjepa pretrain --max-steps 1` to the end of the first step, the second time.

On a CPU `online` and `hybrid` count processor time, and one thread computes, so that other programs
disturb less; decoding has threads of its own.

Aims: loader 0.95; online 8 on a GPU, 0.8 of `predicted` on a CPU; hybrid 4; mfu 0.45; memory 15 GB; kNN and linear 10 s,
grid 10; start 15 s.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

try:
    from stjepa_cli.core.config import PRESETS, RunConfig
    from stjepa_cli.core.devices import autocast, pick_device
    from stjepa_cli.core.progress import SILENT
    from stjepa_cli.core.serialization import to_dict
    from stjepa_cli.core.types import ClipSpec, TeacherCard
    from stjepa_cli.data.loader import Batch, ClipFeed, Request
    from stjepa_cli.data.training_clips import CachedClips
    from stjepa_cli.models.layers import attention_flops, linear_flops, mlp_flops, tubelets
    from stjepa_cli.models.masking import tube_mask
    from stjepa_cli.models.student import Student
    from stjepa_cli.store import frames
    from stjepa_cli.store.arrays import HEADER, HEADER_DIGEST
    from stjepa_cli.store.latent_store import LatentStore
    from stjepa_cli.store.projection import Projection
    from stjepa_cli.store.quantization import encode
    from stjepa_cli.store.records import CacheHeader, ClipRow, Column, RowRecord, clips_digest
    from stjepa_cli.store.shard_writer import NewRow
    from stjepa_cli.training.distributed import World
    from stjepa_cli.training.objectives.base import Loss
    from stjepa_cli.training.objectives.latent import LatentObjective
    from stjepa_cli.training.optim import MovingAverage, ScheduledOptimizer
    from stjepa_cli.training.run_folder import Metrics
    from stjepa_cli.training.throughput import peak_flops
    from stjepa_cli.training.trainer import Trainer
    from tests.benchmarks import bench_probes
    from tests.benchmarks.common import Row, interleave, parser, ratio, report
except ModuleNotFoundError as missing:
    raise SystemExit(f"bench_train: nothing measured, {missing.name} is not installed (put its wheel on PYTHONPATH)") from missing

DIM = 384
REAL, SMALL, TINY = ClipSpec(), ClipSpec(size_px=112), ClipSpec(num_frames=4, size_px=32)
MASK_RATIO = 0.75
MEMORY_BATCH = 64
TEACHER_BATCH = 16


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        spec: geometry of `loader` and `online`; `hybrid` and `memory` always have the real one, but for --quick.
        preset: of their student.
        batch_size: clips of their steps.
        teacher: width, layers and heads of the VideoMAE that runs along.
        clips: of the cache.
        turn: steps of one contender in a row; the first `skipped` of them do not count.
        rounds: turns of each contender.
    """

    spec: ClipSpec
    preset: str
    batch_size: int
    teacher: tuple[int, int, int]
    clips: int
    turn: int
    skipped: int
    rounds: int


SCALES = {
    "gpu": Scale(REAL, "base", 64, (1280, 32, 16), 256, 20, 5, 5),
    "cpu": Scale(SMALL, "base", 8, (512, 16, 8), 32, 2, 1, 2),
    "quick": Scale(TINY, "tiny", 4, (64, 2, 4), 16, 4, 2, 2),
}


# -------------------------------------------------------------------------------------------------------------- a cache


def make_cache(path: Path, spec: ClipSpec, num_clips: int) -> LatentStore:
    """A cache with frames and random latents, as a build writes it; its few small zarr.json are written here, without zarr."""
    clips = [ClipRow(str(1000 + i), f"{1000 + i}.webm") for i in range(num_clips)]
    card = TeacherCard("random", "hog", "1", "0" * 64, "none", DIM, spec)
    about = {"kind": "identity", "digest": "0" * 64, "explained": 1.0, "num_fit_clips": 1}
    header = CacheHeader("ssv2", "train", num_clips, clips_digest(clips), card, DIM, about, frames=True)
    (path / "marks").mkdir(parents=True)
    attributes = {HEADER: to_dict(header), HEADER_DIGEST: header.digest}
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))
    (path / "clips.jsonl").write_text("".join(json.dumps(asdict(clip)) + "\n" for clip in clips))
    for column in header.columns:
        (path / column.name).mkdir()
        (path / column.name / "zarr.json").write_text(json.dumps(array_document(header, column)))
    store = LatentStore.open(path)
    chunks = [frames.encode_clip(clip) for clip in grainy_clips(min(num_clips, 16), spec)]
    for shard in store.pending():
        write_shard(store, shard, chunks)
    return store


def array_document(header: CacheHeader, column: Column) -> dict[str, Any]:
    """The `zarr.json` of a column."""
    first = {"name": "vlen-bytes"} if column.dtype == "bytes" else {"name": "bytes", "configuration": {"endian": "little"}}
    inner = {
        "chunk_shape": [1, *column.row_shape],
        "codecs": [first, {"name": "crc32c"}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [header.num_rows, *column.row_shape],
        "data_type": "variable_length_bytes" if column.dtype == "bytes" else column.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [header.rows_per_shard, *column.row_shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "" if column.dtype == "bytes" else "NaN",
        "codecs": [{"name": "sharding_indexed", "configuration": inner}],
    }


def write_shard(store: LatentStore, shard: int, chunks: list[bytes]) -> None:
    """Fill a shard with random latents, and with the frames of `chunks` again and again."""
    rows = store.rows_of(shard)
    made = encode(torch.randn(len(rows), store.header.num_tokens, DIM, generator=torch.Generator().manual_seed(shard)), "float16")
    with store.writing(shard) as writer:
        for row, data in zip(rows, made, strict=True):
            record = RowRecord(store.clip_of(row)[0].id, 0, "ab" * 32, tuple(range(store.header.teacher.clip.num_frames)))
            writer.append([NewRow(record, data | {"frames": chunks[row % len(chunks)]})])
        store.publish(writer)


def grainy_clips(count: int, spec: ClipSpec) -> Tensor:
    """Moving pictures uint8 (count, T, 3, S, S) with a camera's noise, so that their JPEGs have the size of real ones."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (count, 3, spec.num_frames // 2, 9, 9), generator=generator).float()
    clips = F.interpolate(coarse, size=(spec.num_frames, spec.size_px, spec.size_px), mode="trilinear").transpose(1, 2)
    return (clips + 6 * torch.randn(clips.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def random_batch(size: int, spec: ClipSpec, device: torch.device) -> Batch:
    """A batch on a device."""
    shape = (size, spec.num_frames, 3, spec.size_px, spec.size_px)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(torch.arange(size), clips, torch.randn(size, spec.grid.num_tokens, DIM).half()).to(device)


# ------------------------------------------------------------------------------------------------ the trainer, in turns


class Turns:
    """Which of two contenders takes which step of one run, and how long each turn's steps take; what the trainer asks whether to stop.

    The order is a b, b a, a b, ...: a slow minute of the machine is everyone's.
    """

    def __init__(self, names: tuple[str, str], scale: Scale, device: torch.device, clock: Callable[[], float]) -> None:
        self.names, self.scale, self.device, self.clock = names, scale, device, clock
        self.num_steps = 2 * scale.rounds * scale.turn
        self.step = 0
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self._since = 0.0

    def name(self, step: int) -> str:
        """Who takes a step, from 0."""
        number, place = divmod(step // self.scale.turn, 2)
        return self.names[(number + place) % 2]

    def __call__(self) -> bool:
        taken, self.step = self.step, self.step + 1
        place = self.step % self.scale.turn
        if place in (0, self.scale.skipped):
            finish(self.device)
            now = self.clock()
            if place == 0:
                self.seconds[self.name(taken)].append((now - self._since) / (self.scale.turn - self.scale.skipped))
            self._since = now
        return self.step == self.num_steps


class TaughtObjective(LatentObjective):
    """The usual objective; in the turns of `online` the targets come from a teacher, not from the batch."""

    turns: Turns
    targets: Callable[[Tensor], Tensor]

    def forward(self, batch: Batch, generator: torch.Generator) -> Loss:
        if self.turns.name(self.turns.step) == "online":
            batch = replace(batch, latents=self.targets(batch.clips))
        return super().forward(batch, generator)


class ResidentFeed:
    """Batches of the real feed; in the turns of `resident` one batch that lies on the device, again and again."""

    def __init__(self, feed: ClipFeed, resident: Batch, turns: Turns) -> None:
        self.feed, self.resident, self.turns = feed, resident, turns

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        with closing(self.feed.batches(requests)) as real:  # type: ignore[type-var]
            for step in range(self.turns.num_steps):
                yield self.resident if self.turns.name(step) == "resident" else next(real)


def make_trainer(store: LatentStore, folder: Path, scale: Scale, turns: Turns, device: torch.device) -> Trainer:
    """The real trainer, with one epoch that is long enough: no validation and no checkpoint inside a turn."""
    student, predictor = PRESETS[scale.preset]
    workers = max(2, os.cpu_count() or 2)
    run = RunConfig(
        folder, store.path, checkpoints=folder / "run", preset=scale.preset, epochs=1, batch_size=scale.batch_size,
        workers=workers, memory_gb=0.0, student=student, predictor=predictor,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    objective = TaughtObjective(Student(student, scale.spec, generator), run, [DIM], generator).to(device)
    objective.turns = turns
    source = CachedClips(store, folder)
    views = source.clips
    clips = views * -(-(turns.num_steps + 1) * scale.batch_size // len(views))
    return Trainer(run, source, clips, [], objective, World(0, 1, device), Metrics(run.checkpoints), SILENT)


def loader(store: LatentStore, folder: Path, scale: Scale, device: torch.device) -> list[Row]:
    """Steps with the real loader over steps on a resident batch."""
    turns = Turns(("loader", "resident"), scale, device, time.perf_counter)
    trainer = make_trainer(store, folder, scale, turns, device)
    trainer.feed = ResidentFeed(trainer.feed, random_batch(scale.batch_size, scale.spec, device), turns)  # type: ignore[assignment]
    trainer.train(turns)
    seconds = {name: statistics.median(times) for name, times in turns.seconds.items()}
    detail = f"{scale.batch_size / seconds['loader']:.1f} clips/s, resident {scale.batch_size / seconds['resident']:.1f}; {about(scale)}"
    return [row("step with the real loader / resident batch", ratio(turns.seconds, "loader", "resident"), 0.95, detail)]


def online(store: LatentStore, folder: Path, scale: Scale, device: torch.device) -> list[Row]:
    """Clips/s with cached latents over clips/s with the teacher running along."""
    turns = Turns(("cached", "online"), scale, device, compute_clock(device))
    trainer = make_trainer(store, folder, scale, turns, device)
    assert isinstance(trainer.objective, TaughtObjective)
    trainer.objective.targets = make_teacher(scale, device)
    trainer.train(turns)
    step = 3 * trainer.objective.flops()
    predicted = (step + teacher_flops(scale)) / step
    seconds = {name: statistics.median(times) for name, times in turns.seconds.items()}
    measured = ratio(turns.seconds, "cached", "online")
    detail = f"{scale.batch_size / seconds['cached']:.1f} clips/s, online {scale.batch_size / seconds['online']:.1f}; {about(scale)}"
    detail += f", teacher {scale.teacher[1]} x {scale.teacher[0]}; FLOPs predict {predicted:.1f} x"
    on_gpu = device.type == "cuda"
    return [
        row("clips/s cached / teacher online", measured, 8.0 if on_gpu else None, detail),
        row("the same / what FLOPs predict", measured / predicted, None if on_gpu else 0.8, f"{measured:.2f} / {predicted:.2f}"),
    ]


def make_teacher(scale: Scale, device: torch.device) -> Callable[[Tensor], Tensor]:
    """VideoMAE with random weights and a random projection: uint8 clips (B, T, 3, S, S) to float16 latents (B, N, D)."""
    from transformers import VideoMAEConfig, VideoMAEModel

    from stjepa_cli.teachers._pretrained import IMAGENET
    from stjepa_cli.teachers.videomae import VideoMae

    dim, layers, heads = scale.teacher
    spec = scale.spec
    sizes = VideoMAEConfig(
        hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * dim, image_size=spec.size_px,
        num_frames=spec.num_frames, tubelet_size=spec.tubelet, patch_size=spec.patch_px, use_mean_pooling=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = VideoMAEModel(sizes).eval().requires_grad_(False).to(device)
    teacher = VideoMae(TeacherCard("random", "videomae", "1", "0" * 64, "none", dim, spec), model, *IMAGENET, device)
    mean, matrix = torch.zeros(dim, device=device), torch.randn(DIM, dim, device=device) * dim**-0.5
    project = Projection("random", "layernorm", mean, matrix, 1.0, 1.0, 1)

    def targets(clips: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([project(teacher.encode(part)).half() for part in torch.split(clips, TEACHER_BATCH)])

    return targets


def teacher_flops(scale: Scale) -> int:
    """Floating point operations of the teacher and the projection on one clip."""
    dim, layers, _ = scale.teacher
    n, patch = scale.spec.grid.num_tokens, scale.spec.tubelet * scale.spec.patch_px**2 * 3
    return linear_flops(n, patch, dim) + layers * (attention_flops(1, n, dim) + mlp_flops(n, dim, 4)) + linear_flops(n, dim, DIM)


# ------------------------------------------------------------------------------------------------------ steps by themselves


class Steps:
    """Whole steps of a preset on a resident batch: forward, backward, optimizer, moving average."""

    def __init__(self, preset: str, batch: Batch, spec: ClipSpec, *, compiled: bool = False, recompute: bool = False) -> None:
        student, predictor = PRESETS[preset]
        generator = torch.Generator().manual_seed(0)
        self.batch = batch
        run = RunConfig(Path(), Path(), preset=preset, student=student, predictor=predictor, batch_size=len(batch.rows))
        self.objective = LatentObjective(Student(student, spec, generator), run, [DIM], generator).to(batch.clips.device).train()
        self.objective.student.activation_checkpointing = recompute
        self.average = MovingAverage(self.objective.student, run.ema)
        self.descent = ScheduledOptimizer(self.objective, run.optimizer, run.batch_size)
        for block in self._blocks() if compiled else ():
            block.compile()

    def _blocks(self) -> list[nn.Module]:
        student, predictor = self.objective.student, self.objective.predictor
        return [*student.factorized, *student.joint, *predictor.blocks]

    def __call__(self) -> None:
        with autocast(self.batch.clips.device):
            loss = self.objective(self.batch, torch.Generator().manual_seed(1)).total
        loss.backward()
        self.descent.step(1, 100)
        self.average.update(self.objective.student, 2)
        finish(self.batch.clips.device)


class PlainViT(nn.Module):
    """A ViT-S on all tokens of a clip (arXiv 2103.15691, joint attention), in plain torch."""

    def __init__(self, spec: ClipSpec, dim: int = 384, depth: int = 12, heads: int = 6) -> None:
        super().__init__()
        self.spec, self.heads = spec, heads
        self.embed = nn.Linear(spec.tubelet * spec.patch_px**2 * 3, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(spec.grid.num_tokens, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * depth + 1))
        self.qkv = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in range(depth))
        self.proj = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)) for _ in range(depth))

    def forward(self, clips: Tensor) -> Tensor:
        x: Tensor = self.embed((tubelets(clips, self.spec).float() / 255 - 0.45).div_(0.225)) + self.positions
        b, n, d = x.shape
        for i, (qkv, proj, mlp) in enumerate(zip(self.qkv, self.proj, self.mlps, strict=True)):
            q, k, v = qkv(self.norms[2 * i](x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            x = x + proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.norms[-1](x)  # type: ignore[no-any-return]


def encoder_step(encoder: nn.Module, forward: Callable[[], Tensor], device: torch.device) -> Callable[[], None]:
    """Forward, backward and AdamW of an encoder under a simple loss."""
    optimizer = torch.optim.AdamW(encoder.parameters(), fused=True)

    def step() -> None:
        with autocast(device):
            loss = forward().float().square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        finish(device)

    return step


def hybrid(device: torch.device, *, quick: bool) -> list[Row]:
    """The hybrid student on visible tubes over a plain ViT-S on all tokens."""
    on_gpu = device.type == "cuda"
    spec, size, rounds = (TINY, 2, 2) if quick else (REAL, 32 if on_gpu else 1, 10 if on_gpu else 2)
    batch = random_batch(size, spec, device)
    student = Student(PRESETS["base"][0], spec, torch.Generator().manual_seed(0)).to(device).train()
    plain = PlainViT(spec).to(device).train()
    mask = tube_mask(spec.grid, size, MASK_RATIO, torch.Generator().manual_seed(0)).to(device)
    contenders = {
        "hybrid": encoder_step(student, lambda: student(batch.clips, mask), device),
        "plain": encoder_step(plain, lambda: plain(batch.clips), device),
    }
    clock, seconds = compute_clock(device), {name: list[float]() for name in contenders}
    for number in range(-3 if on_gpu else 0, rounds):  # a step on a CPU takes seconds, a warm-up changes little
        for name in list(contenders) if number % 2 else reversed(list(contenders)):
            began = clock()
            contenders[name]()
            if number >= 0:
                seconds[name].append(clock() - began)
    per_clip = {name: 1000 * statistics.median(times) / size for name, times in seconds.items()}
    detail = f"{per_clip['hybrid']:,.1f} and {per_clip['plain']:,.1f} ms a clip, batch {size}, {geometry(spec)}"
    return [row("hybrid student at mask 0.75 / plain ViT-S on all tokens", ratio(seconds, "hybrid", "plain"), 4.0, detail)]


def mfu(device: torch.device, *, quick: bool) -> list[Row]:
    """Share of the GPU's peak in the whole step of the base preset, batch as large as fits."""
    peak = peak_flops(device)
    if peak is None:
        return [left_out("MFU of the base preset", "no GPU whose peak is known")]
    size = largest_batch(device, 16 if quick else 1024)
    made: list[Row] = []
    for compiled in (False, True):
        what = f"MFU of the base preset, {'with' if compiled else 'without'} torch.compile"
        try:
            steps = Steps("base", random_batch(size, REAL, device), REAL, compiled=compiled)
            seconds = interleave({"step": steps}, 3 if quick else 10, warmup=3)["step"]
        except Exception as error:  # a compiler fails in many ways; that is a result
            made.append(left_out(what, f"failed: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"))
            continue
        rate, flops = size / statistics.median(seconds), 3 * steps.objective.flops()
        detail = f"{rate:,.0f} clips/s at batch {size}, {flops / 1e9:.0f} GFLOP a clip, peak {peak / 1e12:.0f} TFLOP/s"
        made.append(row(what, flops * rate / peak, 0.45, detail))
        del steps
    return made


def largest_batch(device: torch.device, most: int) -> int:
    """The largest power of two of clips whose step fits, at most `most`."""
    size = most
    while size > 1:
        try:
            steps = Steps("base", random_batch(size, REAL, device), REAL)
            steps()
            steps()
            return size
        except torch.cuda.OutOfMemoryError:
            size //= 2
        finally:
            steps = None  # type: ignore[assignment]
            torch.cuda.empty_cache()
    return 1


# ---------------------------------------------------------------------------------------------------------------- memory


def memory(device: torch.device, *, quick: bool) -> list[Row]:
    """The most memory that two steps of the base preset take at batch 64, with and without recomputing."""
    made = []
    for recompute in (False, True):
        what = f"peak memory, base, batch {MEMORY_BATCH}, 16 x 224" + (", recompute" if recompute else "")
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            steps = Steps("base", random_batch(MEMORY_BATCH, REAL, device), REAL, recompute=recompute)
            steps()
            steps()
            peak = torch.cuda.max_memory_allocated(device) - before
            detail = f"measured, bfloat16 autocast, not compiled; {torch.cuda.max_memory_reserved(device) / 1e9:.1f} GB reserved"
            del steps
        else:
            peak = estimated_peak(4 if quick else MEMORY_BATCH, recompute=recompute)
            what = what.replace("64", "4") if quick else what
            detail = "ESTIMATE, no GPU: every tensor of two steps followed on fake tensors; see estimated_peak"
        detail += "; GB; a batch that is copied ahead included"
        ahead = MEMORY_BATCH * (REAL.num_frames * 3 * REAL.size_px**2 + 2 * REAL.grid.num_tokens * DIM)
        made.append(row(what, (peak + ahead) / 1e9, 15.0, detail, least=False))
    return made


def estimated_peak(batch_size: int, *, recompute: bool) -> int:
    """Bytes that two steps of the base preset hold at most, from the life of every tensor's storage on fake tensors.

    Nothing is computed: shapes and types only. Parameters, gradients, AdamW's state and the moving average are float32, the
    residual stream, norms and loss too; matrix products and what they keep are bfloat16 (the autocast of the CPU, whose lists
    agree with CUDA's here), attention keeps no matrix. Left out: workspaces inside kernels, the CUDA context, gaps in the
    allocator's blocks.
    """
    spec, mode, live = REAL, FakeTensorMode(), LiveBytes()
    steps = Steps("base", random_batch(1, spec, torch.device("cpu")), spec, recompute=recompute)
    for module in [*steps.objective.modules(), *steps.average.modules()]:
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = mode.from_tensor(tensor)  # type: ignore[assignment]
                    live.add(tensors[name])
    steps.descent = ScheduledOptimizer(steps.objective, steps.objective.run.optimizer, batch_size)
    with mode, live, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape = (batch_size, spec.num_frames, 3, spec.size_px, spec.size_px)
        latents = torch.empty(batch_size, spec.grid.num_tokens, DIM, dtype=torch.float16)
        steps.batch = Batch(torch.arange(batch_size), torch.empty(shape, dtype=torch.uint8), latents)
        for number in (1, 2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = steps.objective(steps.batch, torch.Generator().manual_seed(number)).total
            loss.backward()
            steps.descent.step(number, 100)
            steps.average.update(steps.objective.student, number)
    return live.most


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that live, as operations make them and Python drops them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for part in tree_leaves(found):
            self.add(part)
        return found

    def add(self, tensor: object) -> None:
        """Count a tensor's storage, once, until it is freed."""
        if not isinstance(tensor, Tensor) or tensor.untyped_storage()._cdata in self._known:
            return
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key)


# ----------------------------------------------------------------------------------------------------------------- start


def probes(device: torch.device, *, quick: bool) -> list[Row]:
    """What probes take."""
    rows = [
        row(f"{found['probe']} s", float(str(found["wall_seconds"])), 10.0, "9.5 k x 384, 101 classes", least=False)
        for found in bench_probes.measure_probes(device, quick=quick)
    ]
    for found in bench_probes.measure_grids(device, quick=quick):
        detail = (
            f"{found['blocks']} blocks, {found['tokens']} tokens of {found['dim']}; {found['times as fast as plain']:.1f} of torch's layers"
        )
        rows.append(row("attentive grid / 20 runs", float(str(found["times as fast"])), 10.0, detail))
    return rows


def start(store: LatentStore, folder: Path, preset: str, device: torch.device) -> list[Row]:
    """Seconds from the command to the end of the first step, for a second run of the program."""
    batch_size = min(64, store.header.num_clips)
    command = [sys.executable, "-m", "stjepa_cli", "pretrain", "--max-steps", "1", "--fresh", "--batch-size", str(batch_size)]
    command += ["--cache", str(store.path), "--data-root", str(folder), "--checkpoints", str(folder / "started")]
    command += ["--preset", preset, "--device", str(device)]
    metrics, log = folder / "started" / "metrics.jsonl", folder / "started.log"
    for _ in range(2):
        metrics.unlink(missing_ok=True)
        began = time.perf_counter()
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
                time.sleep(0.01)
            seconds = time.perf_counter() - began
            if process.wait():
                return [left_out("command to first step", f"it failed: {log.read_text().strip().splitlines()[-1]}")]
    said = [line for line in log.read_text().splitlines() if line.strip()]
    print("\n".join(["what it says until then:", *(f"  {line}" for line in said[:6])]), file=sys.stderr)
    detail = f"s, the second time; {preset}, {batch_size} clips, {geometry(store.header.teacher.clip)}"
    return [row("command to the end of the first step", seconds, 15.0, detail, least=False)]


# ------------------------------------------------------------------------------------------------------------------ rows


def row(what: str, measured: float, aim: float | None, detail: str, *, least: bool = True) -> Row:
    """A result; `least` says that the aim is a lower bound."""
    met = None if aim is None else ("met" if (measured >= aim if least else measured < aim) else "MISSED")
    return {"what": what, "measured": round(measured, 3), "aim": aim, "": met, "detail": detail}


def left_out(what: str, reason: str) -> Row:
    """What could not be measured."""
    return {"what": what, "measured": None, "aim": None, "": "left out", "detail": reason}


def geometry(spec: ClipSpec) -> str:
    """Frames and pixels."""
    return f"{spec.num_frames} x {spec.size_px}"


def about(scale: Scale) -> str:
    """What was trained."""
    return f"{scale.preset}, batch {scale.batch_size}, {geometry(scale.spec)}"


def compute_clock(device: torch.device) -> Callable[[], float]:
    """Seconds: on a CPU those of this process, so that other programs on the machine do not count."""
    return time.perf_counter if device.type == "cuda" else time.process_time


def finish(device: torch.device) -> None:
    """Wait until a device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def described(device: torch.device, arguments: Any) -> str:
    """Where this was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    quick = "; --quick: these figures say nothing" if arguments.quick else ""
    return f"{name}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}{quick}"


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--only", default="", help="some of loader,online,hybrid,mfu,memory,probes,start")
    made.add_argument("--out", type=Path, help="write bench_train.json there")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--folder", type=Path, help="where to put the cache; default: the folder for temporary files")
    arguments = made.parse_args()
    device = pick_device(arguments.device)
    quick, on_gpu = arguments.quick, device.type == "cuda"
    scale = SCALES["quick" if quick else "gpu" if on_gpu else "cpu"]
    if not on_gpu:
        torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        tasks: dict[str, Callable[[], list[Row]]] = {
            "loader": lambda: loader(make_cache(folder / "a", scale.spec, scale.clips), folder / "loader", scale, device),
            "online": lambda: online(make_cache(folder / "b", scale.spec, scale.clips), folder / "online", scale, device),
            "hybrid": lambda: hybrid(device, quick=quick),
            "mfu": lambda: mfu(device, quick=quick),
            "memory": lambda: memory(device, quick=quick),
            "probes": lambda: probes(device, quick=quick),
            "start": lambda: start(make_cache(folder / "c", scale.spec, 16), folder, scale.preset, device),
        }
        for task in arguments.only.split(",") if arguments.only else tasks:
            if task == "online" and not importlib.util.find_spec("transformers"):
                rows.append(left_out("clips/s cached / teacher online", "transformers is not installed"))
                continue
            rows += tasks[task]()
            if on_gpu:
                torch.cuda.empty_cache()
    notes = [described(device, arguments)]
    report("Pretraining", rows, as_json=arguments.json, notes=notes)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "bench_train.json").write_text(json.dumps({"rows": rows, "notes": notes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
