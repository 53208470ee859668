"""Predictions on disk: a mask picture for each sample, and JSON lines that are a data set of their own."""

import contextlib
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from rsrefseg.engines.system.files import atomic_directory, atomic_write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rsrefseg.data.samples import Sample
    from rsrefseg.evaluation.answers import Answer
    from rsrefseg.evaluation.metrics import Overlap

SCHEMA_VERSION = 1
RECORD_FILE = "evaluation.json"
LINES_FILE = "predictions.jsonl"
MASK_FOLDER = "masks"
_FAST = 1  # zlib level: a mask of two values is small at any level


class PredictionFolder:
    """Writes predictions one by one; the folder appears whole when the ``with`` block ends, or not at all.

    It holds ``evaluation.json`` (model, runtime, protocol, scores, where the images are), ``predictions.jsonl`` with a
    line for each sample and ``masks/000001.png`` and so on in the order of the lines: (H, W) at the image's own size, 0
    and 255. A line has the keys of ``jsonl`` with the predicted mask as ``segmentation``, so that the
    file can be opened as a data set, and ``iou``, ``intersection``, ``union`` (in pixels at the protocol's size) and
    ``mask_file``. Where phrases were shuffled, ``sent`` is the one that was asked and ``own_sent`` the sample's.

    Args:
        path: folder to make. Of those that exist, only an empty one or an earlier folder of predictions is replaced.
        samples: all that may come, for the folder their images have in common.
    """

    def __init__(self, path: Path, samples: "Sequence[Sample]") -> None:
        from rsrefseg.data.jsonl import common_image_folder

        self._path = path
        self._images = common_image_folder(samples)
        self._stack = contextlib.ExitStack()
        self._folder: Path | None = None
        self._lines: BinaryIO | None = None
        self._count = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._folder = stack.enter_context(atomic_directory(self._path, replaces=RECORD_FILE))
            (self._folder / MASK_FOLDER).mkdir()
            self._lines = stack.enter_context((self._folder / LINES_FILE).open("wb"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, traceback)

    def add(self, answer: "Answer", overlap: "Overlap") -> None:
        """Write one prediction.

        Raises:
            ValueError: no ``with`` block is around the call.
        """
        from PIL import Image

        from rsrefseg.data.jsonl import json_line, jsonl_record
        from rsrefseg.data.masks import encode_mask

        if self._folder is None or self._lines is None:
            raise ValueError("PredictionFolder.add outside its with block")
        self._count += 1
        mask_file = f"{MASK_FOLDER}/{self._count:06d}.png"
        Image.fromarray(answer.prediction).convert("L").save(self._folder / mask_file, compress_level=_FAST)
        sample = answer.sample
        line = jsonl_record(sample, self._images, encode_mask(answer.prediction)) | {
            "sent": answer.asked,
            "iou": overlap.iou,
            "intersection": overlap.intersection,
            "union": overlap.union,
            "mask_file": mask_file,
        }
        if answer.asked != sample.phrase:
            line["own_sent"] = sample.phrase
        self._lines.write(json_line(line))

    def finish(self, record: dict[str, Any]) -> None:
        """Write what was evaluated, how, and what came out.

        Raises:
            ValueError: no ``with`` block is around the call.
        """
        if self._folder is None:
            raise ValueError("PredictionFolder.finish outside its with block")
        head = {"schema_version": SCHEMA_VERSION, "images": str(self._images.absolute()), "lines": LINES_FILE}
        atomic_write_json(self._folder / RECORD_FILE, head | record)
