"""``rsrefseg infer``: one picture, some phrases, files to look at and to go on with."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .images.images import read_image
from .results.results import describe, write_results
from .segmenter import Segmentation, Segmenter


@dataclass(frozen=True, slots=True)
class InferReport:
    """What was found and where it was written.

    Attributes:
        image: the picture's path, as given.
        backend: what ran, and why it was this.
        answers: one per phrase, in order.
        files: masks in the order of the phrases, then overlay and JSON.
        notes: what to know about the bundle, one line each.
        results: ``describe``'s figures, one per phrase.
    """

    image: str
    backend: str
    answers: tuple[Segmentation, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    results: tuple[dict[str, Any], ...] = field(init=False)

    def __post_init__(self) -> None:
        # Once: outlining masks of a large picture takes a while.
        object.__setattr__(self, "results", tuple(describe(answer) for answer in self.answers))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "image": self.image,
            "backend": self.backend,
            "notes": list(self.notes),
            "results": list(self.results),
            "files": [str(file) for file in self.files],
        }

    def render(self) -> str:
        """A line for each phrase, then the files, then what to know about the words."""
        lines = [_line(figures) for figures in self.results]
        lines += [f"  {file}" for file in self.files]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"note: {warning}" for answer in self.answers for warning in answer.warnings]
        return "\n".join([*lines, f"ran on {self.backend}"])


def infer_image(
    image_path: Path, phrases: Sequence[str], bundle: Path | None, backend: str, out: Path, max_pixels: int
) -> InferReport:
    """Segment what each phrase refers to and write masks, an overlay and a JSON into ``out``.

    Raises:
        BadInputError: the picture or a phrase cannot be used, or no backend has that name.
        BundleError: the bundle is missing, not whole or changed.
        MissingPartError: the backend cannot run here.
        RSRefSegError: the output cannot be written.
    """
    with Segmenter.open(bundle, backend) as segmenter:
        image = read_image(image_path, max_pixels)
        answers = segmenter.segment(image, phrases)
        files = write_results(out, image_path.stem, image, answers)
        notes = segmenter.bundle.manifest.provenance.notes
        return InferReport(str(image_path), segmenter.backend_reason, tuple(answers), tuple(files), notes)


def _line(figures: dict[str, Any]) -> str:
    phrase = json.dumps(figures["phrase"], ensure_ascii=False)  # in quotes, control characters escaped
    if figures["box"] is None:
        return f"{phrase}: nothing found"
    x1, y1, x2, y2 = figures["box"]
    return (
        f"{phrase}: box ({x1}, {y1}) to ({x2}, {y2}), {figures['area_px']:,} px "
        f"({figures['area_share']:.1%} of the picture), mean probability {figures['mean_probability']:.2f}"
    )
