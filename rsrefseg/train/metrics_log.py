"""The run's JSON-lines log: appended while training, cut back to the checkpoint when a run resumes."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from rsrefseg.engines.system.files import atomic_write_text

from .state import Position


class MetricsLog:
    """Appends one JSON object a line; every object carries the optimizer ``step`` it belongs to."""

    def __init__(self, path: Path, position: Position) -> None:
        """Keep the lines of steps and validations done before ``position``; a killed process may have written more."""
        self.path = path
        kept = [json.dumps(entry) + "\n" for entry in read_metrics(path) if _is_before(entry, position)]
        atomic_write_text(path, "".join(kept))

    def write(self, **entry: Any) -> None:
        """Append one entry."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole entries of a log."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError):  # the last line of a killed process may be cut off
            entries.append(json.loads(line))
    return entries


def _is_before(entry: dict[str, Any], position: Position) -> bool:
    """Whether an entry is of the past; an epoch's validation comes after its last step and bears the same number."""
    done: bool = entry["step"] <= position.step and ("validation" not in entry or entry["epoch"] < position.epoch)
    return done
