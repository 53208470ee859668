"""Makes work on a folder fail at its n-th change, e.g. opening a file for writing, a rename or a removal."""

import multiprocessing
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, Self

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink")
_FORKSERVER = multiprocessing.get_context("forkserver")  # imports the heavy libraries once, for all jobs


@dataclass(frozen=True)
class Moment:
    """Point of failure: the n-th change (from 1), or later growth of a file by more than ``torn_after`` bytes."""

    change: int
    torn_after: int | None = None


class InjectedError(Exception):
    """Error that ``fail`` raises."""


def fail(path: Path) -> None:
    """Raise an ``InjectedError``."""
    raise InjectedError(path)


class Changes:
    """Counts this process's changes under a folder and calls ``act`` with the path before the n-th.

    Attributes:
        names: changes in order, as ``event name``.
    """

    _current: "Changes | None" = None
    _hooked = False

    def __init__(self, watched: Path, at: int | None = None, act: Callable[[Path], None] = fail) -> None:
        self.watched, self.at, self.act = watched.absolute(), at, act
        self.names: list[str] = []

    def __enter__(self) -> Self:
        if not Changes._hooked:  # an audit hook stays for good
            sys.addaudithook(lambda event, arguments: Changes._current and Changes._current._hear(event, arguments))
            Changes._hooked = True
        Changes._current = self
        return self

    def __exit__(self, *error: object) -> None:
        Changes._current = None

    def distinct(self) -> list[int]:
        """Return the numbers of the first and the last change of each kind and name."""
        kinds = [re.sub("[0-9a-f]{32}", "", name) for name in self.names]
        first = {kind: number for number, kind in reversed(list(enumerate(kinds, start=1)))}
        last = {kind: number for number, kind in enumerate(kinds, start=1)}
        return sorted({*first.values(), *last.values()})

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if not (writes or event in _CHANGES) or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = Path(os.fsdecode(arguments[0]))
        # A name without folder is one below an open folder, as shutil.rmtree removes them.
        if not path.is_absolute() or path.is_relative_to(self.watched):
            self.names.append(f"{event} {os.path.relpath(path, self.watched)}")
            if len(self.names) == self.at:
                self.act(path)


def run_job(
    job: Callable[..., None], arguments: dict[str, Any], watched: Path, moment: Moment | None = None
) -> int | None:
    """Run a job, a module-level function, in a new process until it ends or is killed.

    ``moment`` kills the process like kill -9 or a power failure.

    Returns:
        Number of changes under ``watched``; None if the process was killed.
    """
    _FORKSERVER.set_forkserver_preload([job.__module__])
    made: SimpleQueue[int] = _FORKSERVER.SimpleQueue()
    process = _FORKSERVER.Process(target=_work, args=(job, arguments, watched, moment, made))
    process.start()
    process.join()
    if process.exitcode in (-signal.SIGKILL, -signal.SIGXFSZ):
        return None
    assert process.exitcode == 0, "the job failed: its traceback is in standard error"
    return made.get()


def _work(
    job: Callable[..., None], arguments: dict[str, Any], watched: Path, moment: Moment | None, made: "SimpleQueue[int]"
) -> None:
    at, torn_after = (moment.change, moment.torn_after) if moment is not None else (None, None)
    with Changes(watched, at, partial(_die, torn_after=torn_after)) as changes:
        job(**arguments)
    made.put(len(changes.names))


def _die(path: Path, torn_after: int | None) -> None:
    """Kill this process now, or while a file grows by more than ``torn_after`` bytes."""
    if torn_after is None:
        os.kill(os.getpid(), signal.SIGKILL)
    size = path.stat().st_size if path.is_file() else 0
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = size + (torn_after or 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
