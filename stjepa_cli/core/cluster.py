"""A connection to a Ray cluster. The engines that run on it import ray too; how to reach it is decided here."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from stjepa_cli.core.errors import NotReadyError, how_to_install

CONNECT_TIMEOUT_S = 10.0
OBJECT_STORE_BYTES = 200_000_000  # of a local instance: little goes through it, and Ray's default is a third of the memory


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Stay connected to the cluster at `address` while the block runs, or to a local instance that ends with it.

    A program that is already connected stays connected to the cluster of its choice.

    Raises:
        NotReadyError: Ray is not installed, there is no cluster at the address, or it has other versions.
    """
    try:
        import ray
    except ImportError as error:
        raise NotReadyError("--engine ray needs Ray, which is not installed", fix=how_to_install(extra="ray")) from error

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        _check_listening(address or "local")
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except (OSError, RuntimeError, ValueError) as error:
        what = f"the Ray cluster at {address} cannot be used" if address else "Ray does not start on this machine"
        raise NotReadyError(what, got=reason(error), fix="Type `ray status --address HOST:6379` to see what is there.") from error
    try:
        yield
    finally:
        ray.shutdown()


def reason(error: Exception) -> str:
    """Return what happened, without Ray's indented details."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(("\t", " "))]
    return (lines[-1] if lines else type(error).__name__)[:200]


def _check_listening(address: str) -> None:
    """Connect to HOST:PORT once, because Ray itself gives up only after many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
