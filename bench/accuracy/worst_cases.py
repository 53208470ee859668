"""Collects the samples with the lowest IoU and draws a contact sheet of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.results.legend import BACKGROUND, FAINT, TEXT, legend_font, printable, shortened, wrapped
from rsrefseg.engines.results.overlay import colour_of, draw_regions

if TYPE_CHECKING:
    from rsrefseg.data.masks import Rle
    from rsrefseg.data.samples import Sample
    from rsrefseg.evaluation.metrics import Overlap
    from rsrefseg.evaluation.predictions import SamplePrediction

CASES = 12

_COLUMNS = 4
_IMAGE_PX = 400
_GAP_PX = 20
_CAPTION_GAP_PX = 7
_FONT_PX, _SMALL_PX, _LINE_PX = 18, 15, 23
_CELL_PX = _IMAGE_PX + _CAPTION_GAP_PX + 4 * _LINE_PX + _GAP_PX  # a score and up to three lines of a phrase
_COLOURS = {"truth": colour_of(0), "prediction": colour_of(1)}

BoolMask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class WorstCase:
    """A sample with a low IoU. Its masks are run lengths, because masks of large images need much memory."""

    sample: "Sample"
    phrase: str
    overlap: "Overlap"
    truth: "Rle" = field(repr=False)
    prediction: "Rle" = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict without masks."""
        return {
            "sample_id": self.sample.sample_id,
            "image": str(self.sample.image_path),
            "phrase": self.phrase,
            "class": self.sample.category,
            "iou": self.overlap.iou,
        }


class WorstCases:
    """Keeps the samples with the lowest IoU; ties are ordered by wrong pixels, then by first appearance.

    Args:
        limit: maximum number of samples.

    Attributes:
        cases: kept samples, worst first.
    """

    def __init__(self, limit: int = CASES) -> None:
        self._limit = limit
        self.cases: list[WorstCase] = []

    def add(self, prediction: "SamplePrediction", overlap: "Overlap") -> None:
        """Add a prediction, which is kept if it is among the worst so far."""
        from rsrefseg.data.masks import encode_mask

        if len(self.cases) == self._limit and _score(overlap) >= _score(self.cases[-1].overlap):
            return
        truth, mask = encode_mask(prediction.truth), encode_mask(prediction.mask)
        self.cases.append(WorstCase(prediction.sample, prediction.phrase, overlap, truth, mask))
        self.cases.sort(key=lambda case: _score(case.overlap))  # stable sort
        del self.cases[self._limit :]

    def draw(self, path: Path, title: str) -> None:
        """Write the contact sheet.

        Args:
            path: PNG file.
            title: heading of the sheet.

        Raises:
            BadInputError: an image cannot be read.
        """
        from PIL import Image

        Image.fromarray(contact_sheet(self.cases, title)).save(path, format="PNG")


def _score(overlap: "Overlap") -> tuple[float, int]:
    """Return a sort key; lower is worse."""
    return overlap.iou, overlap.intersection - overlap.union


def contact_sheet(cases: Sequence[WorstCase], title: str) -> npt.NDArray[np.uint8]:
    """Draw samples in rows of four: each image with both masks, and below it IoU, class, id and phrase.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    from PIL import Image, ImageDraw

    columns = max(2, min(_COLUMNS, len(cases)))
    width = columns * (_IMAGE_PX + _GAP_PX) + _GAP_PX
    head = wrapped(printable(title), width - 2 * _GAP_PX, legend_font(_FONT_PX))
    head_px = (len(head) + 1) * _LINE_PX + 2 * _GAP_PX
    sheet = Image.new("RGB", (width, head_px + -(-len(cases) // columns) * _CELL_PX), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(head):
        draw.text((_GAP_PX, _GAP_PX + number * _LINE_PX), line, TEXT, legend_font(_FONT_PX))
    _draw_key(draw, _GAP_PX + len(head) * _LINE_PX + _GAP_PX // 4)
    for number, case in enumerate(cases):
        row, column = divmod(number, columns)
        sheet.paste(_cell(case), (_GAP_PX + column * (_IMAGE_PX + _GAP_PX), head_px + row * _CELL_PX))
    return np.array(sheet)


def _cell(case: WorstCase) -> Any:
    """Return a sample's image at the bottom of a square, and its caption, as a Pillow image."""
    from PIL import Image, ImageDraw

    truth, prediction = _masks(case)
    image = Image.fromarray(draw_regions(_image(case), [truth, prediction], list(_COLOURS.values())))
    cell = Image.new("RGB", (_IMAGE_PX, _CELL_PX), BACKGROUND)
    cell.paste(image, ((_IMAGE_PX - image.width) // 2, _IMAGE_PX - image.height))
    draw, font, top = ImageDraw.Draw(cell), legend_font(_FONT_PX), _IMAGE_PX + _CAPTION_GAP_PX
    nothing = ", nothing found" if not prediction.any() else ", no target" if not truth.any() else ""
    score = f"IoU {case.overlap.iou:.3f}{nothing}"
    facts = printable(f"sample {case.sample.sample_id}, {case.sample.category}")
    facts = shortened(facts, _IMAGE_PX - font.getlength(score) - _GAP_PX, legend_font(_SMALL_PX))
    draw.text((0, top), score, TEXT, font)
    draw.text((_IMAGE_PX, top + _FONT_PX), facts, FAINT, legend_font(_SMALL_PX), anchor="rs")
    for number, line in enumerate(wrapped(printable(case.phrase), _IMAGE_PX, font), start=1):
        draw.text((0, top + number * _LINE_PX), line, TEXT, font)
    return cell


def _draw_key(draw: Any, top: int) -> None:
    """Draw the legend of the colours."""
    left, font = float(_GAP_PX), legend_font(_FONT_PX)
    for name, colour in _COLOURS.items():
        draw.rounded_rectangle((left, top, left + _FONT_PX, top + _FONT_PX), radius=_FONT_PX // 4, fill=colour)
        left += _FONT_PX * 1.5
        draw.text((left, top + _FONT_PX / 2), name, TEXT, font, anchor="lm")
        left += font.getlength(name) + _GAP_PX
    order = "lowest IoU first; dashes where the outlines coincide"
    draw.text((left, top + _FONT_PX / 2), order, FAINT, legend_font(_SMALL_PX), anchor="lm")


def _image(case: WorstCase) -> npt.NDArray[np.uint8]:
    """Return the sample's image with its long side resized to the cell."""
    from PIL import Image

    from rsrefseg.engines.images.images import read_image

    image = read_image(case.sample.image_path)
    return np.array(Image.fromarray(image).resize(_size(image.shape[0], image.shape[1]), Image.Resampling.LANCZOS))


def _masks(case: WorstCase) -> tuple[BoolMask, BoolMask]:
    """Return truth and prediction at the size of ``_image``. Small regions do not vanish."""
    from PIL import Image

    from rsrefseg.data.masks import decode_rle

    resized: list[BoolMask] = []
    for rle in (case.truth, case.prediction):
        mask = decode_rle(rle)
        share = np.array(Image.fromarray(mask.astype(np.float32)).resize(_size(*mask.shape), Image.Resampling.BILINEAR))
        resized.append(share > 0.5 if (share > 0.5).any() else share > 0)
    return resized[0], resized[1]


def _size(height: int, width: int) -> tuple[int, int]:
    """Return (width, height) on the sheet."""
    scale = _IMAGE_PX / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))
