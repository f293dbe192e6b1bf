"""File permissions that hold even for root, who otherwise may read and write everything."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Run a block, and the threads that it starts, without root's power over the permissions of files."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        pytest.skip("the capabilities of this process are not known")
    before = data[0]
    data[0] = before & ~_OVERRIDES
    if libc.capset(header, data):
        pytest.skip("root cannot give up its power over permissions here")
    try:
        yield
    finally:
        data[0] = before
        libc.capset(header, data)
