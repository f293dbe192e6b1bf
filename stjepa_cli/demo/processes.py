"""Run functions in processes of their own, which report as they go and end with the process that started them.

```text
job (JSON) -> stdin of the worker -> function(job, say) -> stdout, a JSON object per line -> lines, in the order in which they arrive
```

`multiprocessing` would import the main module again and leaves workers behind when this process is killed; here a worker fails
at its next line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from stjepa_cli.core.errors import StjepaError

Job = Mapping[str, Any]
Line = dict[str, Any]
Say = Callable[[Line], None]
"""Sends a JSON-able line to the process that started the worker."""

_ENDED = "ended"


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_processes(function: str, jobs: Sequence[Job], *, threads: int = 1) -> Iterator[tuple[int, Line]]:
    """Run a function once for each job, all at the same time.

    Args:
        function: Where it lies, as `package.module:name`; it takes a job and a `Say`.
        jobs: JSON-able arguments.
        threads: Threads of torch in each process.

    Yields:
        Number of the job, and a line that the function said.

    Raises:
        StjepaError: A function raised one, or a process was ended from outside.
    """
    lines: SimpleQueue[tuple[int, Line]] = SimpleQueue()
    workers: list[subprocess.Popen[str]] = []
    try:
        for number, job in enumerate(jobs):
            workers.append(_start(function, job, threads))
            Thread(target=_forward, args=(number, workers[-1], lines), daemon=True).start()
        running = len(workers)
        while running:
            number, line = lines.get()
            if "error" in line:
                raise StjepaError(line["error"])
            if _ENDED in line:
                running -= 1
                if workers[number].wait():
                    raise StjepaError("a worker process ended early", got=_ending(workers[number]), fix="Run the same command again.")
                continue
            yield number, line
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _start(function: str, job: Job, threads: int) -> subprocess.Popen[str]:
    """Start a worker in a session of its own, which Ctrl-C does not reach, and hand it its job."""
    module, name = function.split(":")
    path = os.pathsep.join(filter(None, (str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))))
    worker = subprocess.Popen(
        [sys.executable, "-c", f"from stjepa_cli.demo.processes import serve; from {module} import {name}; serve({name})"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
        start_new_session=True,
    )
    assert worker.stdin is not None
    with worker.stdin as pipe:
        json.dump(job, pipe)
    return worker


def _forward(number: int, worker: subprocess.Popen[str], lines: SimpleQueue[tuple[int, Line]]) -> None:
    """Put what a worker says into the queue, and then that it has ended."""
    assert worker.stdout is not None
    with worker.stdout as pipe:
        for line in pipe:
            lines.put((number, json.loads(line)))
    lines.put((number, {_ENDED: True}))


def _ending(worker: subprocess.Popen[str]) -> str:
    return f"signal {-worker.returncode}" if worker.returncode < 0 else f"exit code {worker.returncode}"


def serve(function: Callable[[Job, Say], None]) -> None:
    """Run a function on the job on stdin; this is what a worker does."""
    job = json.load(sys.stdin)
    try:
        function(job, _say)
    except StjepaError as error:
        _say({"error": error.sentence()})
    except BrokenPipeError:  # whoever started it is gone
        os._exit(1)


def _say(line: Line) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
