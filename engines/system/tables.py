"""Tables of one look, narrow enough for a terminal of 80 columns, and their figures."""

from collections.abc import Sequence

from rich import box
from rich.table import Table


def plain_table(title: str, words: Sequence[str], figures: Sequence[str], last: str | None = None) -> Table:
    """A table whose first columns hold words, the next figures, and the last, where there is one, a verdict."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in words:
        table.add_column(name, no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right")
    if last is not None:
        table.add_column(last)
    return table


def three_digits(value: float) -> str:
    """A positive figure with as many places as make three digits or so: ``0.012``, ``1.23``, ``12.3``, ``123``."""
    return f"{value:.{3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0}f}"
