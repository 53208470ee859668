"""Opens a data set of any format. A new format is a line of ``FORMATS`` and the two functions that it names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rsrefseg.engines.errors import BadInputError

from . import jsonl, nwpu_refer, phrase_lists, rrsisd
from .samples import Dataset, Sample


@dataclass(frozen=True, slots=True)
class DatasetFormat:
    """One way of laying out a data set.

    Attributes:
        name: of the format.
        layout: the files that it needs.
        matches: whether a path looks like it: cheap, and true for an incomplete copy, which ``read`` then names.
        read: the samples of a path; the second argument is another image folder, or None for the format's own.
    """

    name: str
    layout: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, Path | None], tuple[Sample, ...]]


_LISTS = "output_phrase_{train,val,test}.txt"
# The first that matches is taken: NWPU-Refer's annotation files may have RRSIS-D's names, RISBench's lists RefSegRS's.
FORMATS = (
    DatasetFormat(
        "NWPU-Refer",
        "new_refs(unc).p, new_instances.json (or without new_), image/",
        nwpu_refer.matches,
        nwpu_refer.read,
    ),
    DatasetFormat(
        "RRSIS-D", "rrsisd/refs(unc).p, rrsisd/instances.json, images/rrsisd/JPEGImages/", rrsisd.matches, rrsisd.read
    ),
    DatasetFormat(
        "RISBench",
        f"{_LISTS}, img_rgb/*.png (or images/), mask/*.png (or masks/)",
        phrase_lists.is_risbench,
        phrase_lists.read_risbench,
    ),
    DatasetFormat(
        "RefSegRS", f"{_LISTS}, images/*.tif, masks/*.tif", phrase_lists.has_lists, phrase_lists.read_refsegrs
    ),
    DatasetFormat("JSONL", "FILE.jsonl with its images in a folder beside it", jsonl.matches, jsonl.read),
)


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
        layouts = "; ".join(f"{known.name}: {known.layout}" for known in FORMATS)
        raise BadInputError(f"'{path}' is not a data set of a known format ({layouts})")
    samples = known.read(path, images)
    if not samples:
        raise BadInputError(f"the data set '{path}' ({known.name}) holds no sample")
    return Dataset(path, known.name, samples)
