"""What a person sees of a report."""

import io
from typing import Any

from rich.console import Console


def printed(report: Any, width: int = 120) -> str:
    """The rendered report as text, without a terminal's codes."""
    stream = io.StringIO()
    Console(width=width, color_system=None, file=stream).print(report.render(), highlight=False)
    return stream.getvalue()
