"""Every teacher, found by its name, keeps the contract."""

from __future__ import annotations

import pytest

from stjepa_cli.core import plugins
from tests.teachers import tiny
from tests.teachers.contract import TeacherContract


@pytest.fixture(scope="module", params=plugins.names("teachers"))
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Each teacher: a built-in by its name, any other by what `write_<name>` of `tiny.py` writes."""
    name: str = request.param
    if plugins.load("teachers", name).built_in:
        return name
    write = getattr(tiny, f"write_{name}", None)
    assert write is not None, f"teachers/{name}.py needs files: tests/teachers/tiny.py must have a write_{name} that writes a tiny example"
    return str(write(tmp_path_factory.mktemp(name)))


class TestEveryTeacher(TeacherContract):
    @pytest.fixture
    def place(self, example: str) -> str:
        return example
