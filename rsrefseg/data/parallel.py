"""Runs a function on many images in parallel processes."""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import TypeVar

from rsrefseg.engines.errors import RSRefSegError

# Starting a process takes about as long as reading a few dozen images.
JOBS_PER_PROCESS = 50
_CHUNK = 4

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def in_processes(
    work: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int, jobs_per_process: int = JOBS_PER_PROCESS
) -> Iterator[_Result]:
    """Yield the results of ``work``, a module-level function, for all jobs in order.

    It uses processes because half the time of reading an image is spent under the interpreter lock. Each of at most
    ``workers`` processes has at least ``jobs_per_process`` jobs; fewer jobs run in this process.

    Raises:
        RSRefSegError: a process was killed.
    """
    workers = min(workers, len(jobs) // jobs_per_process)
    if workers <= 1:
        yield from map(work, jobs)
        return
    # Spawned, not forked: the caller may have threads (torch, OpenCV, a progress bar) that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool,
        interrupts_deferred() as interrupted,
    ):
        try:
            with interrupts_blocked():
                results = pool.map(work, jobs, chunksize=_CHUNK)
            for result in results:
                if interrupted():
                    return
                yield result
        except BrokenProcessPool as error:
            raise RSRefSegError(
                "a process was killed, most likely because memory ran out: try again with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C while the block starts worker processes, which inherit this and leave Ctrl-C to this process."""
    resource_tracker.ensure_running()  # its start unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[Callable[[], bool]]:
    """Raise KeyboardInterrupt at the end of the block; the yielded function returns whether Ctrl-C was pressed.

    An interrupt while the main thread acquires a lock of the pool would leave the lock held and block the pool.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    deferred = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if deferred:
        signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        if deferred:
            signal.signal(signal.SIGINT, before)
        if pressed:
            raise KeyboardInterrupt


def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)
