"""How a job runs on this machine: device, threads, batch size and progress listener. Nothing here decides a result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stjepa_cli.core.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Runtime:
    """Device, threads, batch size and progress listener, passed as a single value.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: Threads that decode videos, at least 1.
        batch_size: Clips per forward pass of a frozen model, at least 1.
        progress: Receives progress and messages.
    """

    device: str = "auto"
    workers: int = 4
    batch_size: int = 8
    progress: Progress = field(default=SILENT, compare=False, repr=False)

    @property
    def torch_device(self) -> torch.device:
        """The device as torch knows it.

        Raises:
            ConfigError: The machine has no such device.
        """
        from stjepa_cli.core.devices import pick_device

        return pick_device(self.device)
