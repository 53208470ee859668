"""Runs one function over many images, in several processes where that pays."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import TypeVar

from rsrefseg.engines.errors import RSRefSegError

# Starting a process takes as long as reading some dozens of images.
JOBS_PER_PROCESS = 50
_CHUNK = 4

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def in_processes(
    work: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int, jobs_per_process: int = JOBS_PER_PROCESS
) -> Iterator[_Result]:
    """The results of ``work``, a function of a module, for all jobs, in their order.

    Processes, since half the time of reading an image is spent under the interpreter's lock. Each of at most
    ``workers`` has at least ``jobs_per_process`` jobs; for fewer this process does all.

    Raises:
        RSRefSegError: a process was killed.
    """
    workers = min(workers, len(jobs) // jobs_per_process)
    if workers <= 1:
        yield from map(work, jobs)
        return
    # Spawned, not forked: the caller may have threads (torch, OpenCV, a progress bar) that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        try:
            with interrupts_blocked():
                results = pool.map(work, jobs, chunksize=_CHUNK)
            yield from results
        except BrokenProcessPool as error:
            raise RSRefSegError(
                "a process was killed, most likely because memory ran out: try again with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Start worker processes inside: they inherit that Ctrl-C is blocked and leave it to this process."""
    resource_tracker.ensure_running()  # it unblocks the signal when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)
