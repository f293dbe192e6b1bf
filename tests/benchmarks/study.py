"""The representation study: a list of pretraining runs, each scored by frozen probes, skipped where done, and one table at the end.

    python -m tests.benchmarks.study tests/benchmarks/study.toml --work /tmp/study --jobs 2
    python -m tests.benchmarks.study tests/benchmarks/study.toml --work /tmp/study --update docs/results.md

Clips are drawn in memory, so neither FFmpeg nor a data set is needed; caches, training and probes are the product's own. What is used
to choose (`--clips-seed` of the list) is never what the demo and the motion benchmark report on.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

EVAL_CLIPS = 400
FIT_CLIPS = 512
VIDEO_FRAMES = 16
"""Frames of a drawn video where a clip has several views; it is 1.5 times as wide as a clip."""

STUDENTS: dict[str, dict[str, Any]] = {
    "pixel student": {"objective": "pixels", "mask_ratio": 0.75},
    "hog student": {"recipe": "mixed"},
}
"""Teachers that are students themselves, with the flags of their run; seed 100, the same clips and steps."""

BATCH = 64
BATCH_SIZE = 32
"""Clips per training step; `BATCH` clips are encoded at once."""
HEAD = "| setting | kNN | linear | held-out loss | GFLOP/clip | CPU s | seeds |"
# two-sided 95 % quantiles of Student's t, by the number of seeds
T_QUANTILE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def expand(listing: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one flat description per run: defaults, then the row's own values, for each of its seeds."""
    runs = []
    for row in listing["run"]:
        merged = {**listing["defaults"], **row}
        seeds = merged.pop("seeds")
        runs += [{**merged, "seed": seed} for seed in seeds]
    return runs


def key_of(run: dict[str, Any]) -> str:
    """Return the name under which a run's result is kept; where it ran does not count."""
    plain = {name: value for name, value in run.items() if name not in ("group", "label", "device", "priority")}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def results_of(work: Path) -> dict[str, dict[str, Any]]:
    """Return the results so far by key."""
    found = {}
    for path in sorted((work / "results").glob("*.json")):
        found[path.stem] = json.loads(path.read_text())
    return found


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time make what `path` names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ------------------------------------------------------------------------------------------------------ one run


def draw(run: dict[str, Any], num_clips: int, seed: int, family: str, num_views: int) -> tuple[Any, Any, list[Any]]:
    """Draw clips and cut their views.

    Returns:
        Clips uint8 (R, T, 3, S, S), the views of a clip one after the other, labels (R / K,), and the frames and crop of each row. A
        run without `views` gets clips drawn in their final size, any other the views of larger videos, as in the demo.
    """
    import torch
    import torch.nn.functional as F

    from stjepa_cli.core.types import ClipSpec
    from stjepa_cli.data.views import cut_view
    from stjepa_cli.demo.scenes import draw_clips

    spec = ClipSpec(run["frames"], run["size"], 2, run["patch"])
    size = (spec.size_px, spec.size_px)
    if "views" not in run:
        clips, labels = draw_clips(num_clips, seed, family, num_frames=spec.num_frames, size_px=spec.size_px)  # type: ignore[arg-type]
        return clips, labels, [(tuple(range(spec.num_frames)), (0, 0, *size))] * len(clips)
    side, rows, cuts = spec.size_px * 3 // 2, [], []
    videos, labels = draw_clips(num_clips, seed, family, num_frames=VIDEO_FRAMES, size_px=side)  # type: ignore[arg-type]
    for number, video in enumerate(videos):
        for view in range(num_views):
            indices, box = cut_view(spec, num_frames=VIDEO_FRAMES, height=side, width=side, clip_id=str(number), view=view, seed=0)
            part = video[list(indices)][:, :, box.top : box.top + box.height, box.left : box.left + box.width]
            rows.append(F.interpolate(part, size=size, mode="bilinear", antialias=True, align_corners=False))
            cuts.append((indices, (box.top, box.left, box.height, box.width)))
    return torch.stack(rows), labels, cuts


