"""The HTML page about one run, or about several: verdict, clips, curves, and where everything comes from."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stjepa_cli.core.serialization import to_dict
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.data.sampling import evenly
from stjepa_cli.models.checkpoint import CheckpointHeader, list_checkpoints
from stjepa_cli.models.student import Student, num_parameters
from stjepa_cli.training import feature_maps
from stjepa_cli.training.report_clips import ClipSample, ClipSamples, Prediction
from stjepa_cli.viz import curves, html
from stjepa_cli.viz.charts import number
from stjepa_cli.viz.images import encode_animation, encode_picture

MAX_STEPS = 8  # time steps that are shown of a clip
FRAME_PX = 128  # larger frames are reduced to this
PANEL_PX = 176
GAP_PX = 4
FRAME_MS, LAST_MS = 160, 900
FEW_STEPS = 300


@dataclass(frozen=True)
class RunSummary:
    """A run as the page shows it.

    Attributes:
        name: Name of the run.
        folder: Its folder.
        checkpoint: Newest checkpoint that is intact.
        header: Header of that checkpoint.
        curves: What `metrics.jsonl` holds.
        metric_lines: Number of its lines.
    """

    name: str
    folder: Path
    checkpoint: Path
    header: CheckpointHeader
    curves: curves.Curves
    metric_lines: int


def run_page(run: RunSummary, samples: ClipSamples, *, reload_seconds: int | None = None) -> str:
    """Return the page about one run; a browser loads it again every `reload_seconds` seconds if that is given."""
    body = [
        html.heading(run.name, 1),
        html.paragraph(_in_a_nutshell(run)),
        *_verdict(run),
        *_clips(samples, [run]),
        *_curves(run.curves),
        *_origin(run),
        *_files(run),
        *_configuration(run),
    ]
    return html.page(f"{run.name}: step {run.header.step:,}", body, reload_seconds=reload_seconds)


def comparison_page(runs: Sequence[RunSummary], samples: ClipSamples, *, reload_seconds: int | None = None) -> str:
    """Return the page that lays several runs over each other; a browser loads it again every `reload_seconds` seconds if that is given."""
    title = "Comparison of " + ", ".join(run.name for run in runs)
    body = [html.heading(title, 1), _scores(runs), *_clips(samples, runs), html.heading("Curves")]
    body += curves.overlaid({run.name: run.curves for run in runs})
    body += [*_settings_that_differ(runs)]
    for run in runs:
        body += _files(run)
    return html.page(title, body, reload_seconds=reload_seconds)


# ------------------------------------------------------------------------------------------------------ first things


def _in_a_nutshell(run: RunSummary) -> str:
    header = run.header
    student = Student(header.run.student, header.clip, torch.Generator())
    return (
        f"A student of {num_parameters(student) / 1e6:.2f} M parameters after {header.step:,} steps on {header.dataset}. It was trained "
        f"to predict the latents of {header.teacher.name} in parts of a clip that it does not see."
    )


def _verdict(run: RunSummary) -> Iterator[str]:
    found = curves.verdict(run.curves)
    yield html.verdict(found.text, good=found.good)
    if run.header.step < FEW_STEPS and not found.good:
        yield html.paragraph(f"The run took {run.header.step:,} steps; a student usually needs some hundred before it learns anything.")


def _scores(runs: Sequence[RunSummary]) -> str:
    """Return the table of held-out losses."""
    rows = []
    for run in runs:
        found = [run.curves[name][-1][1] if run.curves.get(name) else None for name in _SCORES]
        better = {True: "yes", False: "no", None: "-"}[curves.verdict(run.curves).good]
        speed = curves.recent(run.curves.get("clips_per_second", ()))
        shown = ["-" if value is None else number(value) for value in (*found, speed)]
        rows.append((run.name, f"{run.header.step:,}", *shown[:-1], better, shown[-1]))
    columns = ("run", "steps", "held-out loss", "constant answer", "per position", "does better", "clips/s")
    return html.table(columns, rows, caption="Losses on held-out clips; a student that has learned something is below both answers.")


_SCORES = ("val_loss", "val_constant_loss", "val_position_loss")


# ------------------------------------------------------------------------------------------------------------- clips


def _clips(samples: ClipSamples, runs: Sequence[RunSummary]) -> Iterator[str]:
    """Yield the clips, animated, and behind a fold the same over time with maps of the predictions."""
    yield html.heading("Clips")
    for sentence in samples.left_out:
        yield html.paragraph(sentence)
    if not samples.shown:
        return
    students = ["student"] if len(runs) == 1 else [run.name for run in runs]
    labels = ["frame", "teacher", *students]
    spec = runs[0].header.clip
    yield f'<div class="clips">{"".join(_animated(sample, spec, labels) for sample in samples.shown)}</div>'
    yield html.paragraph(_how_to_read(samples, students), quiet=True)
    yield from _cosines(samples, runs)
    for sample in samples.shown:
        yield html.folded(f"Clip {sample.name} over time", [html.scrolling(_strips(sample, spec, students))])


def _how_to_read(samples: ClipSamples, students: Sequence[str]) -> str:
    origin = "that were held out from training" if samples.held_out else "that the student was trained on"
    fractions = [samples.teacher_variance, *samples.student_variances]
    told = ", ".join(f"{value:.0%} ({name})" for name, value in zip(["teacher", *students], fractions, strict=True))
    return (
        f"Clips {origin}. Colours are the first three principal components of the tokens of all clips shown here as red, green and blue, "
        "interpolated between tokens; those of a student are rotated to come closest to the teacher's. Equal colours mean similar "
        f"features. The components hold {told} of the variance."
    )


def _animated(sample: ClipSample, spec: ClipSpec, labels: Sequence[str]) -> str:
    """Return frames and colours side by side as an animation with the clip's caption."""
    num_frames = len(sample.frames)
    frames = F.interpolate(sample.frames.float(), size=(PANEL_PX, PANEL_PX), mode="bilinear", antialias=True)
    maps = [feature_maps.smooth(colours, spec, num_frames, PANEL_PX) for colours in (sample.teacher, *sample.students)]
    gap = torch.full((num_frames, 3, PANEL_PX, GAP_PX), 128, dtype=torch.uint8)
    parts = [part for panel in (frames.round().clamp(0, 255).to(torch.uint8), *maps) for part in (gap, panel)][1:]
    pictures = torch.cat(parts, dim=3)
    caption = f"{sample.caption or 'no caption'} (clip {sample.name})"
    return html.panels(
        labels,
        f"Frames of the clip, and the features of {', '.join(labels[1:])} as colours",
        ("image/webp", encode_animation(pictures, frame_ms=FRAME_MS, last_ms=LAST_MS)),
        ("image/jpeg", encode_picture(pictures[num_frames // 2], "JPEG")),
        caption,
    )


def _cosines(samples: ClipSamples, runs: Sequence[RunSummary]) -> Iterator[str]:
    """Yield how well hidden tokens are predicted, beside answers that need no prediction."""
    rows = [(run.name, found) for i, run in enumerate(runs) if (found := samples.cosine(i)) is not None]
    if not rows:
        yield html.paragraph("The objective has no predictor, so no predictions are shown.")
        return
    answers = {"the constant answer, the mean latent of the cache": samples.constant_cosine()}
    answers["the mean latent of the clip itself"] = samples.own_mean_cosine()
    shown = [*((name if len(runs) > 1 else "the student's prediction", found) for name, found in rows), *answers.items()]
    yield html.heading("Predictions of hidden tokens", 3)
    caption = (
        "Mean cosine to the teacher's latents over the clips shown, each token when it is hidden. The mean latent of the clip itself is "
        "an answer about the clip as a whole; only above it does a prediction say something about places in it."
    )
    yield html.table(("answer", "cosine"), [(name, "-" if value is None else f"{value:.3f}") for name, value in shown], caption=caption)


def _strips(sample: ClipSample, spec: ClipSpec, students: Sequence[str]) -> Iterator[str]:
    """Yield rows of pictures over time: frames, features, and cosines of the predictions."""
    steps = evenly(range(spec.grid.t), MAX_STEPS)
    frames = sample.frames[:: spec.tubelet]
    yield _strip("Frames", frames[steps], "JPEG")
    for label, colours in zip(("Teacher", *(f"Features of {name}" for name in students)), (sample.teacher, *sample.students), strict=True):
        yield _strip(label, feature_maps.blocks(colours, spec)[steps], "PNG")
    for name, prediction in zip(students, sample.predictions, strict=True):
        if prediction is not None:
            yield from _cosine_strips(name, prediction, frames, spec, steps)


def _cosine_strips(name: str, prediction: Prediction, frames: Tensor, spec: ClipSpec, steps: Sequence[int]) -> Iterator[str]:
    heat = feature_maps.heat(prediction.cosines)
    one = feature_maps.overlay(frames, heat, spec, prediction.hidden)[steps]
    every = feature_maps.overlay(frames, heat, spec, torch.ones_like(prediction.hidden))[steps]
    yield _strip(f"Predictions of {name}, one mask: cosine to the latents; visible tubes are left as they are", one, "JPEG")
    below = [f"frame {1 + step * spec.tubelet}" for step in steps]
    yield _strip(f"Predictions of {name}, every token when hidden: mean cosine {prediction.cosine:.3f}", every, "JPEG", below)
    yield html.scale("cosine 0 or less", "1", feature_maps.SCALE)


def _strip(label: str, frames: Tensor, kind: str, below: Sequence[str] = ()) -> str:
    return html.strip(label, label, [(f"image/{kind.lower()}", encode_picture(_sized(frame, kind), kind)) for frame in frames], below)


def _sized(frame: Tensor, kind: str) -> Tensor:
    """Scale a frame (3, S, S) to about FRAME_PX: small frames to blocks, large ones antialiased, or thinned if they are blocks already."""
    side = frame.shape[-1]
    if side <= FRAME_PX // 2:
        times = FRAME_PX // side
        return frame.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
    if side <= FRAME_PX * 5 // 4:
        return frame
    if kind == "PNG":
        return F.interpolate(frame.unsqueeze(0), size=(FRAME_PX, FRAME_PX), mode="nearest-exact")[0]
    smaller = F.interpolate(frame.unsqueeze(0).float(), size=(FRAME_PX, FRAME_PX), mode="bilinear", antialias=True)[0]
    return smaller.round().clamp(0, 255).to(torch.uint8)


# -------------------------------------------------------------------------------------------------- curves and origin


def _curves(found: curves.Curves) -> Iterator[str]:
    yield html.heading("Curves")
    yield html.paragraph(curves.summary(found))
    if not found:
        return
    yield html.paragraph("Thin lines: single values. Bold lines: running mean over a fortieth of the run.", quiet=True)
    yield from curves.charts(found)
    yield html.folded("Last values", [curves.last_values(found)])


def _origin(run: RunSummary) -> Iterator[str]:
    teacher, header = run.header.teacher, run.header
    yield html.heading("Origin")
    yield html.pairs(
        {
            "student": f"{header.run.preset}, {header.clip}",
            "teacher": f"{teacher.name} ({teacher.kind}, revision {teacher.revision})",
            "licence of the teacher": teacher.licence,
            "teacher saw labels": teacher.saw_labels or "unknown",
            "data set": header.dataset,
            "cache": header.cache_digest,
            "steps": f"{header.step:,}, epoch {header.epoch} of {header.run.epochs}, {header.run.batch_size} clips per step",
            "checkpoints": " to ".join(dict.fromkeys(_written(path) for path in (list_checkpoints(run.folder)[0], run.checkpoint))),
            "written by": ", ".join(f"{part} {version}" for part, version in header.software.items()),
        }
    )


def _files(run: RunSummary) -> Iterator[str]:
    folder = run.folder.absolute()
    yield html.heading(f"Files of {run.name}")
    yield html.pairs(
        {
            "run": folder,
            "newest checkpoint": run.checkpoint.name,
            "all checkpoints": f"{len(list_checkpoints(run.folder))} files checkpoint_step*.safetensors",
            "metrics": folder / "metrics.jsonl",
            "configuration": folder / "run.toml",
            "cache": run.header.run.cache,
            "videos": run.header.run.data_root,
        }
    )
    yield html.paragraph("To look into the checkpoint, to score it, and to run the same again in a new folder:")
    place, config = shlex.quote(str(folder)), shlex.quote(str(folder / "run.toml"))
    commands = (f"inspect checkpoint {place}", f"infer ucf101 --checkpoint {place}", f"pretrain --config {config} --checkpoints again")
    yield html.command("\n".join(f"stjepa {command}" for command in commands))


def _configuration(run: RunSummary) -> Iterator[str]:
    yield html.heading("Configuration")
    yield html.pairs(_flat(to_dict(run.header.run)))


def _settings_that_differ(runs: Sequence[RunSummary]) -> Iterator[str]:
    """Yield a table of the settings that are not the same in all runs."""
    found = [_flat(to_dict(run.header.run)) for run in runs]
    names = dict.fromkeys(name for part in found for name in part)
    rows = [(name, *(str(part.get(name, "-")) for part in found)) for name in names if len({str(part.get(name)) for part in found}) > 1]
    yield html.heading("Settings that differ")
    if not rows:
        yield html.paragraph("None.")
        return
    widths = [25, *[75 // len(runs)] * len(runs)]
    yield html.wrapped(("setting", *(run.name for run in runs)), rows, widths=widths, numbers=())


def _written(path: Path) -> str:
    """Return the time at which a file was written."""
    return datetime.fromtimestamp(int(path.stat().st_mtime), UTC).strftime("%Y-%m-%d %H:%M UTC")


def _flat(data: Mapping[str, Any]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in data.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat
