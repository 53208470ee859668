"""The run's JSON-lines log: appended while training, cut back to the checkpoint when a run resumes."""

import json
from pathlib import Path
from typing import Any

from engines.files import atomic_write_text


class MetricsLog:
    """Appends one JSON object a line; every object carries the optimizer ``step`` it belongs to."""

    def __init__(self, path: Path, from_step: int) -> None:
        """Keep whole lines of steps up to ``from_step`` and drop what a killed process wrote after it."""
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if (entry := _parse(line)) is not None and entry.get("step", 0) <= from_step]
        atomic_write_text(path, "".join(line + "\n" for line in kept))

    def write(self, **entry: Any) -> None:
        """Append one entry."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole entries of a log."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [entry for line in lines if (entry := _parse(line)) is not None]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
