"""JSON-lines log of a run: training appends entries, and resuming truncates the log to the checkpoint."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsrefseg.engines.system.files import atomic_write_text

if TYPE_CHECKING:
    from .state import Position


class MetricsLog:
    """Appends one JSON object per line; every object has its optimizer ``step``."""

    def __init__(self, path: Path, position: "Position") -> None:
        """Keep the entries before ``position``; a killed process may have written more."""
        self.path = path
        kept = [json.dumps(entry) + "\n" for entry in read_metrics(path) if _is_before(entry, position)]
        atomic_write_text(path, "".join(kept))

    def write(self, **entry: Any) -> None:
        """Append one entry."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all complete entries of a log."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError):  # the last line of a killed process may be incomplete
            entries.append(json.loads(line))
    return entries


def _is_before(entry: dict[str, Any], position: "Position") -> bool:
    """Return whether an entry precedes a position; an epoch's validation has the number of its last step."""
    done: bool = entry["step"] <= position.step and ("validation" not in entry or entry["epoch"] < position.epoch)
    return done
