"""The legend below an overlay: phrases with their colours, wrapped to its width."""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

BACKGROUND: Colour = (22, 24, 29)
TEXT: Colour = (240, 241, 244)
FAINT: Colour = (150, 155, 165)

_TWO_COLUMNS_FROM = 5
_MAX_LINES = 3
_ELLIPSIS = "…"


class Entry(NamedTuple):
    """A phrase, a note on it, and the number (may be empty) and colour of its region."""

    phrase: str
    note: str
    number: str
    colour: Colour


def legend(entries: Sequence[Entry], width: int, font_px: int) -> npt.NDArray[np.uint8]:
    """Draw entries as (H, ``width``, 3) uint8 RGB, in one column, or in two from five entries on."""
    columns = 2 if len(entries) >= _TWO_COLUMNS_FROM else 1
    margin, line_px, gap, note_px = (round(font_px * share) for share in (0.8, 1.25, 0.55, 0.8))
    column_px = (width - margin) // columns
    font, note_font, number_font = legend_font(font_px), legend_font(max(12, note_px)), legend_font(note_px)
    indent = line_px + font_px // 2
    texts = [
        wrapped(printable(entry.phrase), column_px - margin - indent - font_px - note_font.getlength(entry.note), font)
        for entry in entries
    ]
    tops = [margin]
    for start in range(0, len(entries), columns):
        tops.append(tops[-1] + max(len(lines) for lines in texts[start : start + columns]) * line_px + gap)
    height = tops[-1] - gap + margin if entries else 0
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, (entry, lines) in enumerate(zip(entries, texts, strict=True)):
        left, top = margin + index % columns * column_px, tops[index // columns]
        middle = top + line_px / 2
        draw.rounded_rectangle((left, top, left + line_px, top + line_px), radius=line_px // 4, fill=entry.colour)
        draw.text((left + line_px / 2, middle), entry.number, (0, 0, 0), number_font, anchor="mm")
        for number, line in enumerate(lines):
            draw.text((left + indent, middle + number * line_px), line, TEXT, font, anchor="lm")
        draw.text((left + column_px - margin, middle), entry.note, FAINT, note_font, anchor="rm")
    return np.array(canvas)


def wrapped(text: str, width: float, font: Any) -> list[str]:
    """Wrap a text to at most three lines; an ellipsis ends the last line if the text does not fit."""
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
    """Return the longest prefix of a text that fits ``width`` px, with an ellipsis if anything is cut."""
    if font.getlength(text) <= width:
        return text
    too_long = bisect_right(range(len(text)), width, key=lambda end: font.getlength(text[:end] + _ELLIPSIS))
    return text[: max(0, too_long - 1)].rstrip() + _ELLIPSIS


def printable(text: str) -> str:
    """Return a text without accents, invisible characters and lone surrogates, which the font lacks."""
    clean = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    parts = (mark for mark in unicodedata.normalize("NFKD", clean) if not unicodedata.combining(mark))
    return "".join(mark if mark.isprintable() else " " for mark in parts)


def legend_font(size_px: int) -> Any:
    """Return Pillow's built-in scalable font, which needs no installation."""
    return ImageFont.load_default(size_px)
