"""Run a function over many items in threads, with results in order and bounded look-ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_workers: int, look_ahead: int | None = None
) -> Generator[Result, None, None]:
    """Map a function over items with threads; decoding, resizing and reading release the GIL, so threads suffice.

    Args:
        function: Function to call in a worker thread; an exception is raised here, at its place in the order.
        items: Items to map, consumed at most `look_ahead` ahead of the results, so that memory stays bounded; may be endless.
        num_workers: Number of threads.
        look_ahead: Number of items in flight or waiting to be yielded; four per worker by default.

    Yields:
        The results in the order of the items.
    """
    waiting: deque[Future[Result]] = deque()
    window = look_ahead or 4 * num_workers
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="stjepa")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
