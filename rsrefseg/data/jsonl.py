"""The JSON-lines form of a data set: one expression a line, as the field's converters write it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.files import atomic_file

from .annotation_files import image_file_name, parse_object, read_lines
from .masks import Rle, annotated_mask, checked_size, empty_rle, only_rle, rle_box
from .samples import Dataset, Sample

# Where the images of a JSON-lines file are looked for, beside it.
_IMAGE_FOLDERS = ("images", "images/rrsisd/JPEGImages", "JPEGImages", "img_rgb", "image/image", "image", ".")


class ExportedLines(Record, frozen=True):
    """A file that was written, and its number of lines."""

    path: Path
    samples: int

    def render(self) -> str:
        """One line for a person."""
        return f"{self.samples} expressions written to {self.path}"


def matches(path: Path) -> bool:
    """Whether a path is a JSON-lines file."""
    return path.is_file() and path.suffix == ".jsonl"


def read(path: Path, images: Path | None) -> tuple[Sample, ...]:
    """Read a JSON-lines file; no image is opened.

    A line holds ``split``, ``file_name``, ``sent``, ``segmentation`` (a run-length mask, or a list of one) and, where
    known, ``category_name``, ``sample_id`` (else the line's number names the sample) and ``no_target``, true where the
    expression refers to nothing; other keys are not read.

    Raises:
        BadInputError: a line is no such object, or the images' folder cannot be found.
    """
    records = [(number, name, parse_object(line, name)) for number, name, line in read_lines(path)]
    folder = images or _image_folder(path, records)
    return tuple(_sample(record, number, name, folder) for number, name, record in records)


def export_jsonl(dataset: Dataset, path: Path) -> ExportedLines:
    """Write a data set as JSON lines, atomically; images are named, not copied.

    ``file_name`` is relative to the folder that holds all images, ``bbox`` is ``[x1, y1, x2, y2]`` of the mask,
    ``segmentation`` a list of one compressed run-length mask, whatever the mask came from.

    Raises:
        BadInputError: a mask is broken.
        RSRefSegError: the file cannot be written.
    """
    folder = common_image_folder(dataset.samples)
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        for sample in dataset.samples:
            no_target = {} if sample.has_target else {"no_target": True}
            stream.write(json_line(jsonl_record(sample, folder, sample.rle) | no_target))
    return ExportedLines(path, len(dataset.samples))


def common_image_folder(samples: Sequence[Sample]) -> Path:
    """The folder that holds the images of all samples, at least one: what their ``file_name`` is relative to."""
    return Path(os.path.commonpath({sample.image_path.parent for sample in samples}))


def json_line(record: dict[str, Any]) -> bytes:
    """One line of the file, its end included."""
    # Annotations may hold lone surrogates, which UTF-8 cannot: escaped, they are JSON's own notation.
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def jsonl_record(sample: Sample, folder: Path, rle: Rle) -> dict[str, Any]:
    """What a line says of a sample whose image lies under ``folder``; ``rle`` its mask or another."""
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
    rle, has_target = only_rle(record.get("segmentation"), name), record.get("no_target") is not True
    return Sample(
        sample_id=str(record.get("sample_id", number)),
        split=record["split"],
        image_path=folder / image_file_name(record.get("file_name"), name),
        phrase=record["sent"],
        category=str(record.get("category_name", "unknown")),
        mask_source=annotated_mask([rle], name) if has_target else empty_rle(*checked_size(rle.get("size"), name)),
        has_target=has_target,
    )


def _image_folder(path: Path, records: list[tuple[int, str, dict[str, Any]]]) -> Path:
    """The first folder beside the file that holds any of its first images: a missing one must not hide the folder."""
    names = [image_file_name(record.get("file_name"), name) for _, name, record in records[:100]]
    for folder in (path.parent / name for name in _IMAGE_FOLDERS):
        if any((folder / name).is_file() for name in names):
            return folder
    raise BadInputError(f"no image of '{path}' lies beside it or in 'images' there: name their folder with --images")
