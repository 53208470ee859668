"""Kills a process at a chosen moment of its work on a folder, as hard as kill -9 or a power switch.

A moment is a number: the n-th time the process is about to change something under the watched folder (open a file for
writing, rename, make or remove). There it dies at once, or, to leave a torn file, in the middle of the next writes: the
kernel ends it when a file has grown by some bytes more.

This file is also the program that does it: it imports the heavy libraries once and forks a child for each job.

>>> with KillServer(preload=["rsrefseg.train.train"]) as server:
...     whole = server.run("tests.support.small:train_job", {...}, watched=out)
...     server.run("tests.support.small:train_job", {...}, watched=out, moment=Moment(3))
"""

import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support import ROOT

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink")


@dataclass(frozen=True)
class Moment:
    """When to die: at the n-th change (from 1), or after it while a file grows by more than ``torn_after`` bytes."""

    change: int
    torn_after: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``changes`` made when it lived to the end, else the signal that ended it."""

    changes: int | None
    signal: int | None

    @property
    def killed(self) -> bool:
        """Whether it died by the chosen moment."""
        return self.signal in (signal.SIGKILL, signal.SIGXFSZ)


class KillServer:
    """Runs jobs in forked children of one prepared process. A job is ``module:function``, called with JSON values."""

    def __init__(self, preload: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.killing", *preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, job: str, arguments: dict[str, Any], watched: Path, moment: Moment | None = None) -> Outcome:
        """Run a job to its end or its death.

        Raises:
            AssertionError: the job failed by itself; the text is its traceback.
        """
        order = {
            "job": job,
            "arguments": arguments,
            "watched": str(watched.absolute()),
            "moment": asdict(moment) if moment is not None else None,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the kill server is gone: its standard error says why"
        answer = json.loads(line)
        assert answer["failure"] is None, answer["failure"]
        return Outcome(answer["changes"], answer["signal"])


class InjectedError(Exception):
    """What ``fail`` raises."""


def fail(path: Path) -> None:
    """Raise an ``InjectedError``."""
    raise InjectedError(path)


def _die(path: Path, torn_after: int | None) -> None:
    """Kill this process now, or while a file grows by more than ``torn_after`` bytes."""
    if torn_after is None:
        os.kill(os.getpid(), signal.SIGKILL)
    size = path.stat().st_size if path.is_file() else 0
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = size + (torn_after or 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


class Changes:
    """Counts this process's changes under a folder, and calls ``act`` with the path before the n-th.

    >>> with Changes(folder) as changes:
    ...     job()
    >>> for number in changes.distinct():
    ...     with pytest.raises(InjectedError), Changes(folder, at=number):
    ...         job()

    Attributes:
        names: what was changed, in order, as ``event name``.
    """

    _current: "Changes | None" = None
    _hooked = False

    def __init__(self, watched: Path, at: int | None = None, act: Callable[[Path], None] = fail) -> None:
        self.watched, self.at, self.act = str(watched.absolute()), at, act
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
        """Numbers of the first and the last change of each kind and name."""
        kinds = [re.sub("[0-9a-f]{32}", "", name) for name in self.names]
        first = {kind: number for number, kind in reversed(list(enumerate(kinds, start=1)))}
        last = {kind: number for number, kind in enumerate(kinds, start=1)}
        return sorted({*first.values(), *last.values()})

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if (name := _changed(event, arguments, self.watched)) is not None:
            self.names.append(f"{event} {os.path.relpath(name, self.watched)}")
            if len(self.names) == self.at:
                self.act(Path(name))


def _changed(event: str, arguments: tuple[Any, ...], watched: str) -> str | None:
    """What an audit event is about to change under a folder."""
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & _WRITING:
            return None
    elif event in _CHANGES:
        path = arguments[0]
    else:
        return None
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    name = os.fsdecode(path)
    # A name without folder is one below an open folder, as shutil.rmtree removes them.
    below = not Path(name).is_absolute() or name == watched or name.startswith(watched + os.sep)
    return name if below else None


def _serve() -> None:
    """Answer each line of standard input, in a forked child."""
    for module in sys.argv[1:]:
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # jobs may print
    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _work(order, writing)
        os.close(writing)
        with os.fdopen(reading) as report:
            told = report.read()
        _, status = os.waitpid(child, 0)
        answer = {"changes": None, "failure": None, "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None}
        if answer["signal"] is None:
            answer |= json.loads(told) if told else {"failure": f"no report, wait status {status}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _work(order: dict[str, Any], report: int) -> None:
    """The child: do the job, report, leave without clean-up."""
    try:
        moment = Moment(**order["moment"]) if order["moment"] is not None else None
        module, _, function = order["job"].partition(":")
        job = getattr(importlib.import_module(module), function)
        at = moment.change if moment is not None else None
        act = partial(_die, torn_after=moment.torn_after if moment is not None else None)
        with Changes(Path(order["watched"]), at, act) as changes:
            job(**order["arguments"])
        told = {"changes": len(changes.names)}
    except BaseException:
        told = {"failure": traceback.format_exc()}
    with os.fdopen(report, "w") as stream:
        json.dump(told, stream)
    os._exit(0)


if __name__ == "__main__":
    _serve()
