"""Devices and precision: the only place that decides where tensors live and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from stjepa_cli.core.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """Return a device by name; `auto` is the first CUDA device, or the CPU if there is none.

    Raises:
        ConfigError: The machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError("unknown device", got=repr(name), expected="auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError("stjepa runs on cpu and cuda", got=repr(name), expected="auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError("there is no such GPU", got=repr(name), expected=f"one of {torch.cuda.device_count()}", fix="Use `--device cpu`.")
    return device


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return a context that computes matrix products in bfloat16 on CUDA and in float32 on the CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
