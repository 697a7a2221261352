"""What a worker process runs around its jobs. It imports little: every worker loads this first."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Generic, TypeVar

R = TypeVar("R")


class WorkerCall(Generic[R]):
    """A picklable call with keyword arguments."""

    def __init__(self, job: Callable[..., R], args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self.job, self.args, self.kwargs = job, args, kwargs

    def __call__(self) -> tuple[R, float, float]:
        """What the job returns, its seconds without those that it waited, and those of the processor."""
        start, cpu = time.perf_counter(), time.process_time()
        result = self.job(*self.args, **self.kwargs)
        return result, time.perf_counter() - start, time.process_time() - cpu


def limit_threads() -> None:
    """One thread for each process that this one starts: workers are one a core, and threads inside them would
    only wait for each other (two workers took longer than one).

    Not for a worker to do: it first imports the main module, and with it libraries that read this once.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def initialise_worker(niceness: int) -> None:
    """Of a pool's processes: end with the node, and yield to it."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.nice(niceness)


def _die_with_parent() -> None:
    """A worker of a node that was killed would wait for jobs for ever, with all its memory."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
