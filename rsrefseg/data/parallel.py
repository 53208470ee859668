"""Runs one function over many images, in processes of its own where that pays."""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import TypeVar

from rsrefseg.engines.errors import RSRefSegError

# Starting a process takes as long as reading some dozens of pictures.
_LEAST_JOBS_A_PROCESS = 50
_JOBS_A_TURN = 16

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def in_processes(work: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int) -> Iterator[_Result]:
    """The results of all jobs, in their order.

    Processes, since half the time of reading a picture is spent under the interpreter's lock.

    Args:
        work: a function of a module, so that another process finds it.
        jobs: what it is called with.
        workers: processes at most; for few jobs this one does it alone.

    Raises:
        RSRefSegError: a process was killed from outside.
    """
    workers = min(workers, len(jobs) // _LEAST_JOBS_A_PROCESS)
    if workers <= 1:
        yield from map(work, jobs)
        return
    # Spawned, not forked: the caller may have threads (torch, OpenCV, a progress bar) that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_settle) as pool:
        try:
            with interrupts_blocked():
                results = pool.map(work, jobs, chunksize=_JOBS_A_TURN)
            yield from results
        except BrokenProcessPool as error:
            raise RSRefSegError(
                "a process that reads images was ended from outside, most likely for want of memory: "
                "try again with fewer --workers"
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


def _settle() -> None:
    """One thread each."""
    import cv2

    cv2.setNumThreads(1)
