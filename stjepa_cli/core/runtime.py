"""How a job runs on this machine: device, threads, batch size, and who is told of its progress. Nothing that decides a result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stjepa_cli.core.progress import SILENT, Progress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Runtime:
    """One value instead of four parameters of every function on the way.

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
        """The device itself.

        Raises:
            NotReadyError: The device is not there.
        """
        from stjepa_cli.core.devices import pick_device

        return pick_device(self.device)
