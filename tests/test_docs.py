"""The documentation says what the program does."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from stjepa_cli.core.config import LATENT_DIM
from stjepa_cli.core.types import ClipSpec
from stjepa_cli.main import app
from stjepa_cli.models.export import export
from stjepa_cli.models.student import Student
from stjepa_cli.training.objectives.base import build
from stjepa_cli.training.recipes import resolve_run
from tests.media import write_video

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "stjepa_cli"
ARCHITECTURE = ROOT / "docs" / "concepts" / "architecture.md"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced code blocks of a page in these languages."""
    return [
        code for language, code in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE) if language in languages
    ]


def command_lines(page: Path) -> Iterator[list[str]]:
    """The arguments of every `stjepa ...` of a page's shell blocks, in whatever way it is started there."""
    for block in blocks(page, "sh", "bash"):
        plain = re.sub(r"\$\(\(.*?\)\)|\$\{?\w+\}?", "1", block.replace("\\\n", " "))
        for line in re.split(r"\n|&&|\|\||;", plain):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            for name in ("stjepa", "stjepa_cli"):
                if name in words and (name == "stjepa_cli" or words[: words.index(name)] in ([], ["exec"])):
                    yield words[words.index(name) + 1 :]


def leaf(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and the words that are left."""
    command: Any = typer.main.get_command(app)
    while getattr(command, "commands", None) and words and not (words[0].startswith("-") or words[0].isupper()):
        assert words[0] in command.commands, f"{words[0]} is none of {', '.join(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def shown_options(command: Any) -> set[str]:
    """The names of a command's options, without hidden ones."""
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    return {"--help", "--version"} | {name for p in shown for name in (*p.opts, *p.secondary_opts)}


def test_generated_pages_are_those_of_the_program() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for page, text in module.pages().items():
        assert page.read_text() == text, f"{page.name} is old: type `python docs/generate.py`"


def test_the_architecture_page_names_every_module() -> None:
    sections = re.findall(r"^### `(\w+)/`\n(.*?)(?=^### |^<!-- end)", ARCHITECTURE.read_text(), re.DOTALL | re.MULTILINE)
    named = {f"{room}/{name}.py" for room, text in sections for name in re.findall(r"^\| `([\w/]+)` \| \S", text, re.MULTILINE)}
    assert named == {name for path in PACKAGE.rglob("*.py") if path.stem != "__init__" and "/" in (name := str(path.relative_to(PACKAGE)))}


def test_the_walks_name_functions_that_exist() -> None:
    walks = [line.split(maxsplit=2) for block in blocks(ARCHITECTURE, "text") for line in block.splitlines() if re.match(r"\w+/\w", line)]
    assert len(walks) == 38
    for module, name, _ in walks:
        assert name.rstrip(",") in definitions(ast.parse((PACKAGE / f"{module}.py").read_text())), f"{module} has no {name}"


def definitions(tree: ast.Module) -> set[str]:
    """The functions and classes of a module, and its methods as `Class.method`."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


@each_page
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@each_page
def test_the_program_takes_every_command_line(page: Path) -> None:
    for words in command_lines(page):
        command, rest = leaf(words)
        command.make_context("stjepa", list(rest))
        used = {word.split("=")[0] for word in rest if word.startswith("--")}
        assert used <= shown_options(command), f"stjepa {shlex.join(words)}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    for text in re.findall(r"`stjepa ([^`\n]+)`", page.read_text()):
        words = text.split()
        command, rest = leaf(words)
        assert {word for word in rest if re.fullmatch(r"--[a-z][a-z-]*", word)} <= shown_options(command), text


@each_page
def test_python_of_the_pages_imports_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stjepa_cli"):
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(ROOT / "tests" / "golden" / "2026-11-21" / "checkpoints" / "checkpoint_step2.safetensors", tmp_path / "student")
    write_video(tmp_path / "video.mp4")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    first, second = blocks(ROOT / "README.md", "python")
    exec(compile(first, "README.md", "exec"), found)
    tokens = found["tokens"]
    assert tokens.shape == (1, found["student"].grid.num_tokens, found["student"].config.dim)
    exec(compile(second, "README.md", "exec"), found)
    torch.testing.assert_close(found["tokens"], tokens[0])


def test_the_guide_counts_the_flops_that_the_code_counts() -> None:
    run = resolve_run({"data_root": Path(), "cache": Path()})
    with torch.device("meta"):
        generator = torch.Generator("cpu")
        objective = build(Student(run.student, ClipSpec(), generator), run, [LATENT_DIM], generator)
    page = (ROOT / "docs" / "guides" / "ssv2-on-one-gpu.md").read_text()
    assert f"{objective.flops() / 1e9:.2f} GFLOP" in page
    assert f"{objective.student.flops() / 1e9:.2f} GFLOP" in page
