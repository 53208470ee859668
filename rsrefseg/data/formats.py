"""Opens data sets of all formats. A new format is an entry of ``FORMATS`` with its two functions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rsrefseg.engines.errors import BadInputError

from . import aerial_d, jsonl, nwpu_refer, phrase_lists, refdior, remotesam, rrsisd
from .samples import Dataset, Sample


@dataclass(frozen=True, slots=True)
class DatasetFormat:
    """A data set format.

    Attributes:
        name: name of the format.
        layout: files that show the format, for messages; the guide to own data has all of them.
        matches: returns whether a path has the format; cheap, and true for an incomplete copy, which ``read`` reports.
        read: returns the samples of a path; the second argument is another image folder, or None for the default.
    """

    name: str
    layout: str
    matches: Callable[[Path], bool]
    read: Callable[[Path, Path | None], tuple[Sample, ...]]


# The first match is used: annotation files of NWPU-Refer and RemoteSAM-270K can have RRSIS-D's names, lists of RISBench
# RefSegRS's.
FORMATS = (
    DatasetFormat("NWPU-Refer", "new_refs(unc).p and image/", nwpu_refer.matches, nwpu_refer.read),
    DatasetFormat("RemoteSAM-270K", "refs(unc)_RemoteSAM.p and JPEGImages/", remotesam.matches, remotesam.read),
    DatasetFormat("RRSIS-D", "rrsisd/refs(unc).p and images/rrsisd/JPEGImages/", rrsisd.matches, rrsisd.read),
    DatasetFormat(
        "RISBench", "output_phrase_train.txt and img_rgb/", phrase_lists.is_risbench, phrase_lists.read_risbench
    ),
    DatasetFormat(
        "RefSegRS", "output_phrase_train.txt and images/*.tif", phrase_lists.has_lists, phrase_lists.read_refsegrs
    ),
    DatasetFormat("RefDIOR", "phrase_txts/train.json and masks/", refdior.matches, refdior.read),
    DatasetFormat("Aerial-D", "train/annotations/*.xml and train/images/", aerial_d.matches, aerial_d.read),
    DatasetFormat("JSONL", "FILE.jsonl", jsonl.matches, jsonl.read),
)


def open_dataset(path: Path | str, images: Path | None = None) -> Dataset:
    """Open a data set of any known format; reads annotations only, no images.

    Args:
        path: folder of the data set, or its file for JSON lines.
        images: image folder, if it is not the one of the format.

    Raises:
        BadInputError: the path does not exist, has no known format, or its annotations are broken.
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
        raise BadInputError(f"the data set '{path}' ({known.name}) has no samples")
    return Dataset(path, known.name, samples)
