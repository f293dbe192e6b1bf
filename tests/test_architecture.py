"""The picture in docs/concepts/architecture.md, held by tests: arrows point down, one library, one file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "stjepa_cli"

# from the top down: a module imports only from lines below its own
LAYERS = [
    {"__main__"},
    {"main"},
    {"commands"},
    {"demonstration", "console", "scoring"},
    {"scoreboard", "prediction", "results"},
    {"scorecard"},
    {"readiness", "cache", "forecasting", "verification", "training", "evaluation", "inspection", "comparison", "exporting", "reporting"},
    {"trainer", "features", "contenders"},
    {"validation"},
    {"runs", "objectives", "engines", "portraits", "showcase"},
    {"probes", "batches", "layouts", "building", "checks"},
    {"encoders"},
    {"student", "teachers", "datasets", "store", "maps", "heads"},
    {"reading", "commits", "locks", "folders"},
    {"arrays", "columns", "releases", "distributed", "augmentation"},
    {
        "projection",
        "pixels",
        "pooling",
        "video",
        "masking",
        "layers",
        "checkpoint",
        "synthetic",
        "pictures",
        "devices",
        "records",
        "hub",
        "descent",
        "meters",
        "curves",
        "tallies",
    },
    {"shards", "frames", "prefetch", "pages"},
    {"plugins", "views", "plans", "charts"},
    {"nouns"},
    {"config"},
    {"files"},
    {"locations"},
    {"errors", "progress"},
]
PLUGIN_FOLDERS = ("teachers", "objectives", "probes", "datasets", "engines")
WORDS = ("plugins", "nouns", "config", "files", "errors", "progress", "prefetch", "views", "plans", "charts", "pages", "curves")
HOMES = {
    "zarr": {"arrays.py"},
    "crc32c": {"shards.py"},
    "torchcodec": {"video.py"},
    "upath": {"locations.py"},
    "safetensors": {"checkpoint.py"},
    "rich": {"console.py"},
    "PIL": {"pictures.py"},
    "simplejpeg": {"frames.py"},
    "ray": {"ray.py"},
    "huggingface_hub": {"hub.py"},
    "onnxruntime": {"exporting.py"},
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "assets" not in path.parts)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(module: str) -> int | None:
    """The layer of `stjepa_cli.x.y`, or None for the package itself."""
    parts = module.split(".")
    if len(parts) < 2 or parts[1] == "assets":
        return None
    return next((i for i, layer in enumerate(LAYERS) if parts[1] in layer), None)


def dotted(path: Path) -> str:
    return "stjepa_cli." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    mine = dotted(path)
    if path.name == "__init__.py":
        return
    assert place(mine) is not None, f"{path.name} has no place in the picture"
    for other in imports(path):
        folder = mine.split(".")[1]
        if not other.startswith("stjepa_cli.") or other.split(".")[1] == folder or place(other) is None:
            continue
        assert place(other) > place(mine), f"{mine} imports {other}, which is not below it"  # type: ignore[operator]


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS)
def test_plugins_of_a_folder_do_not_import_each_other(folder: str) -> None:
    for path in (PACKAGE / folder).glob("*.py"):
        if path.stem == "base" or path.stem.startswith("_"):
            continue
        siblings = [name for name in imports(path) if name.startswith(f"stjepa_cli.{folder}.")]
        allowed = (f"stjepa_cli.{folder}.base", f"stjepa_cli.{folder}._")
        assert [name for name in siblings if not name.startswith(allowed)] == []


@pytest.mark.parametrize("library", HOMES)
def test_one_library_one_file(library: str) -> None:
    users = {path.name for path in modules() if any(name.split(".")[0] == library for name in imports(path))}
    assert users == HOMES[library]


def test_transformers_stays_among_the_teachers_and_typer_among_the_commands() -> None:
    for path in modules():
        tops = {name.split(".")[0] for name in imports(path)}
        if "transformers" in tops:
            assert path.parent.name == "teachers"
        if "typer" in tops:
            assert path.parent.name == "commands" or path.name == "main.py"


@pytest.mark.parametrize("name", WORDS)
def test_words_need_the_standard_library_only(name: str) -> None:
    for other in imports(PACKAGE / f"{name}.py"):
        top = other.split(".")[0]
        assert top in sys.stdlib_module_names or top == "stjepa_cli", f"{name} imports {other}"


def test_the_library_does_not_print_and_does_not_exit() -> None:
    for path in modules():
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert name not in {"print", "exit"}, f"{path}:{getattr(node, 'lineno', 0)}"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, stjepa_cli.main\n"
        "heavy = {'torch', 'numpy', 'zarr', 'transformers', 'torchcodec', 'safetensors', 'PIL', 'upath', 'ray'} & set(sys.modules)\n"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


@pytest.mark.parametrize("page", ["README.md", "docs/concepts/architecture.md"])
def test_every_module_is_in_the_picture(page: str) -> None:
    text = (PACKAGE.parent / page).read_text()
    names = [path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")]
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []
