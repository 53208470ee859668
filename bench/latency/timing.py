"""One thing done again and again, and how long it took each time."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Taken(NamedTuple):
    """Seconds of one time: by the clock, and of the processor in all threads of this process."""

    clock_s: float
    processor_s: float


def take_times(work: Callable[[], Any], least: int, seconds: float) -> list[Taken]:
    """Of one time after the other, until there are enough and they took long enough by the clock.

    Args:
        work: what is timed.
        least: times.
        seconds: of all times together.
    """
    taken: list[Taken] = []
    end_s = time.perf_counter() + seconds
    while len(taken) < least or time.perf_counter() < end_s:
        clock_s, processor_s = time.perf_counter(), time.process_time()
        work()
        taken.append(Taken(time.perf_counter() - clock_s, time.process_time() - processor_s))
    return taken
