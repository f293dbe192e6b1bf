"""Formats of an exported encoder: how each is written, loaded again and used. A format is one entry of `FORMATS`."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stjepa_cli.core.errors import ConfigError, NotReadyError, how_to_install
from stjepa_cli.core.files import check_sums
from stjepa_cli.models.release import write_weights
from stjepa_cli.models.student import Student

OPSET = 20  # the first one with a GELU; onnxruntime 1.18 and later run it

Encode = Callable[[Tensor], Tensor]
"""Clips uint8 (B, T, 3, S, S) to tokens float32 (B, N, D)."""


@dataclass(frozen=True)
class Format:
    """A way to write an encoder.

    Attributes:
        about: Description, a clause for people.
        write: Writes files into a new folder, given a frozen student on the CPU.
        load: Loads them without the original.
        tolerance: Largest absolute difference from the original that passes; tokens have unit variance.
        usage: Python code for the model card that loads the encoder and encodes `clips`.
        modules: Modules that must be installed; the extra of the format's name has them.
    """

    about: str
    write: Callable[[Student, Path], None]
    load: Callable[[Path], Encode]
    tolerance: float
    usage: str
    modules: tuple[str, ...] = ()


def find_format(name: str) -> Format:
    """Return a format by name.

    Raises:
        ConfigError: There is no such format.
        NotReadyError: The format needs a library that is not installed.
    """
    if name not in FORMATS:
        raise ConfigError("unknown format", got=repr(name), expected="one of " + ", ".join(FORMATS))
    missing = [module for module in FORMATS[name].modules if importlib.util.find_spec(module) is None]
    if missing:
        raise NotReadyError(f"the format {name} needs {', '.join(missing)}", fix=how_to_install(extra=name))
    return FORMATS[name]


def random_clips(student: Student, batch_size: int) -> Tensor:
    """Return noise uint8 (B, T, 3, S, S), the same on every call."""
    spec = student.spec
    shape = (batch_size, spec.num_frames, 3, spec.size_px, spec.size_px)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _write_hf(student: Student, folder: Path) -> None:
    write_weights(folder, student.state_dict())


def _load_hf(folder: Path) -> Encode:
    return Student.from_pretrained(folder)


def _write_torchscript(student: Student, folder: Path) -> None:
    """Write `student.pt`, a trace, which needs none of this package's classes."""
    buffer = io.BytesIO()
    with _without_deprecations(), torch.no_grad():
        torch.jit.save(torch.jit.trace(student, (random_clips(student, 2),), check_trace=False), buffer)  # type: ignore[no-untyped-call]
    (folder / "student.pt").write_bytes(buffer.getvalue())


def _load_torchscript(folder: Path) -> Encode:
    check_sums(folder)
    with _without_deprecations():
        loaded: Encode = torch.jit.load(folder / "student.pt")  # type: ignore[no-untyped-call]
    return loaded


def _write_onnx(student: Student, folder: Path) -> None:
    """Write `student.onnx`, one file; the example holds two clips because the exporter takes a batch size of 1 for a constant."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns about operators of libraries that are not installed
    try:
        with _without_deprecations(), torch.no_grad():
            program = torch.onnx.export(
                student,
                (random_clips(student, 2),),
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

    check_sums(folder)
    session = onnxruntime.InferenceSession(str(folder / "student.onnx"), providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(["tokens"], {"clips": clips.numpy()})[0])


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Silence torch's advice to use newer exporters, and its warning that a trace fixes the number 3 of query, key and value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category)
        yield


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
