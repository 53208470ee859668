"""Progress of long tasks on standard error: a bar on a terminal, else a plain line at most every ten seconds."""

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

_PLAIN_INTERVAL_S = 10.0


class ProgressLine(ExitStack):
    """Shows the progress of one task. ``update`` may be called at any rate.

    Args:
        title: name of the task.
        live: on a terminal, redraw from a thread; False during measurements.

    >>> with ProgressLine("rendering") as progress:
    ...     work(progress=progress.update)
    """

    def __init__(self, title: str, live: bool = True) -> None:
        super().__init__()
        self.title, self.live = title, live
        self._bar: Progress | None = None
        self._printed_at = time.monotonic()

    def __enter__(self) -> "ProgressLine":
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            title = TextColumn("{task.description}", markup=False)  # titles hold file names
            columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=self.live)
            bar.add_task(self.title, total=None)
            self._bar = self.enter_context(bar)
        return self

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show that ``done`` of ``total`` steps are complete, with a note such as a loss or a speed."""
        text = f"{self.title}  {note}" if note else self.title
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=done, total=total, description=text, refresh=not self.live
            )
        elif done == total or time.monotonic() - self._printed_at >= _PLAIN_INTERVAL_S:
            self._printed_at = time.monotonic()
            self.say(f"{text}  {done}/{total}")

    def say(self, line: str) -> None:
        """Print a permanent line."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        elif sys.stderr is not None:  # a service may have closed it
            print(line, file=sys.stderr, flush=True)
