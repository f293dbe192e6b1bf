"""What the shell completes: values of options, as the program knows them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pretrain --recipe m", {"mixed"}),
        ("pretrain --preset ", {"base", "small", "tiny"}),
        ("pretrain --loss ", {"cosine", "smooth_l1", "l1"}),
        ("infer ucf101 --protocol ret", {"retrieval", "retrieval_coclr"}),
        ("cache build --dataset h", {"hmdb51"}),
        ("cache build --projection p", {"pca", "phi-s"}),
        ("export --format ", {"hf", "torchscript", "onnx"}),
        ("cache ver", {"verify"}),
    ],
)
def test_values_are_completed(typed: str, offered: set[str]) -> None:
    words = f"stjepa {typed}"
    asked = {"_STJEPA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run([sys.executable, "-m", "stjepa_cli"], cwd=REPOSITORY, env=os.environ | asked, capture_output=True, text=True)
    assert set(done.stdout.split()) == offered
