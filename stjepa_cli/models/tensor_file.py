"""Files of tensors: safetensors written atomically, read by group, checked by digests. The only module that uses safetensors.

A group is the first part of the tensors' names: `student.`, `predictor.`. The metadata of a file hold two entries beside those of the
caller: `digests`, the sha256 of each tensor with its type and shape, and `seal`, the sha256 of all other metadata. Files of earlier
versions have neither and are read unchecked. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stjepa_cli.core.errors import CheckpointError, UnreadableError
from stjepa_cli.core.files import replacing

DIGESTS, SEAL = "digests", "seal"

_USE_ANOTHER = "Use an earlier checkpoint of the run, or a copy of this file."


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape and type of a stored tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all, with digests of its tensors and of `metadata`. The same content is the same bytes.

    Raises:
        StjepaError: The disk is full or cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    sealed = {**metadata, DIGESTS: json.dumps({name: tensor_digest(tensor) for name, tensor in plain.items()}, sort_keys=True)}
    sealed[SEAL] = _seal(sealed)
    data = memoryview(save(plain, sealed))
    header, start = _in_order(data)
    with replacing(path) as part, part.open("wb") as file:
        file.write(header)
        file.write(data[start:])


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata that was passed to `write_tensors`, without loading a tensor.

    Raises:
        CheckpointError: The file is missing, truncated, or its metadata are damaged.
        UnreadableError: The file cannot be read.
    """
    with _opened(path) as file:
        _read_digests(path, file)
        return {name: text for name, text in (file.metadata() or {}).items() if name not in (DIGESTS, SEAL)}


def list_tensors(path: Path) -> tuple[TensorInfo, ...]:
    """List names, shapes and types of the tensors in a file, without loading them.

    Raises:
        CheckpointError: The file is missing, truncated, or its metadata are damaged.
        UnreadableError: The file cannot be read.
    """
    with _opened(path) as file:
        _read_digests(path, file)
        slices = [(name, file.get_slice(name)) for name in sorted(file.keys())]
        return tuple(TensorInfo(name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices)


def read_tensors(path: Path, group: str = "") -> dict[str, Tensor]:
    """Read the tensors of a group, with the group's name removed from theirs; all tensors if `group` is empty.

    Raises:
        CheckpointError: The file is missing, truncated or damaged.
        UnreadableError: The file cannot be read.
    """
    prefix = f"{group}." if group else ""
    with _opened(path) as file:
        digests = _read_digests(path, file)
        found = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    if digests is not None:
        for name, tensor in found.items():
            if tensor_digest(tensor) != digests[name]:
                raise _damaged(path, f"the tensor {name} is not the one that was written")
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


def load_group(module: nn.Module, path: Path, group: str = "", *, described_by: str = "its header") -> None:
    """Load a group of tensors into a module.

    Args:
        module: Module whose parameters and buffers are filled.
        path: File to read.
        group: Group of tensors; all of them if empty.
        described_by: What describes the module, for the error message.

    Raises:
        CheckpointError: The file is missing or damaged, or a name or a shape differs; the message names the first that does.
        UnreadableError: The file cannot be read.
    """
    stored, wanted = read_tensors(path, group), module.state_dict()
    for name in sorted(stored.keys() | wanted.keys()):
        found, expected = stored.get(name), wanted.get(name)
        if found is None or expected is None or found.shape != expected.shape:
            raise CheckpointError(
                f"{path} holds another {group or 'student'} than {described_by} describes: {f'{group}.' if group else ''}{name}",
                got="none" if found is None else tuple(found.shape),
                expected="none" if expected is None else tuple(expected.shape),
            )
    module.load_state_dict(stored)


def tensor_digest(tensor: Tensor) -> str:
    """Return the sha256 of a tensor on the CPU, of its type, shape and values, as 64 hex digits."""
    found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _in_order(data: memoryview) -> tuple[bytes, int]:
    """Return the header of a file with its metadata in alphabetical order (safetensors shuffles them), and where the tensors start."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:start]))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # as safetensors aligns the tensors
    return len(text).to_bytes(8, "little") + text, start


def _seal(metadata: Mapping[str, str]) -> str:
    others = {name: text for name, text in metadata.items() if name != SEAL}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _read_digests(path: Path, file: Any) -> dict[str, str] | None:
    """Return the digest of each tensor of an open file, or None for a file of an earlier version.

    Raises:
        CheckpointError: The metadata are not those that were written, or name other tensors.
    """
    metadata = file.metadata() or {}
    if DIGESTS not in metadata and SEAL not in metadata:
        return None
    if metadata.get(SEAL) != _seal(metadata) or DIGESTS not in metadata:
        raise _damaged(path, "its header is not the one that was written")
    digests: dict[str, str] = json.loads(metadata[DIGESTS])
    if set(digests) != set(file.keys()):
        raise _damaged(path, "its tensors are not those that were written")
    return digests


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {what}", fix=_USE_ANOTHER)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}", fix="Type `stjepa pretrain` to make one.") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file", got=_one_line(error), fix=_USE_ANOTHER) from error
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read", got=_one_line(error), fix="Check its permissions and its disk.") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
