"""Use case: write the encoder of a checkpoint in a form that others load, and prove that it says the same.

A format is one entry of `FORMATS`. Every export is loaded again and held against the original before it gets its name.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from stjepa_cli.core.errors import ConfigError, NotReadyError, StjepaError, storage_errors
from stjepa_cli.core.files import sync, write_atomic
from stjepa_cli.core.progress import SILENT, Progress
from stjepa_cli.models.checkpoint import newest_checkpoint
from stjepa_cli.models.release import Provenance, ReleaseConfig, Tuning, release_config, release_of, write_config, write_weights
from stjepa_cli.models.student import PIXEL_MEAN, PIXEL_STD, Student, load_student

OPSET = 20  # the first with a GELU; onnxruntime 1.18 and later run it

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """One way to write an encoder.

    Attributes:
        about: what it is, a clause for people.
        write: puts files into a new folder; the student is frozen and on the CPU.
        load: reads them back without the original; uint8 (B, T, 3, S, S) to float32 (B, N, D).
        tolerance: the largest absolute difference from the original that passes; tokens have unit deviation.
        usage: Python that loads it and encodes `clips`, for the model card.
        modules: what must be installed, from the extra of the format's name.
    """

    about: str
    write: Callable[[Student, Path], None]
    load: Callable[[Path], Encode]
    tolerance: float
    usage: str
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        out: the folder.
        format: one of `FORMATS`.
        checkpoint: what was exported, or what it started from.
        files: their names in the folder, sorted.
        bytes: of all of them.
        parameters: numbers in the encoder.
        max_difference: largest absolute difference between tokens of the export, loaded again, and of the original.
        tolerance: what would have been too large.
    """

    out: Path
    format: str
    checkpoint: Path
    files: tuple[str, ...]
    bytes: int
    parameters: int
    max_difference: float
    tolerance: float


def export(checkpoint: Path, out: Path, format: str = "hf", *, progress: Progress = SILENT) -> ExportResult:
    """Export the encoder of a checkpoint.

    Args:
        checkpoint: a checkpoint, or a folder for its newest.
        out: the folder to make; there, and not empty, is an error.
        format: one of `FORMATS`.
        progress: listener.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
        ConfigError: no such format; the folder is in the way.
        NotReadyError: the format needs a library that is not installed.
        StjepaError: the export differs from the original by more than the tolerance, or the disk is full; nothing is left.
    """
    _check_format(format)
    file = newest_checkpoint(checkpoint) if checkpoint.is_dir() else checkpoint
    student, header = load_student(file, torch.device("cpu"))
    return _write(student, release_config(header, PIXEL_MEAN, PIXEL_STD), file, out, format, progress)


def write_finetuned(student: Student, start: Path, tuning: Tuning, out: Path, *, progress: Progress = SILENT) -> ExportResult:
    """Write a fine-tuned student in the format `hf`: `Student.from_pretrained` opens it, and `infer` by the name of its folder.

    Args:
        student: fine-tuned, on any device; it stays as it is.
        start: what it started from, a checkpoint, a folder of checkpoints or a release; it says where both come from.
        tuning: what it was fine-tuned on.
        out: the folder to make; there, and not empty, is an error.
        progress: listener.

    Raises:
        CheckpointError: `start` is none of these, or damaged.
        ConfigError: the folder is in the way, or the student has other sizes than that it started from.
        StjepaError: a weight is not finite, or the disk is full; nothing is left.
    """
    config = release_of(start, PIXEL_MEAN, PIXEL_STD)
    if config.student != student.config:
        raise ConfigError(f"this student did not start from {start}", got=student.config, expected=config.student)
    config = replace(config, clip=student.spec, provenance=replace(config.provenance, tuning=tuning))
    own = copy.deepcopy(student).cpu().eval().requires_grad_(False)
    return _write(own, config, start, out, "hf", progress)


