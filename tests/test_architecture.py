"""The picture in docs/concepts/architecture.md, held by tests: rooms, arrows that point down, one library per file."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stjepa_cli.core import plugins

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "stjepa_cli"

# which room may import which: the one place where this is written; the architecture page shows the same table
ROOMS: dict[str, tuple[str, ...]] = {
    "commands": (
        "demo",
        "judgements",
        "search",
        "evaluation",
        "cache",
        "encoders",
        "training",
        "data",
        "store",
        "models",
        "teachers",
        "viz",
        "core",
    ),
    "demo": ("search", "evaluation", "cache", "encoders", "training", "data", "store", "models", "teachers", "viz", "core"),
    "judgements": ("search", "models", "viz", "core"),
    "search": ("encoders", "data", "store", "models", "teachers", "viz", "core"),
    "evaluation": ("encoders", "training", "data", "store", "models", "teachers", "viz", "core"),
    "cache": ("data", "store", "teachers", "core"),
    "encoders": ("data", "store", "models", "teachers", "core"),
    "training": ("data", "store", "models", "viz", "core"),
    "data": ("store", "core"),
    "store": ("core",),
    "teachers": ("models", "core"),
    "models": ("core",),
    "viz": ("core",),
    "core": (),
}
PLUGIN_FOLDERS = (
    "teachers",
    "training.objectives",
    "evaluation.probes",
    "data.datasets",
    "cache.engines",
    "search.engines",
    "search.indexes",
)
MOST_FILES = 15
HOMES = {
    "zarr": {"store/arrays.py"},
    "crc32c": {"store/shard_format.py"},
    "torchcodec": {"data/video.py"},
    "upath": {"core/locations.py"},
    "safetensors": {"models/tensor_file.py"},
    "rich": {"commands/console.py", "commands/progress.py"},
    "PIL": {"viz/images.py"},
    "simplejpeg": {"store/frames.py"},
    "ray": {"core/cluster.py", "cache/engines/ray.py", "search/engines/ray.py"},
    "huggingface_hub": {"core/hub.py"},
    "onnxruntime": {"models/formats.py"},
    "lancedb": {"search/indexes/lancedb.py"},
    "pyarrow": {"search/arrow.py"},
    "psycopg": {"search/indexes/_postgres.py"},
    "pgvector": {"search/indexes/_postgres.py"},
    "sqlite3": {"judgements/events.py"},
    "umap": {"search/overview/similar.py"},
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


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_every_folder_is_a_room_of_the_picture() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "main"}


def test_the_table_has_no_cycle() -> None:
    order = list(ROOMS)
    assert all(order.index(below) > order.index(room) for room, allowed in ROOMS.items() for below in allowed)


@pytest.mark.parametrize("path", [path for path in modules() if path.parent != PACKAGE], ids=name_of)
def test_a_room_imports_only_the_rooms_below_it(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    used = {name.split(".")[1] for name in imports(path) if name.startswith("stjepa_cli.")}
    assert used - {room} <= set(ROOMS[room]), f"{name_of(path)} may import {', '.join(ROOMS[room])}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_one_page_of_files_and_a_docstring_that_says_its_purpose(room: str) -> None:
    most = MOST_FILES + (6 if room == "commands" else 0)  # one file for each command
    assert len([path for path in (PACKAGE / room).glob("*.py") if path.stem != "__init__"]) <= most
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
    told = ast.get_docstring(tree) or ""
    assert len(tree.body) == 1, "an __init__ holds its docstring and nothing else"
    assert all(f"\n{line}" in told for line in ("What lives here:", "What does not:", "May import:")), told


@pytest.mark.parametrize("room", ROOMS)
def test_modules_of_a_room_import_each_other_without_a_cycle(room: str) -> None:
    prefix = f"stjepa_cli.{room}."
    names = {prefix + ".".join(path.relative_to(PACKAGE / room).with_suffix("").parts): path for path in (PACKAGE / room).rglob("*.py")}
    below = {name: {other for other in at_start(path) if other in names} for name, path in names.items()}
    while below:
        free = [name for name, others in below.items() if not others & below.keys()]
        assert free, f"a cycle among {sorted(below)}"
        for name in free:
            del below[name]


def at_start(path: Path) -> Iterator[str]:
    """Imports of a module that run when it is imported: not in functions, not for type checkers."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS)
def test_plugins_of_a_folder_do_not_import_each_other(folder: str) -> None:
    for name in plugins.names(folder):
        path = PACKAGE / folder.replace(".", "/") / f"{name}.py"
        siblings = [other for other in imports(path) if other.startswith(f"stjepa_cli.{folder}.")]
        allowed = (f"stjepa_cli.{folder}.base", f"stjepa_cli.{folder}._")
        assert [other for other in siblings if not other.startswith(allowed)] == []


@pytest.mark.parametrize("library", HOMES)
def test_one_library_one_file(library: str) -> None:
    users = {name_of(path) for path in modules() if any(name.split(".")[0] == library for name in imports(path))}
    assert users == HOMES[library]


def test_transformers_stays_among_the_teachers_and_typer_among_the_commands() -> None:
    for path in modules():
        tops = {name.split(".")[0] for name in imports(path)}
        if "transformers" in tops:
            assert path.parent.name == "teachers"
        if "typer" in tops:
            assert path.parent.name == "commands" or path.name == "main.py"


def test_core_needs_the_standard_library_only() -> None:
    for path in (PACKAGE / "core").glob("*.py"):
        third_party = {name.split(".")[0] for name in at_start(path)} - set(sys.stdlib_module_names) - {"stjepa_cli"}
        assert third_party <= ({"torch"} if path.stem == "devices" else set()), path.name


def test_the_library_does_not_print_and_does_not_exit() -> None:
    for path in modules():
        if path.name in ("console.py", "streams.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert name not in {"print", "exit"}, f"{path}:{getattr(node, 'lineno', 0)}"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, stjepa_cli.main\n"
        "heavy = {'torch', 'numpy', 'zarr', 'transformers', 'torchcodec', 'safetensors', 'PIL', 'upath', 'ray', 'lancedb', 'pyarrow'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_architecture_page_shows_the_same_table() -> None:
    page = (ROOT / "docs" / "concepts" / "architecture.md").read_text()
    for room, allowed in ROOMS.items():
        assert f"| `{room}` | {', '.join(allowed) or '-'} |" in page


def test_the_readme_has_a_line_for_every_room() -> None:
    page = (ROOT / "README.md").read_text()
    assert [room for room in ROOMS if f"  {room}/" not in page] == []
