"""Run a function over many items in threads: results in order, with bounded look-ahead."""

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
    """`map` with threads: what decodes, resizes or reads releases the interpreter's lock, so threads are enough.

    Args:
        function: called in a worker thread; what it raises is raised here, at its place in the order.
        items: taken only `look_ahead` ahead of what was yielded, so that memory stays bounded; may be endless.
        num_workers: threads.
        look_ahead: items under way or waiting, by default four a worker.
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
