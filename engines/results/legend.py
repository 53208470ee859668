"""The words of an overlay: numbers in the picture and a legend below it."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ..segmenter import Segmentation

Colour = tuple[int, int, int]

BACKGROUND: Colour = (22, 24, 29)
TEXT: Colour = (240, 241, 244)
FAINT: Colour = (150, 155, 165)

_NARROWEST_PX = 384
_TWO_COLUMNS_FROM = 5
_MAX_LINES = 3
_BLACK: Colour = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Badge:
    """A number in a disc: centre and radius in px of the picture."""

    text: str
    x: int
    y: int
    radius: int
    colour: Colour


@dataclass(frozen=True, slots=True)
class _Entry:
    """A phrase in the legend: its lines as they fit, and what stands beside it in small."""

    lines: tuple[str, ...]
    note: str
    number: str
    colour: Colour


def with_legend(
    picture: npt.NDArray[np.uint8],
    segmentations: Sequence[Segmentation],
    colours: Sequence[Colour],
    badges: Sequence[Badge],
    font_px: int,
) -> npt.NDArray[np.uint8]:
    """Put badges on a picture (H, W, 3) uint8 RGB and a legend under it."""
    height, width = picture.shape[:2]
    canvas_width = max(width, _NARROWEST_PX)
    columns = 2 if len(segmentations) >= _TWO_COLUMNS_FROM else 1
    margin, line_px, gap = round(font_px * 0.8), round(font_px * 1.25), round(font_px * 0.55)
    column_width = (canvas_width - margin) // columns
    entries = [
        _entry(answer, str(index + 1) if len(colours) > 1 else "", colours[index], column_width - margin, font_px)
        for index, answer in enumerate(segmentations)
    ]
    rows = [entries[start : start + columns] for start in range(0, len(entries), columns)]
    heights = [max(len(entry.lines) for entry in row) * line_px + gap for row in rows]
    legend_height = sum(heights) + 2 * margin - gap if rows else 0
    canvas = Image.new("RGB", (canvas_width, height + legend_height), BACKGROUND)
    left = (canvas_width - width) // 2
    canvas.paste(Image.fromarray(_with_discs(picture, badges)), (left, 0))
    draw = ImageDraw.Draw(canvas)
    for badge in badges:
        draw.text((left + badge.x, badge.y), badge.text, _BLACK, legend_font(round(badge.radius * 1.2)), anchor="mm")
    top = height + margin
    for row, row_height in zip(rows, heights, strict=True):
        for column, entry in enumerate(row):
            _draw_entry(draw, entry, margin + column * column_width, top, column_width - margin, line_px, font_px)
        top += row_height
    return np.array(canvas)


def _with_discs(picture: npt.NDArray[np.uint8], badges: Sequence[Badge]) -> npt.NDArray[np.uint8]:
    import cv2

    drawn = picture.copy()
    for badge in badges:
        edge = max(1, badge.radius // 8)
        cv2.circle(drawn, (badge.x, badge.y), badge.radius + edge, _BLACK, -1, cv2.LINE_AA)
        cv2.circle(drawn, (badge.x, badge.y), badge.radius, badge.colour, -1, cv2.LINE_AA)
    return drawn


def _draw_entry(
    draw: ImageDraw.ImageDraw, entry: _Entry, left: int, top: int, width: int, line_px: int, font_px: int
) -> None:
    """A swatch with the phrase's number, the phrase beside it, the note at the right."""
    draw.rounded_rectangle((left, top, left + line_px, top + line_px), radius=line_px // 4, fill=entry.colour)
    middle, indent, font = top + line_px / 2, left + line_px + font_px // 2, legend_font(font_px)
    draw.text((left + line_px / 2, middle), entry.number, _BLACK, legend_font(round(font_px * 0.85)), anchor="mm")
    for number, line in enumerate(entry.lines):
        draw.text((indent, middle + number * line_px), line, TEXT, font, anchor="lm")
    draw.text((left + width, middle), entry.note, FAINT, legend_font(_note_px(font_px)), anchor="rm")


def _entry(answer: Segmentation, number: str, colour: Colour, width: int, font_px: int) -> _Entry:
    found = bool(answer.mask.any())
    note = f"probability {answer.probability[answer.mask].mean():.2f}" if found else "nothing found"
    note_width = legend_font(_note_px(font_px)).getlength(note)
    lines = wrapped(printable(answer.phrase), width - note_width - font_px * 2.75, legend_font(font_px))
    return _Entry(tuple(lines), note, number, colour)


def wrapped(text: str, width: float, font: Any) -> list[str]:
    """Up to three lines of a text, the last one cut with an ellipsis."""
    lines, words = [""], text.split()
    for position, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) == _MAX_LINES or not lines[-1]:
            lines[-1] = shortened(" ".join([lines[-1], *words[position:]]).strip(), width, font)
            break
        else:
            lines.append(shortened(word, width, font))
    return lines


def shortened(text: str, width: float, font: Any) -> str:
    """The longest beginning of a text that fits, with an ellipsis where something is missing."""
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle] + "…") <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def printable(text: str) -> str:
    """The text as the font can draw it: it has plain letters only, so accents go, and so do invisible characters."""
    clean = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    parts = (mark for mark in unicodedata.normalize("NFKD", clean) if not unicodedata.combining(mark))
    return "".join(mark if mark.isprintable() else " " for mark in parts)


def _note_px(font_px: int) -> int:
    return max(12, round(font_px * 0.8))


def legend_font(size_px: int) -> Any:
    """Pillow's own scalable font: none has to be installed."""
    return ImageFont.load_default(size_px)