def _write(student: Student, config: ReleaseConfig, source: Path, out: Path, format: str, progress: Progress) -> ExportResult:
    """Write a frozen student on the CPU, load it again, and keep it if it says the same."""
    chosen = FORMATS[format]
    parameters = sum(parameter.numel() for parameter in student.parameters())
    with _new_folder(out) as folder:
        progress.note(f"writing {source} as {chosen.about}")
        chosen.write(student, folder)
        write_config(folder, config)
        write_atomic(folder / "README.md", model_card(config, chosen, parameters).encode())
        progress.note("loading it again and comparing")
        difference = _difference(student, chosen.load(folder))
        if not difference <= chosen.tolerance:
            raise StjepaError(
                f"the export differs from {source} and was not kept",
                got=f"a largest difference of {difference:.3g}",
                expected=f"at most {chosen.tolerance:g}",
                fix="Type `stjepa inspect checkpoint PATH --stats` to see whether the weights are finite, or choose another format.",
            )
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return ExportResult(out, format, source, tuple(files), sum(files.values()), parameters, difference, chosen.tolerance)


def _check_format(name: str) -> None:
    if name not in FORMATS:
        raise ConfigError("unknown format", got=repr(name), expected="one of " + ", ".join(FORMATS))
    missing = [module for module in FORMATS[name].modules if importlib.util.find_spec(module) is None]
    if missing:
        raise NotReadyError(f"the format {name} needs {', '.join(missing)}", fix=f"Type `pip install 'stjepa[{name}]'`.")


@torch.inference_mode()
def _difference(student: Student, exported: Encode) -> float:
    """Largest absolute difference on one random clip; not a number where shapes differ or a value is not finite."""
    clips = _random_clips(student, 1)
    expected, found = student(clips), exported(clips)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("nan")
    return float((found - expected).abs().max())


