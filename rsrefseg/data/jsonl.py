"""Reads and writes data sets as JSON lines, one expression per line, as the field's converters write them."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.files import atomic_file

from .annotation_files import image_file_name, parse_object, read_lines
from .masks import Rle, annotated_mask, checked_size, empty_rle, rle_box, run_length_masks
from .samples import Dataset, Sample

# Image folders to search, relative to the folder of the JSON-lines file.
_SUFFIX = ".jsonl"
_IMAGE_FOLDERS = ("images", "images/rrsisd/JPEGImages", "JPEGImages", "img_rgb", "image/image", "image", ".")


class ExportedLines(Record, frozen=True):
    """Path and number of lines of a written file."""

    path: Path
    samples: int

    def render(self) -> str:
        """Return the report as one line of text."""
        return f"{self.samples} expressions written to {self.path}"


def matches(path: Path) -> bool:
    """Return whether a path is a JSON-lines file."""
    return path.is_file() and path.suffix == _SUFFIX


def read(path: Path, images: Path | None) -> tuple[Sample, ...]:
    """Read a JSON-lines file without opening images.

    A line has ``split``, ``file_name``, ``sent`` and ``segmentation`` (a run-length mask, or a list
    of masks whose union is meant).
    Optional keys are ``category_name``, ``sample_id`` (default: the line number) and ``no_target``, true if the
    expression refers to nothing. Other keys are ignored.

    Raises:
        BadInputError: a line is not such an object, or the image folder cannot be found.
    """
    records = [(number, name, parse_object(line, name)) for number, name, line in read_lines(path)]
    folder = images or _image_folder(path, records)
    return tuple(_sample(record, number, name, folder) for number, name, record in records)


def export_jsonl(dataset: Dataset, path: Path) -> ExportedLines:
    """Write a data set as JSON lines, atomically, without copying images.

    ``file_name`` is relative to the common folder of all images, ``bbox`` is ``[x1, y1, x2, y2]`` of the mask, and
    ``segmentation`` is a list with one compressed run-length mask, for every kind of source mask.

    Raises:
        BadInputError: a mask is broken, or the name of the file does not end in ``.jsonl``.
        RSRefSegError: the file cannot be written.
    """
    if path.suffix != _SUFFIX:
        raise BadInputError(
            f"'{path}' does not end in {_SUFFIX}, by which data sets of JSON lines are known: rename it"
        )
    folder = common_image_folder(dataset.samples)
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        for sample in dataset.samples:
            no_target = {} if sample.has_target else {"no_target": True}
            stream.write(json_line(jsonl_record(sample, folder, sample.rle) | no_target))
    return ExportedLines(path, len(dataset.samples))


def common_image_folder(samples: Sequence[Sample]) -> Path:
    """Return the common folder of the images of at least one sample, which ``file_name`` is relative to."""
    return Path(os.path.commonpath({sample.image_path.parent for sample in samples}))


def json_line(record: dict[str, Any]) -> bytes:
    """Encode a record as one line, including the newline."""
    # Lone surrogates in annotations have no UTF-8 encoding: they are escaped as JSON allows.
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def jsonl_record(sample: Sample, folder: Path, rle: Rle) -> dict[str, Any]:
    """Return the keys of a line for a sample with an image under ``folder`` and the mask ``rle``."""
    return {
        "split": sample.split,
        "image_id": sample.image_path.stem,
        "sample_id": sample.sample_id,
        "sent": sample.phrase,
        "file_name": sample.image_path.relative_to(folder).as_posix(),
        "category_name": sample.category,
        "bbox": list(rle_box(rle)),
        "segmentation": [rle],
    }


def _sample(record: dict[str, Any], number: int, name: str, folder: Path) -> Sample:
    for key in ("split", "sent"):
        if not isinstance(record.get(key), str):
            raise BadInputError(f"{name} has no text '{key}'")
    rles, has_target = run_length_masks(record.get("segmentation"), name), record.get("no_target") is not True
    size = rles[0].get("size", ())
    return Sample(
        sample_id=str(record.get("sample_id", number)),
        split=record["split"],
        image_path=folder / image_file_name(record.get("file_name"), name),
        phrase=record["sent"],
        category=str(record.get("category_name", "unknown")),
        mask_source=annotated_mask(rles, name, size) if has_target else empty_rle(*checked_size(size, name)),
        has_target=has_target,
    )


def _image_folder(path: Path, records: list[tuple[int, str, dict[str, Any]]]) -> Path:
    """Return the first image folder that has any of the file's first images, so that one may be missing."""
    names = [image_file_name(record.get("file_name"), name) for _, name, record in records[:100]]
    for folder in (path.parent / name for name in _IMAGE_FOLDERS):
        if any((folder / name).is_file() for name in names):
            return folder
    raise BadInputError(f"no image of '{path}' is in its folder or in 'images' there: name it with --images")
