"""Files of tensors: what comes back is what was written, or an error says so in a sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stjepa_cli.core.errors import CheckpointError, UnreadableError
from stjepa_cli.models.tensor_file import list_tensors, read_metadata, read_tensors, tensor_digest, write_tensors

TENSORS = {
    "a.weight": torch.tensor([[1.0, -0.0], [torch.nan, torch.inf]]),
    "a.half": torch.ones(3, dtype=torch.bfloat16),
    "b.empty": torch.zeros(0, 4),
    "b.step": torch.tensor(12),
    "b.flags": torch.tensor([True, False]),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "file.safetensors", TENSORS, {"who": "someone", "none": ""})
    return tmp_path / "file.safetensors"


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and tensor_digest(a) == tensor_digest(b)


def test_tensors_and_metadata_come_back(path: Path) -> None:
    found = read_tensors(path)
    assert found.keys() == TENSORS.keys()
    assert all(same(found[name], tensor) for name, tensor in TENSORS.items())
    assert read_tensors(path, "a").keys() == {"weight", "half"}
    assert read_metadata(path) == {"who": "someone", "none": ""}
    assert [info.name for info in list_tensors(path)] == sorted(TENSORS)
    assert load_file(path).keys() == TENSORS.keys()  # any reader of safetensors opens it


@pytest.mark.parametrize("bit", range(8))
def test_no_flipped_bit_goes_unnoticed(path: Path, bit: int) -> None:
    data = path.read_bytes()
    for place in range(bit, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=r"is damaged: |is not a whole safetensors file") as caught:
            read_tensors(path)
        assert "\n" not in str(caught.value)


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], object]) -> None:
    size = int.from_bytes(path.read_bytes()[:8], "little")
    metadata = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, metadata: tensors.update({"b.step": torch.tensor(13)}), "the tensor b.step"),
        (lambda tensors, metadata: tensors.update({"b.step": torch.tensor([12])}), "the tensor b.step"),
        (lambda tensors, metadata: tensors.pop("b.step"), "its tensors"),
        (lambda tensors, metadata: tensors.update({"c": torch.zeros(1)}), "its tensors"),
        (lambda tensors, metadata: metadata.update(who="me"), "its header"),
        (lambda tensors, metadata: metadata.update(more=""), "its header"),
        (lambda tensors, metadata: metadata.pop("digests"), "its header"),
        (lambda tensors, metadata: metadata.pop("seal"), "its header"),
    ],
)
def test_what_was_changed_by_others_is_refused(path: Path, change: Callable[..., object], message: str) -> None:
    rewritten(path, change)
    with pytest.raises(CheckpointError, match=f"is damaged: {message}"):
        read_tensors(path)


def test_a_group_is_read_though_another_one_is_damaged(path: Path) -> None:
    rewritten(path, lambda tensors, metadata: tensors.update({"b.step": torch.tensor(13)}))
    assert same(read_tensors(path, "a")["weight"], TENSORS["a.weight"])


def test_files_of_earlier_versions_have_no_digests_and_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "old.safetensors", {"who": "someone"})
    assert same(read_tensors(tmp_path / "old.safetensors")["b.step"], torch.tensor(12))
    assert read_metadata(tmp_path / "old.safetensors") == {"who": "someone"}


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"cannot be read: got .*Check its permissions"):
        read_tensors(tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_tensors(tmp_path / "none")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "file", TENSORS, {})
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    metadata = {name: name for name in "hgfedcba"}
    for number in range(4):
        write_tensors(tmp_path / str(number), {"a.x": torch.ones(3), "a.y": torch.zeros(2, 2)}, metadata)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(4)}) == 1
    assert read_metadata(tmp_path / "0") == metadata
    assert torch.equal(read_tensors(tmp_path / "0")["a.x"], torch.ones(3))
