"""Messages name the installer of the environment that the program runs in."""

from __future__ import annotations

from pathlib import Path

from stjepa_cli.core.errors import install_command


def test_pip_is_named_in_an_ordinary_environment(tmp_path: Path) -> None:
    assert install_command(extra="ray", prefix=tmp_path) == "pip install 'stjepa[ray]'"
    assert install_command("gcsfs", prefix=tmp_path) == "pip install gcsfs"


def test_pipx_is_named_in_its_own_environment_with_the_packages_of_the_extra(tmp_path: Path) -> None:
    (tmp_path / "pipx_metadata.json").write_text("{}")
    assert install_command("gcsfs", prefix=tmp_path) == "pipx inject stjepa gcsfs"
    assert install_command(extra="ray", prefix=tmp_path) == "pipx inject stjepa 'ray>=2.40'"
    assert install_command(extra="onnx", prefix=tmp_path).count("onnx") == 3