def _random_clips(student: Student, batch_size: int) -> Tensor:
    """Noise uint8 (B, T, 3, S, S), the same every time."""
    spec = student.spec
    shape = (batch_size, spec.num_frames, 3, spec.size_px, spec.size_px)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`; it becomes `out` when the block ends well and is gone when it does not."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} is in the way", expected="a folder that is empty or not there", fix="Choose another --out, or remove it.")
    place = out.absolute()
    part = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with storage_errors(out):
            part.mkdir(parents=True)
            yield part
            for path in [*part.iterdir(), part]:
                sync(path)
            part.replace(place)
            sync(place.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------- formats


def _write_hf(student: Student, folder: Path) -> None:
    write_weights(folder, student.state_dict())


def _load_hf(folder: Path) -> Encode:
    return Student.from_pretrained(folder)


def _write_torchscript(student: Student, folder: Path) -> None:
    """`student.pt`, a trace: it holds the operations and not this package's classes."""
    buffer = io.BytesIO()
    with _without_deprecations(), torch.no_grad():
        torch.jit.save(torch.jit.trace(student, (_random_clips(student, 2),), check_trace=False), buffer)  # type: ignore[no-untyped-call]
    (folder / "student.pt").write_bytes(buffer.getvalue())


def _load_torchscript(folder: Path) -> Encode:
    with _without_deprecations():
        loaded: Encode = torch.jit.load(folder / "student.pt")  # type: ignore[no-untyped-call]
    return loaded


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """No word of torch on preferring its newer exporters, nor on a trace keeping the 3 of query, key and value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category)
        yield


def _write_onnx(student: Student, folder: Path) -> None:
    """`student.onnx`, one file; the example has two clips because an exporter takes a batch of one for a constant."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of operators of libraries that are not installed
    try:
        with _without_deprecations(), torch.no_grad():
            program = torch.onnx.export(
                student,
                (_random_clips(student, 2),),
                input_names=["clips"],
                output_names=["tokens"],
                dynamic_shapes=({0: "batch"},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    program.save(folder / "student.onnx", external_data=False)


def _load_onnx(folder: Path) -> Encode:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "student.onnx"), providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(["tokens"], {"clips": clips.numpy()})[0])


FORMATS = {
    "hf": Format(
        "config.json and model.safetensors, for Student.from_pretrained and the Hugging Face Hub",
        _write_hf,
        _load_hf,
        tolerance=1e-5,
        usage="from stjepa_cli.models.student import Student\n\n"
        'student = Student.from_pretrained("FOLDER_OR_HUB_ID")\ntokens = student(clips)',
    ),
    "torchscript": Format(
        "TorchScript, which torch loads without stjepa",
        _write_torchscript,
        _load_torchscript,
        tolerance=1e-4,
        usage='import torch\n\nstudent = torch.jit.load("student.pt", map_location="cpu")\ntokens = student(clips)',
    ),
    "onnx": Format(
        "ONNX, which onnxruntime runs without torch",
        _write_onnx,
        _load_onnx,
        tolerance=1e-3,
        usage='import onnxruntime\n\nsession = onnxruntime.InferenceSession("student.onnx")\n'
        '(tokens,) = session.run(["tokens"], {"clips": clips})  # numpy arrays',
        modules=("onnx", "onnxscript", "onnxruntime"),
    ),
}


# ------------------------------------------------------------------------------------------------------- model card


def model_card(config: ReleaseConfig, format: Format, parameters: int) -> str:
    """The `README.md` of an export: what it is, how to load it, where it comes from, whose licence to heed."""
    clip, origin, teacher = config.clip, config.provenance, config.provenance.teacher
    shape = f"(B, {clip.num_frames}, 3, {clip.size_px}, {clip.size_px})"
    licence = [f"license: {json.dumps(teacher.licence.lower())}"] if teacher.licence not in ("unknown", "none") else []
    return "\n".join(
        [
            *("---", "library_name: stjepa", *licence, "tags: [video, self-supervised, jepa]", "---", "", "# A video encoder", ""),
            f"A space-time transformer of {parameters:,} parameters ({config.student.num_factorized} factorized and "
            f"{config.student.num_joint} joint blocks, {config.student.dim} wide), trained by stjepa to predict the latents of a frozen "
            "teacher at hidden space-time tubes from the visible ones. " + _labels_seen(origin),
            *("", f"This folder: {format.about}.", "", "```python", format.usage, "```", ""),
            f"* `clips`: uint8 {shape}, RGB 0 to 255, {clip.sampling} sampling; the encoder normalises pixels itself.",
            f"* `tokens`: float32 (B, {clip.grid.num_tokens}, {config.student.dim}), a {clip.grid} lattice in (time, row, column) order. "
            "Their mean over axis 1 is a feature of the clip.",
            *("", "## Where it comes from", "", "| | |", "|---|---|"),
            f"| teacher | {teacher.name}, revision {teacher.revision} |",
            f"| teacher's licence | {teacher.licence} |",
            f"| teacher saw labels | {teacher.saw_labels or 'unknown'} |",
            f"| data set | {origin.dataset} |",
            f"| cache | {origin.cache_digest} |",
            f"| trained | {origin.step:,} steps, epoch {origin.epoch}, objective {origin.objective} |",
            f"| software | {', '.join(f'{name} {version}' for name, version in origin.software.items())} |",
            *_tuning_rows(origin),
            *("", "It was trained on what the teacher says: whether its licence, and that of the data set, let you use or publish this"),
            "encoder is for you to check.",
            "",
        ]
    )


def _labels_seen(origin: Provenance) -> str:
    if origin.tuning is None:
        return "It saw no labels; its teacher may have."
    return f"It was then fine-tuned with the labels of {origin.tuning.num_videos:,} videos of {origin.tuning.dataset}."


def _tuning_rows(origin: Provenance) -> list[str]:
    if origin.tuning is None:
        return []
    settings = ", ".join(f"{name} {value:g}" for name, value in origin.tuning.settings.items())
    return [
        f"| fine-tuned on | {origin.tuning.dataset}, {origin.tuning.num_videos:,} videos |",
        f"| recipe | {settings} |",
        f"| started from | {origin.tuning.start} |",
        f"| fine-tuned by | {', '.join(f'{name} {version}' for name, version in origin.tuning.software.items())} |",
    ]