def teacher_name(run: dict[str, Any], work: Path) -> str:
    """Return what `open_teacher` takes: a folder or a name, or the checkpoint of a student that is trained first, if need be."""
    name = str(run["teacher"])
    if name == "tiny":
        return str(files("stjepa_cli.demo.assets") / "tiny_videomae_motion")
    if name not in STUDENTS:
        return os.environ.get(f"STUDY_{name.upper()}", name)
    first = {
        name: value for name, value in run.items() if name not in ("layers", "second_teacher", "flags", "tables", "views", "projection")
    }
    first |= {"teacher": "hog", "projection": "pca", "seed": 100, "flags": STUDENTS[name]}
    folder = work / "runs" / key_of(first)
    with locked(folder):
        if not (folder / f"checkpoint_step{first['steps']}.safetensors").is_file():
            train(first, work)
    return str(folder)


def make_cache(run: dict[str, Any], work: Path, path: Path) -> None:
    """Encode clips with a teacher and write the latents and the frames as a cache."""
    import torch

    from stjepa_cli.core.types import ClipSpec
    from stjepa_cli.teachers.base import open_teacher

    spec = ClipSpec(run["frames"], run["size"], 2, run["patch"])
    name = teacher_name(run, work)
    teacher = open_teacher(name, clip=None if run["teacher"] in ("tiny", *STUDENTS) else spec, device=torch.device("cpu"))
    num_views = run.get("views", 1)
    clips, _, cuts = draw(run, run["clips"], run["clips_seed"], "train", num_views)
    layers = {"layers": tuple(run["layers"])} if run.get("layers") else {}
    tokens = torch.cat([teacher.encode(part, **layers).half() for part in torch.split(clips, BATCH)])
    write_cache(path, teacher.card, clips, tokens, cuts, num_views=num_views, projection=run["projection"], dim=run["dim"])


