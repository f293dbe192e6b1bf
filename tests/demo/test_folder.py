"""The folder of a demo: resumed, replaced where it is finished, and never the place where files of a user vanish."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from stjepa_cli.core.errors import StjepaError
from stjepa_cli.demo.folder import STATE_FILE, OutputFolder

SETTINGS = {"clips": 3, "seed": 0}


def _write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def _finished(root: Path) -> OutputFolder:
    """A folder whose work is done: a file at the top and two in folders."""
    folder = OutputFolder(root, "demo")
    with folder.claimed(SETTINGS, replace_finished=True):
        _write(root, "demo.json", "checkpoints/step1", "reports/a/page.html")
        folder.finish(SETTINGS)
    return folder


def _names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))


def test_a_new_or_empty_folder_is_taken_and_then_resumed(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "new", "demo")
    for expected in (False, True, True):
        with folder.claimed(SETTINGS, replace_finished=True) as resumed:
            assert resumed is expected
            _write(folder.path, "checkpoints/step1")
    assert _names(folder.path) == ["checkpoints/step1"]


@pytest.mark.parametrize("name", ["demo.json", "notes.txt", "checkpoints/step1"])
def test_a_folder_of_someone_else_is_refused_whatever_it_holds(tmp_path: Path, name: str) -> None:
    _write(tmp_path, name)
    with pytest.raises(StjepaError, match=r"holds something else\. Name a new folder with --out"), _claimed(tmp_path):
        pass
    assert _names(tmp_path) == [name]


@pytest.mark.parametrize("state", ["[]", "5", "null", "{}", '{"what": "demo", "schema": 2}', '{"what": "benchmark", "schema": 1}', "{"])
def test_a_state_file_of_something_else_is_refused(tmp_path: Path, state: str) -> None:
    _write(tmp_path, "checkpoints/step1")
    (tmp_path / STATE_FILE).write_text(state)
    with pytest.raises(StjepaError, match="--out"), _claimed(tmp_path):
        pass
    assert _names(tmp_path) == ["checkpoints/step1"]


def _claimed(root: Path, **settings: int) -> AbstractContextManager[bool]:
    return OutputFolder(root, "demo").claimed(settings or SETTINGS, replace_finished=True)


def test_a_file_as_folder_is_one_sentence(tmp_path: Path) -> None:
    _write(tmp_path, "file")
    with pytest.raises(StjepaError, match="holds something else"), _claimed(tmp_path / "file"):
        pass


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    with _claimed(tmp_path):
        pass
    with pytest.raises(StjepaError, match=r"with other settings: got clips 3\. Name a new folder"), _claimed(tmp_path, clips=4, seed=0):
        pass


def test_what_is_finished_is_replaced_file_by_file(tmp_path: Path) -> None:
    _finished(tmp_path)
    _write(tmp_path, "notes.txt")  # beside the folders that are written here, so nothing is in the way
    with _claimed(tmp_path) as resumed:
        assert resumed is False
        assert _names(tmp_path) == ["notes.txt"]
        assert not (tmp_path / "checkpoints").exists()


def test_what_is_finished_can_be_resumed_instead(tmp_path: Path) -> None:
    folder = _finished(tmp_path)
    with folder.claimed(SETTINGS, replace_finished=False) as resumed:
        assert resumed is True
        assert len(_names(tmp_path)) == 3


def test_files_of_the_user_in_a_finished_folder_stop_it_before_anything_is_removed(tmp_path: Path) -> None:
    _finished(tmp_path)
    _write(tmp_path, "checkpoints/mine")
    with pytest.raises(StjepaError, match=r"holds 1 file that the demo did not write.*: got checkpoints/mine"), _claimed(tmp_path):
        pass
    assert len(_names(tmp_path)) == 4


def test_files_that_were_changed_since_stop_it_too(tmp_path: Path) -> None:
    _finished(tmp_path)
    (tmp_path / "checkpoints/step1").write_text("another run")
    os.utime(tmp_path / "demo.json", ns=(1, 1))
    with pytest.raises(StjepaError, match=r"holds 2 files .*: got checkpoints/step1"), _claimed(tmp_path):
        pass
    assert len(_names(tmp_path)) == 3


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with _claimed(tmp_path):
        pid = os.fork()
        if not pid:  # locks belong to processes
            try:
                with _claimed(tmp_path):
                    os._exit(0)
            except StjepaError as error:
                os._exit(3 if str(tmp_path) in str(error) else 4)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_the_state_is_json_with_the_files(tmp_path: Path) -> None:
    _finished(tmp_path)
    state = json.loads((tmp_path / STATE_FILE).read_text())
    assert (state["what"], state["finished"], state["settings"]) == ("demo", True, SETTINGS)
    assert sorted(state["files"]) == ["checkpoints/step1", "demo.json", "reports/a/page.html"]
