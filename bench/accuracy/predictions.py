"""Writes predictions: a mask file for each sample, and JSON lines that can be opened as a data set."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rsrefseg.engines.system.files import atomic_directory, atomic_write_json

if TYPE_CHECKING:
    from rsrefseg.data.samples import Sample
    from rsrefseg.evaluation.metrics import Overlap
    from rsrefseg.evaluation.predictions import SamplePrediction

SCHEMA_VERSION = 1
RECORD_FILE = "evaluation.json"
LINES_FILE = "predictions.jsonl"
MASK_FOLDER = "masks"
_COMPRESSION = 1  # zlib level: binary masks are small at any level


@contextlib.contextmanager
def prediction_folder(path: Path, samples: "Sequence[Sample]") -> "Iterator[PredictionWriter]":
    """Open a folder for predictions, which is written atomically at the end of the ``with`` block.

    It contains ``evaluation.json`` (model, runtime, protocol, scores, image folder), ``predictions.jsonl`` with a line
    for each sample, and ``masks/000001.png`` and so on in the order of lines: (H, W) at the image's size, 0 and 255. A
    line has the keys of ``jsonl`` with the predicted mask as ``segmentation``, so that the file opens as a data set,
    and ``iou``, ``intersection``, ``union`` (in pixels at the protocol's size) and ``mask_file``. If phrases were
    shuffled, ``sent`` is the phrase given to the model and ``own_sent`` the phrase of the sample.

    Args:
        path: folder to create. Only an empty folder or earlier predictions are replaced.
        samples: all samples, which determine the common image folder.
    """
    from rsrefseg.data.jsonl import common_image_folder

    images = common_image_folder(samples)
    with atomic_directory(path, replaces=RECORD_FILE) as folder:
        (folder / MASK_FOLDER).mkdir()
        with (folder / LINES_FILE).open("wb") as lines:
            yield PredictionWriter(folder, images, lines)


class PredictionWriter:
    """Writes predictions one by one.

    Args:
        folder: folder of the predictions.
        images: common folder of all images.
        lines: open file ``predictions.jsonl``.
    """

    def __init__(self, folder: Path, images: Path, lines: BinaryIO) -> None:
        self._folder, self._images, self._lines = folder, images, lines
        self._count = 0

    def add(self, prediction: "SamplePrediction", overlap: "Overlap") -> None:
        """Write one prediction."""
        from PIL import Image

        from rsrefseg.data.jsonl import json_line, jsonl_record
        from rsrefseg.data.masks import encode_mask

        self._count += 1
        mask_file = f"{MASK_FOLDER}/{self._count:06d}.png"
        Image.fromarray(prediction.mask).convert("L").save(self._folder / mask_file, compress_level=_COMPRESSION)
        sample = prediction.sample
        line = jsonl_record(sample, self._images, encode_mask(prediction.mask)) | {
            "sent": prediction.phrase,
            "iou": overlap.iou,
            "intersection": overlap.intersection,
            "union": overlap.union,
            "mask_file": mask_file,
        }
        if prediction.phrase != sample.phrase:
            line["own_sent"] = sample.phrase
        self._lines.write(json_line(line))

    def finish(self, record: dict[str, Any]) -> None:
        """Write ``evaluation.json``; ``record`` is ``EvaluationReport.record()``."""
        head = {"schema_version": SCHEMA_VERSION, "images": str(self._images.absolute()), "lines": LINES_FILE}
        atomic_write_json(self._folder / RECORD_FILE, head | record)
