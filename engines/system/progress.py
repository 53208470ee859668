"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere. Always on standard error."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PLAIN_INTERVAL_S = 10.0


class ProgressLine:
    """Shows ``done`` of ``total`` of one task; call ``update`` as often as you like.

    Args:
        title: of the task.
        live: on a terminal, draw anew from a thread of its own, for a clock that goes on. Not while something is timed.

    >>> with ProgressLine("rendering") as progress:
    ...     work(progress=progress.update)
    """

    def __init__(self, title: str, live: bool = True) -> None:
        self.title, self.live = title, live
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told_at = time.monotonic()

    def __enter__(self) -> "ProgressLine":
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            title = TextColumn("{task.description}", markup=False)  # titles hold file names
            columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=self.live)
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show that ``done`` of ``total`` is done; ``note`` says what else matters (a loss, a speed)."""
        text = f"{self.title}  {note}" if note else self.title
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=text, refresh=not self.live)
        elif done == total or time.monotonic() - self._told_at >= _PLAIN_INTERVAL_S:
            self._told_at = time.monotonic()
            self.say(f"{text}  {done}/{total}")

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        elif sys.stderr is not None:  # a service may have closed it
            print(line, file=sys.stderr, flush=True)
