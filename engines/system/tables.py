"""Tables for a terminal and for Markdown, and the format of their figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich import table as rich_table


@dataclass
class Table:
    """A titled table of text cells.

    Args:
        title: title, with units.
        columns: column headers.
        rows: rows of as many cells as there are columns.
        words: number of leading columns that hold words; the others hold figures and are right-aligned.
        verdict: whether the last column holds words as well, e.g. ``ok`` or ``FAIL``.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    words: int = 1
    verdict: bool = False

    def add(self, *cells: str) -> None:
        """Append a row."""
        self.rows.append(cells)

    def to_rich(self) -> rich_table.Table:
        """Return a rich table for a terminal of 80 columns."""
        table = rich_table.Table(
            title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        for number, name in enumerate(self.columns):
            if number < self.words:
                table.add_column(name, no_wrap=True)
            else:
                table.add_column(name, justify="right" if self._is_figure(number) else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """Return Markdown for GitHub, with the title in a line before the table."""
        rule = ["---:" if self._is_figure(number) else "---" for number in range(len(self.columns))]
        lines = [[_escaped(cell) for cell in row] for row in self.rows]
        return f"{self.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in [self.columns, rule, *lines])

    def _is_figure(self, column: int) -> bool:
        return column >= self.words and not (self.verdict and column == len(self.columns) - 1)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def format_sig3(value: float) -> str:
    """Format a positive number with about three significant digits: ``0.012``, ``1.23``, ``12.3``, ``123``."""
    return f"{value:.{3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0}f}"
