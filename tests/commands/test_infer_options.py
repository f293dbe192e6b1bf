"""The options of `infer`: a printed command parses back to the same request."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from stjepa_cli.commands import infer, infer_options
from stjepa_cli.commands.infer_options import InferOptions
from stjepa_cli.core.progress import SILENT
from stjepa_cli.core.runtime import Runtime
from stjepa_cli.evaluation.infer import InferRequest

OPTIONS = {
    "nothing but a teacher": "ucf101 --teacher hog",
    "everything": "ucf101 --checkpoint 'my run/checkpoint_step8.safetensors' --compare hog --compare ./untrained --split all "
    "--protocol knn --protocol finetune --limit 50 --clips 16x5x3 --sampling dense --stride 2 --layer -2 --pool time "
    "--features kept --epochs 3 --lr 0.002 --batch-size 4 --workers 1 --device cpu --seed 7 --out 'a b' --save-head",
    "no cache": "kinetics --data-root s3-like/k400 --teacher hog --split test --no-features-cache",
    "a folder": "folder 'my videos' --teacher ./models/videomae --protocol attentive1",
}


def parsed(words: str) -> InferOptions:
    """Parse the words after `stjepa infer` as the program does."""
    name, *rest = shlex.split(words)
    command: Any = typer.main.get_command(infer.app)
    found = command.commands[name].make_context(name, rest).params
    found.pop("as_json")
    found = {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
    paths = {name: Path(found[name]) for name in ("checkpoint", "features", "out") if found[name] is not None}
    return InferOptions(name, **(found | paths))


def resolved(words: str) -> tuple[InferRequest, Runtime]:
    return infer_options.resolve(parsed(words), SILENT)


@pytest.mark.parametrize("words", OPTIONS.values(), ids=OPTIONS)
def test_a_printed_command_parses_back_to_the_same_request(words: str) -> None:
    request, runtime = resolved(words)
    assert request.command.startswith("stjepa infer ")
    assert resolved(request.command.removeprefix("stjepa infer ")) == (request, runtime)


def test_a_printed_command_names_the_folder_and_the_checkpoint_that_the_environment_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STJEPA_UCF101", str(tmp_path / "ucf"))
    monkeypatch.setenv("STJEPA_CHECKPOINTS", str(tmp_path))
    newest = tmp_path / "checkpoint_step20.safetensors"
    for path in (tmp_path / "checkpoint_step3.safetensors", newest):
        path.touch()
    request, _ = resolved("ucf101 --seed 0")
    assert shlex.split(request.command) == ["stjepa", "infer", "ucf101", "--data-root", str(tmp_path / "ucf"), "--checkpoint", str(newest)]
    (tmp_path / "checkpoint_step40.safetensors").touch()  # written meanwhile
    assert resolved(request.command.removeprefix("stjepa infer "))[0] == request
