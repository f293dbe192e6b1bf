"""How fast training goes, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")

MOST_WAIT = 0.1

# dense bfloat16 (float16 where there is none) FLOP/s, from the makers' data sheets
_PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12,
    "A800": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A40": 150e12, "A30": 165e12, "A10": 125e12, "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12, "5090": 210e12, "4090": 165e12, "4080": 97e12, "3090": 71e12, "3080": 60e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """What a GPU can do at most, in operations a second; None for one that is not known, and for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAKS.items() if key in name), None)


class ThroughputMeter:
    """Rates since they were last read.

    Args:
        flops_per_clip: of a training step, forward and backward.
        device: where it runs.
        processes: that share the clips.
    """

    def __init__(self, flops_per_clip: int, device: torch.device, processes: int = 1) -> None:
        self.flops_per_clip, self.device, self.processes = flops_per_clip, device, processes
        self.peak = peak_flops(device)
        self.total_waited = self.total_seconds = 0.0
        self._begin()

    def _begin(self) -> None:
        self._since, self._waited, self._clips = time.monotonic(), 0.0, 0

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; counts the time that the consumer waits for each."""
        source = iter(items)
        while True:
            started = time.monotonic()
            item = next(source, None)
            self._waited += time.monotonic() - started
            if item is None:
                return
            yield item

    def count(self, clips: int) -> None:
        """So many clips were trained on, over all processes."""
        self._clips += clips

    def read(self) -> dict[str, float]:
        """`clips_per_second`, `data_wait` (share of the time in which training waited for clips, 0 to 1), and on a GPU `mfu`
        (share of its peak, arXiv 2204.02311) and `memory_gb` (most ever allocated), since the last reading.
        """
        seconds = max(1e-9, time.monotonic() - self._since)
        figures = {"clips_per_second": self._clips / seconds, "data_wait": min(1.0, self._waited / seconds)}
        if self.peak:
            figures["mfu"] = figures["clips_per_second"] * self.flops_per_clip / (self.peak * self.processes)
        if self.device.type == "cuda":
            figures["memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        self.total_waited += self._waited
        self.total_seconds += seconds
        self._begin()
        return figures

    @property
    def mean_wait(self) -> float:
        """Share of all the time read so far in which training waited."""
        return self.total_waited / self.total_seconds if self.total_seconds else 0.0
