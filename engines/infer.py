"""``rsrefseg infer``: segment an image by phrases; write masks, an overlay and a JSON file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .images.images import read_image
from .records import Record
from .results.results import write_results
from .segmenter import Segmenter


class InferReport(Record, frozen=True):
    """The result of ``rsrefseg infer``.

    Attributes:
        image: the image's path, as given.
        backend: the backend that ran, and why it was selected.
        results: the figures of each phrase; see ``describe``.
        files: paths of the masks in the order of the phrases, then of overlay and JSON.
        notes: notes on the bundle, one line each.
    """

    image: str
    backend: str
    results: tuple[dict[str, Any], ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def render(self) -> str:
        """Return the report as text: a line per phrase, the files, notes and warnings."""
        lines = [_line(figures) for figures in self.results]
        lines += [f"  {file}" for file in self.files]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"note: {warning}" for figures in self.results for warning in figures["warnings"]]
        return "\n".join([*lines, f"ran on {self.backend}"])


def infer_image(
    image_path: Path, phrases: Sequence[str], bundle: Path | None, backend: str, out: Path, max_pixels: int
) -> InferReport:
    """Segment the region of each phrase; write masks, an overlay and a JSON file to the folder ``out``.

    Raises:
        BadInputError: the image or a phrase cannot be used, or no backend has that name.
        BundleError: the bundle is missing, incomplete or changed.
        MissingPartError: the backend cannot run on this machine.
        RSRefSegError: the output cannot be written.
    """
    with Segmenter.open(bundle, backend) as segmenter:
        image = read_image(image_path, max_pixels)
        files = write_results(out, image_path.stem, image, segmenter.segment(image, phrases), image_path)
        results = json.loads(files[-1].read_bytes())["results"]
        notes = segmenter.bundle.manifest.provenance.notes
        return InferReport(str(image_path), segmenter.backend_reason, tuple(results), tuple(files), notes)


def _line(figures: dict[str, Any]) -> str:
    phrase = json.dumps(figures["phrase"], ensure_ascii=False)  # in quotes, control characters escaped
    if figures["box"] is None:
        return f"{phrase}: nothing found"
    x1, y1, x2, y2 = figures["box"]
    return (
        f"{phrase}: box ({x1}, {y1}) to ({x2}, {y2}), {figures['area_px']:,} px "
        f"({figures['area_share']:.1%} of the image), mean probability {figures['mean_probability']:.2f}"
    )
