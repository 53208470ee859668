"""Renders reports as text."""

import io
from typing import Any

from rich.console import Console


def printed(report: Any, width: int = 120) -> str:
    """Render a report as text without control codes."""
    stream = io.StringIO()
    Console(width=width, color_system=None, file=stream).print(report.render(), highlight=False)
    return stream.getvalue()
