"""Opens a data set of any format. A new format is a module with the members of ``DatasetFormat``, listed below."""

from pathlib import Path
from typing import Protocol

from rsrefseg.engines.errors import BadInputError

from . import jsonl, nwpu_refer, refsegrs, risbench, rrsisd
from .samples import Dataset


class DatasetFormat(Protocol):
    """One way of laying out a data set: its name, what has to be there, and how it is recognised and read."""

    NAME: str
    LAYOUT: str

    def matches(self, path: Path, /) -> bool:
        """Whether a path looks like this format: cheap, and true for an incomplete copy, which ``read`` then names."""

    def read(self, path: Path, images: Path | None, /) -> Dataset:
        """Read the annotations; ``images`` is another image folder, or None for the format's own."""


# The first that matches is taken: NWPU-Refer's annotation files may have RRSIS-D's names, RISBench's lists RefSegRS's.
FORMATS: tuple[DatasetFormat, ...] = (nwpu_refer, rrsisd, risbench, refsegrs, jsonl)


def open_dataset(path: Path | str, images: Path | None = None) -> Dataset:
    """Open a data set of any known format. Reads annotations only, no image.

    Args:
        path: the data set's folder, or its file for formats that are one file.
        images: folder of the images where it is not the format's own.

    Raises:
        BadInputError: nothing is there, it is of no known format, or its annotations are broken.
    """
    path = Path(path)
    if not path.exists():
        raise BadInputError(f"the data set '{path}' does not exist")
    if images is not None and not images.is_dir():
        raise BadInputError(f"the image folder '{images}' does not exist")
    known = next((known for known in FORMATS if known.matches(path)), None)
    if known is None:
        layouts = "; ".join(f"{known.NAME}: {known.LAYOUT}" for known in FORMATS)
        raise BadInputError(f"'{path}' is not a data set of a known format ({layouts})")
    dataset = known.read(path, images)
    if not dataset.samples:
        raise BadInputError(f"the data set '{path}' ({known.NAME}) holds no sample")
    return dataset