def write_cache(
    path: Path, card: Any, clips: Any, tokens: Any, cuts: list[Any], *, num_views: int = 1, projection: str = "pca", dim: int = 96
) -> None:
    """Write clips uint8 (R, T, 3, S, S) and a teacher's tokens (R, N, E) as a cache of K views a clip, one after the other."""
    import torch

    from stjepa_cli.store import frames, quantization
    from stjepa_cli.store.latent_store import LatentStore
    from stjepa_cli.store.projection import ProjectionFit
    from stjepa_cli.store.records import CacheHeader, ClipRow, RowRecord, clips_digest
    from stjepa_cli.store.shard_writer import NewRow

    fit = ProjectionFit(tokens.shape[-1], card.token_norm)
    sample = torch.randperm(len(clips), generator=torch.Generator().manual_seed(0))[:FIT_CLIPS]
    for part in torch.split(tokens[sample], BATCH):
        fit.add(part.float())
    project = fit.finish(projection, dim)
    rows = [ClipRow(str(i), f"{i}.webm") for i in range(len(clips) // num_views)]
    about = {"kind": project.kind, "digest": project.digest, "explained": project.explained, "num_fit_clips": FIT_CLIPS}
    header = CacheHeader("generated", "train", len(rows), clips_digest(rows), card, dim, about, num_views=num_views, frames=True)
    store = LatentStore.create(path, header, rows, project)
    for shard in store.pending():
        with store.writing(shard) as writer:
            members = list(store.rows_of(shard))
            data = quantization.encode(project(tokens[members].float()), "float16")
            entries = []
            for i, row in enumerate(members):
                record = RowRecord(str(row // num_views), row % num_views, "ab" * 32, *cuts[row])
                entries.append(NewRow(record, {**data[i], "frames": frames.encode_clip(clips[row])}))
            writer.append(entries)
            store.publish(writer)
    store.tidy()


def cache_of(run: dict[str, Any], work: Path) -> Path:
    """Return the cache of a run, made if need be."""
    names = ("teacher", "frames", "size", "patch", "clips", "clips_seed", "projection", "dim", "layers", "views")
    text = "-".join(str(run.get(name, "")).replace("/", "_").replace(" ", "") for name in names)
    text += f"-{run['steps']}" if run["teacher"] in STUDENTS else ""
    path = work / "caches" / hashlib.sha256(text.encode()).hexdigest()[:16]
    with locked(path):
        if not (path / "ready").is_file():
            make_cache(run, work, path)
            (path / "ready").write_text(text)
    return path


def score(student: Any, run: dict[str, Any]) -> dict[str, float]:
    """Return kNN and linear accuracy of time-pooled features on the unseen family."""
    import torch

    from stjepa_cli.encoders.base import pooled
    from stjepa_cli.encoders.features import Features
    from stjepa_cli.evaluation.probes.base import build

    sides = []
    device = next(student.parameters()).device
    for side, seed in (("train", run["clips_seed"] + 900), ("test", run["clips_seed"] + 901)):
        clips, labels, _ = draw(run, EVAL_CLIPS, seed, "unseen", 1)
        with torch.inference_mode():
            tokens = torch.cat([pooled(student(part.to(device)), student.grid, "time").cpu() for part in torch.split(clips, BATCH)])
        names = tuple(f"{side}{i:04}" for i in range(len(clips)))
        sides.append(Features(tokens, labels, names, names))
    return {name: build(name).fit_score(sides[0], sides[1], 8, 0).metrics["top1"] for name in ("knn", "linear")}


def train(run: dict[str, Any], work: Path) -> tuple[Any, Path, float, float]:
    """Pretrain one run; return its result, its folder, and the seconds of the clock and of the CPU."""
    import torch

    torch.set_num_threads(1)
    from stjepa_cli.training.pretrain import pretrain
    from stjepa_cli.training.recipes import resolve_run

    folder = work / "runs" / key_of(run)
    places: dict[str, Any] = {"data_root": work, "cache": cache_of(run, work), "checkpoints": folder, "preset": run["preset"]}
    if run.get("second_teacher"):
        places["second_cache"] = cache_of({**run, "teacher": run["second_teacher"], "projection": "pca", "layers": None}, work)
    flags = {"steps": run["steps"], "batch_size": BATCH_SIZE, "seed": run["seed"], "device": run["device"], "workers": 1}
    flags |= {"checkpoint_every": str(run["every"]), "compile": "off", "lr": 2.83e-3, **run.get("flags", {})}
    if "objective" in flags:
        places["cache"], flags["cache"] = None, cache_of(run, work)  # a flag, since an objective without latents reads no default one
    config = resolve_run({**places, **run.get("tables", {})}, flags=flags)
    started, cpu = time.monotonic(), time.process_time()
    result = pretrain(config, fresh=True)
    return result, folder, time.monotonic() - started, time.process_time() - cpu


def one(run: dict[str, Any], work: Path) -> dict[str, Any]:
    """Train and score one run, at each of its checkpoints."""
    import torch

    from stjepa_cli.models.checkpoint import list_checkpoints
    from stjepa_cli.models.student import load_student

    device = run["device"]
    result, folder, spent, cpu = train(run, work)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validated = {line["step"]: line for line in metrics if "val_loss" in line}
    curve = []
    for path in list_checkpoints(folder):
        step = int(path.stem.removeprefix("checkpoint_step"))
        if step % run["every"] and step != run["steps"]:
            continue
        student, _ = load_student(path, torch.device(device))
        figures = {"step": step, "seconds": round(spent * step / run["steps"], 1), **score(student, run)}
        near = min(validated, key=lambda at: abs(at - step), default=None)
        if near is not None and step:
            figures |= {name: round(validated[near][name], 4) for name in ("val_loss", "content_fraction", "effective_rank")}
            figures |= {
                name: round(value, 4) for name, value in validated[near].items() if name in ("val_hidden", "val_visible", "val_dense")
            }
        curve.append(figures)
    for path in folder.glob("*.safetensors"):
        if not run.get("keep"):
            path.unlink()
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        "run": run,
        "curve": curve,
        "seconds": round(spent, 1),
        "cpu_seconds": round(cpu, 1),
        "gflops": result.flops_per_clip / 1e9,
        "where": where,
    }


# ---------------------------------------------------------------------------------------------------- all of them


def run_all(listing: Path, work: Path, jobs: int, gpu_jobs: int, budget_s: float) -> None:
    """Run what is not done yet in processes of its own, until the time is up."""
    started = time.monotonic()
    todo = [run for run in expand(tomllib.loads(listing.read_text())) if not (work / "results" / f"{key_of(run)}.json").is_file()]
    print(f"{len(todo)} runs to do", flush=True)
    (work / "results").mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}

    def work_on(run: dict[str, Any]) -> None:
        left = budget_s - (time.monotonic() - started)
        if left < 20:
            return
        command = [sys.executable, "-m", "tests.benchmarks.study", "--one", json.dumps(run), "--work", str(work)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=left)
        except subprocess.TimeoutExpired:
            return
        last = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        print(
            f"{time.monotonic() - started:6.0f} s  {run['group']} {run['label']} seed {run['seed']} {done.stdout.strip()[-120:]} {last}",
            flush=True,
        )

    def pool(device: str, count: int) -> list[Any]:
        executor = ThreadPoolExecutor(max(1, count))
        return [executor.submit(work_on, run) for run in todo if run["device"] == device] if count else []

    for future in pool("cuda", gpu_jobs) + pool("cpu", jobs):
        future.result()


Groups = dict[str, dict[str, list[dict[str, Any]]]]


def grouped(listing: Path, work: Path) -> Groups:
    """Return what is done by group and label, in the order of the list."""
    done = results_of(work)
    groups: Groups = {}
    for run in expand(tomllib.loads(listing.read_text())):
        found = done.get(key_of(run))
        if found:
            groups.setdefault(run["group"], {}).setdefault(run["label"], []).append(found)
    return groups


def table(groups: Groups) -> str:
    """Return the table of each group: mean and 95 % interval over seeds at the last step."""
    lines = []
    for group, rows in groups.items():
        lines += ["", f"### {group}", "", HEAD, "|---|---|---|---|---|---|---|"]
        for label, results in rows.items():
            last = [result["curve"][-1] for result in results]
            cells = [interval([row[name] for row in last]) for name in ("knn", "linear", "val_loss")]
            cost = f"{results[0]['gflops']:.3f} | {statistics.mean(result['cpu_seconds'] for result in results):.0f}"
            lines.append(f"| {label} | {' | '.join(cells)} | {cost} | {len(last)} |")
    return "\n".join(lines)


def curves(groups: Groups) -> str:
    """Return the mean kNN / linear accuracy at each checkpoint."""
    lines = []
    for group, rows in groups.items():
        steps = sorted({point["step"] for results in rows.values() for result in results for point in result["curve"]})
        head = "| setting | " + " | ".join(f"{step:,} steps" for step in steps) + " |"
        lines += ["", f"### {group}", "", head, "|---" * (len(steps) + 1) + "|"]
        for label, results in rows.items():
            cells = []
            for step in steps:
                points = [point for result in results for point in result["curve"] if point["step"] == step]
                means = [statistics.mean(point[name] for point in points) for name in ("knn", "linear")] if points else []
                cells.append(" / ".join(f"{mean:.2f}" for mean in means) or "-")
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def correlations(groups: Groups) -> str:
    """Return Pearson's correlation of the held-out loss with each probe, over the checkpoints of all seeds of a setting."""
    lines = ["| group | setting | checkpoints | with kNN | with linear |", "|---|---|---|---|---|"]
    for group, rows in groups.items():
        for label, results in rows.items():
            points = [point for result in results for point in result["curve"] if "val_loss" in point]
            if len(results) >= 3:
                found = [
                    statistics.correlation([point["val_loss"] for point in points], [point[name] for point in points])
                    for name in ("knn", "linear")
                ]
                lines.append(f"| {group} | {label} | {len(points)} | {found[0]:+.2f} | {found[1]:+.2f} |")
    return "\n".join(lines)


def interval(values: list[float]) -> str:
    """Return the mean with the half-width of its 95 % interval over seeds (Student's t)."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    half = T_QUANTILE.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def main() -> None:
    """Run the list, or one of its runs, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("listing", nargs="?", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder of caches, runs and results")
    parser.add_argument("--jobs", type=int, default=2, help="runs on the CPU at once")
    parser.add_argument("--gpu-jobs", type=int, default=0, help="runs on the GPU at once")
    parser.add_argument("--budget", type=float, default=1e6, help="seconds after which no run is started or continued")
    parser.add_argument("--update", type=Path, help="page whose tables, between comments, are written from the results; nothing is run")
    parser.add_argument("--one", help="JSON of one run (used by the driver itself)")
    options = parser.parse_args()
    if options.one:
        run = json.loads(options.one)
        result = one(run, options.work)
        (options.work / "results" / f"{key_of(run)}.json").write_text(json.dumps(result))
        print(json.dumps(result["curve"][-1]))
    elif options.update:
        groups = grouped(options.listing, options.work)
        page = options.update.read_text()
        for name, text in (("TABLES", table(groups)), ("CURVES", curves(groups)), ("CORRELATION", correlations(groups))):
            before, rest = page.split(f"<!-- {name} -->\n")
            page = f"{before}<!-- {name} -->\n{text.strip()}\n<!-- end of {name} -->{rest.split(f'<!-- end of {name} -->')[1]}"
        options.update.write_text(page)
    else:
        run_all(options.listing, options.work, options.jobs, options.gpu_jobs, options.budget)


if __name__ == "__main__":
    main()
