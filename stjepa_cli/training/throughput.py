"""Training throughput: clips per second, time spent waiting for data, and model FLOPs utilisation."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")

MOST_WAIT = 0.1

# dense bfloat16 (float16 where there is none) FLOP/s, from the manufacturers' data sheets
_PEAKS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12,
    "A800": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A40": 150e12, "A30": 165e12, "A10": 125e12, "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12, "5090": 210e12, "4090": 165e12, "4080": 97e12, "3090": 71e12, "3080": 60e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """Return the peak FLOP/s of a GPU, or None for an unknown GPU and for a CPU."""
    if device.type != "cuda":
        return None
    return peak_of_name(torch.cuda.get_device_name(device))


def peak_of_name(name: str) -> float | None:
    """Return the peak FLOP/s of a GPU by its name, None for one that is not known; an A4000 is no A40."""
    known = sorted((key for key in _PEAKS if re.search(rf"(?<!\w){re.escape(key)}(?!\w)", name)), key=len)
    return _PEAKS[known[-1]] if known else None


class ThroughputMeter:
    """Measures rates between two readings.

    Args:
        flops_per_clip: Floating-point operations of a training step per clip, forward and backward.
        device: Device that training runs on.
        processes: Number of processes that share the clips.

    Attributes:
        peak: Peak FLOP/s of the device; None if unknown.
        total_waited: Seconds spent waiting for clips, over all readings.
        total_seconds: Seconds of all readings.
    """

    def __init__(self, flops_per_clip: int, device: torch.device, processes: int = 1) -> None:
        self.flops_per_clip, self.device, self.processes = flops_per_clip, device, processes
        self.peak = peak_flops(device)
        self.total_waited = self.total_seconds = 0.0
        self._begin()

    def _begin(self) -> None:
        self._since, self._waited, self._clips = time.monotonic(), 0.0, 0

    def waiting(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and measure how long the consumer waits for each."""
        source = iter(items)
        while True:
            started = time.monotonic()
            item = next(source, None)
            self._waited += time.monotonic() - started
            if item is None:
                return
            yield item

    def count(self, clips: int) -> None:
        """Count clips that were trained on, over all processes."""
        self._clips += clips

    def read(self) -> dict[str, float]:
        """Return the rates since the last reading.

        Returns:
            `clips_per_second`; `data_wait`, the fraction of time that training waited for clips; on a GPU also `mfu`, the fraction of
            its peak FLOP/s (arXiv 2204.02311), and `memory_gb`, the most memory ever allocated.
        """
        seconds = max(1e-9, time.monotonic() - self._since)
        rates = {"clips_per_second": self._clips / seconds, "data_wait": min(1.0, self._waited / seconds)}
        if self.peak:
            rates["mfu"] = rates["clips_per_second"] * self.flops_per_clip / (self.peak * self.processes)
        if self.device.type == "cuda":
            rates["memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        self.total_waited += self._waited
        self.total_seconds += seconds
        self._begin()
        return rates

    @property
    def mean_wait(self) -> float:
        """Fraction of the time of all readings that training waited for clips."""
        return self.total_waited / self.total_seconds if self.total_seconds else 0.0
