"""The table of a batch: a row for each image and phrase, in a CSV file that grows while the batch runs."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from ..system.files import atomic_file, unwritable

_FIGURES = ("area_px", "area_share", "area_m2", "mean_probability", "presence")
_BOX = ("x1", "y1", "x2", "y2")
COLUMNS = (
    "image", "phrase", "error", "seconds", *_BOX, *_FIGURES, "tile_px", "mask_file", "mask_band", "overlay_file",
    "json_file", "notes",
)  # fmt: skip

Row = dict[str, Any]


def rows_of(image: str, document: Mapping[str, Any], json_file: Path, seconds: float | None) -> list[Row]:
    """Return the rows of an image from its JSON file's content.

    Args:
        image: as in the work list, without secrets.
        document: the content; see ``write_results``.
        json_file: path of the file, relative to the table.
        seconds: time the image took; ``None`` if not known.
    """
    provenance = document["provenance"] or {}
    common = {
        "image": image, "seconds": seconds, "tile_px": provenance.get("tile_px"), "json_file": json_file,
        "overlay_file": json_file.parent / document["overlay_file"],
    }  # fmt: skip
    notes = (provenance.get("raster") or {}).get("notes", [])
    return [
        {
            **common,
            "phrase": result["phrase"],
            **dict(zip(_BOX, result["box"] or (), strict=False)),
            **{name: result.get(name) for name in _FIGURES},
            "mask_file": json_file.parent / result["mask_file"],
            "mask_band": result.get("mask_band"),
            "notes": "; ".join([*notes, *result["warnings"]]),
        }
        for result in document["results"]
    ]


def failed_rows(image: str, phrases: Sequence[str], error: str, seconds: float | None) -> list[Row]:
    """Return the rows of an image that could not be segmented."""
    return [{"image": image, "phrase": phrase, "error": error, "seconds": seconds} for phrase in phrases]


class Table:
    """A table that is complete at any moment up to the rows that were added last.

    Args:
        path: the CSV file. An earlier one is replaced by the first call of ``add`` or ``write``.
        finished: rows of an earlier run that stay, by the position of their image in the work list.

    Raises:
        BadInputError: the file is another table.
        RSRefSegError: the file cannot be written.
    """

    def __init__(self, path: Path, finished: Mapping[int, list[Row]]) -> None:
        if path.exists() and not path.read_bytes().startswith(",".join(COLUMNS).encode()):
            raise BadInputError(f"'{path}' is not a table of infer: choose another --out")
        self.path = path
        self._rows = dict(finished)
        self._is_written = False

    def write(self) -> None:
        """Write all rows in the order of the work list, atomically."""
        with (
            atomic_file(self.path) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
        ):
            csv.writer(stream).writerow(COLUMNS)
            self._append(stream, (row for number in sorted(self._rows) for row in self._rows[number]))
        self._is_written = True

    def add(self, number: int, rows: list[Row]) -> None:
        """Add the rows of an image to the file.

        Args:
            number: position of the image in the work list.
            rows: its rows.
        """
        self._rows[number] = rows
        if not self._is_written:
            self.write()
            return
        try:
            with self.path.open("a", encoding="utf-8", errors="backslashreplace", newline="") as stream:
                self._append(stream, rows)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _append(self, stream: Any, rows: Iterable[Row]) -> None:
        csv.DictWriter(stream, COLUMNS, restval="").writerows(rows)


def seconds_of(path: Path) -> dict[tuple[str, str], float]:
    """Return the seconds in an earlier table by image and phrase; rows that a killed run cut short are left out."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as stream:
            rows = list(csv.DictReader(line.replace("\0", "") for line in stream))
    except (OSError, csv.Error):
        return {}
    # A row that was cut short lacks its last columns.
    whole = (row for row in rows if row["notes"] is not None and row["seconds"])
    try:
        return {(row["image"], row["phrase"]): float(row["seconds"]) for row in whole}
    except ValueError:  # edited by hand
        return {}
