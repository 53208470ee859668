"""The formats a data set may come in. A new one: a module with ``matches`` and ``read``, and a line in ``_formats``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rsrefseg.engines.errors import BadInputError

from .samples import Dataset


@dataclass(frozen=True, slots=True)
class DatasetFormat:
    """One way of laying out a data set.

    Attributes:
        name: as reports show it.
        layout: what has to be there, for the error line.
        matches: whether a path looks like this format; cheap, and true for an incomplete copy too, so that the reader
            can say what is missing.
        read: reads the annotations; the second argument is another image folder, or None for the format's own.
    """

    name: str
    layout: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, Path | None], Dataset]


def read_dataset(path: Path, images: Path | None = None) -> Dataset:
    """See ``open_dataset``."""
    if not path.exists():
        raise BadInputError(f"the data set '{path}' does not exist")
    if images is not None and not images.is_dir():
        raise BadInputError(f"the image folder '{images}' does not exist")
    formats = _formats()
    for known in formats:
        if known.matches(path):
            dataset = known.read(path, images)
            if not dataset.samples:
                raise BadInputError(f"the data set '{path}' ({known.name}) holds no sample")
            return dataset
    layouts = "; ".join(f"{known.name}: {known.layout}" for known in formats)
    raise BadInputError(f"'{path}' is no data set of a known format ({layouts})")


def _formats() -> tuple[DatasetFormat, ...]:
    """Every known format; the first that matches is taken."""
    from . import jsonl, nwpu_refer, refsegrs, risbench, rrsisd

    return (
        # Before RRSIS-D, whose annotation files may have the same names in the same place.
        DatasetFormat(nwpu_refer.NAME, nwpu_refer.LAYOUT, nwpu_refer.matches, nwpu_refer.read),
        DatasetFormat(rrsisd.NAME, rrsisd.LAYOUT, rrsisd.matches, rrsisd.read),
        # Before RefSegRS, whose lists of expressions have the same names.
        DatasetFormat(risbench.NAME, risbench.LAYOUT, risbench.matches, risbench.read),
        DatasetFormat(refsegrs.NAME, refsegrs.LAYOUT, refsegrs.matches, refsegrs.read),
        DatasetFormat(jsonl.NAME, jsonl.LAYOUT, jsonl.matches, jsonl.read),
    )
