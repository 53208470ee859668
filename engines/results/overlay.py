"""The overlay: a picture that shows at a glance what each phrase found."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..images.images import check_picture
from ..segmenter import Segmentation
from .legend import Badge, Colour, with_legend

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

# Okabe and Ito's colours, told apart by colour-blind people too, first those that stand out over soil, grass and water.
_COLOURS: tuple[Colour, ...] = (
    (240, 228, 66), (86, 180, 233), (230, 159, 0), (204, 121, 167), (0, 158, 115), (213, 94, 0), (0, 114, 178),
)  # fmt: skip
_SHORTEST_LONG_SIDE, _LONGEST_LONG_SIDE = 768, 4096
_TINT = 0.2  # weak, since phrases speak of colours
_DIMMED, _FADED = 0.55, 0.45
_SAME_REGION_IOU = 0.7
_TINY_SHARE = 0.0015


def overlay(image: Picture, segmentations: Sequence[Segmentation]) -> Picture:
    """Draw what phrases found on a picture (H, W, 3) uint8 RGB.

    What nothing refers to is dimmed; each found region is tinted and outlined in the colour of its phrase and, where
    there are several phrases, numbered. Phrases that mean the same region share its outline in dashes. A legend stands
    below. Pictures whose long side is under 768 px are enlarged, those over 4096 px reduced.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    check_picture(image)
    picture = _resized(image, _size_of(image))
    masks = [_mask_at(answer, picture.shape[:2]) for answer in segmentations]
    colours = [colour_of(index) for index in range(len(masks))]
    drawn = draw_regions(picture, masks, colours)
    font_px = max(15, round(picture.shape[1] / 42))
    badges = _badges(masks, colours, drawn.shape[:2], round(font_px * 0.72)) if len(masks) > 1 else []
    return with_legend(drawn, segmentations, colours, badges, font_px)


def draw_regions(picture: Picture, masks: Sequence[Mask], colours: Sequence[Colour]) -> Picture:
    """A picture (H, W, 3) uint8 RGB with each of its regions (H, W) bool tinted and outlined, the rest dimmed.

    Regions that are nearly the same share one outline in dashes. A region too small to catch the eye gets a ring.
    """
    drawn = _shade(picture, masks, colours)
    line = max(2, round(max(picture.shape[:2]) / 420))
    for rank, count, mask, colour in _shared(masks, colours):
        _outline(drawn, mask, colour, line, rank, count)
    return drawn


def colour_of(index: int) -> Colour:
    """The colour of the phrase of that index; later rounds through the palette are lighter."""
    lightened = 1 - 0.55 ** (index // len(_COLOURS))
    red, green, blue = (round(part + (255 - part) * lightened) for part in _COLOURS[index % len(_COLOURS)])
    return red, green, blue


def _size_of(image: Picture) -> tuple[int, int]:
    """(H, W) the overlay shows the picture at."""
    height, width = image.shape[:2]
    longest = max(height, width)
    scale = min(max(longest, _SHORTEST_LONG_SIDE), _LONGEST_LONG_SIDE) / longest
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    import cv2

    if values.shape[:2] == size:
        return values
    smaller = size[0] * size[1] < values.shape[0] * values.shape[1]
    enlarge = cv2.INTER_CUBIC if values.ndim == 3 else cv2.INTER_LINEAR
    way = cv2.INTER_AREA if smaller else enlarge
    resized: npt.NDArray[Any] = cv2.resize(values, (size[1], size[0]), interpolation=way)
    return resized


def _mask_at(answer: Segmentation, size: tuple[int, int]) -> Mask:
    """The mask at the overlay's size, smooth where that is larger. A region that exists never vanishes."""
    if answer.mask.shape == size or not answer.mask.any():
        return answer.mask if answer.mask.shape == size else np.zeros(size, np.bool_)
    mask = _resized(answer.probability, size) > 0.5
    return mask if mask.any() else _resized(answer.mask.astype(np.float32), size) > 0


def _shade(picture: Picture, masks: Sequence[Mask], colours: Sequence[Colour]) -> Picture:
    """Dim and fade what is in no mask, tint what is in one. Where several meet, their mean colour tints."""
    import cv2

    if not any(mask.any() for mask in masks):
        return picture.copy()
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    shaded: Picture = cv2.addWeighted(picture, (1 - _FADED) * _DIMMED, grey, _FADED * _DIMMED, 0)
    windows = [_window(mask) for mask in masks]
    for mask, window in zip(masks, windows, strict=True):
        np.copyto(shaded[window], picture[window], where=mask[window][..., None])
    covers = np.zeros(picture.shape[:2], np.uint16)
    for mask in masks:
        covers += mask
    for mask, window, colour in zip(masks, windows, colours, strict=True):
        share = np.where(mask[window], _TINT / np.maximum(covers[window], 1), 0).astype(np.float32)[..., None]
        towards = np.array(colour, np.float32) - picture[window]
        shaded[window] = np.clip(np.rint(shaded[window] + share * towards), 0, 255).astype(np.uint8)
    return shaded


def _shared(masks: Sequence[Mask], colours: Sequence[Colour]) -> list[tuple[int, int, Mask, Colour]]:
    """Each mask with its rank among, and the number of, those that mean the same region."""
    groups: list[list[int]] = []
    for index, mask in enumerate(masks):
        group = next((group for group in groups if _iou(masks[group[0]], mask) > _SAME_REGION_IOU), None)
        if group is None:
            groups.append([index])
        else:
            group.append(index)
    return [(rank, len(group), masks[index], colours[index]) for group in groups for rank, index in enumerate(group)]


def _iou(one: Mask, other: Mask) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 0.0


def _outline(drawn: Picture, mask: Mask, colour: Colour, line: int, rank: int, count: int) -> None:
    """A crisp line in the phrase's colour on a dark one, so that it shows on any ground. Drawn in place.

    Of ``count`` phrases that mean one region each draws its share of dashes. A region too small to catch the eye gets a
    ring around it.
    """
    import cv2

    if not mask.any():
        return
    window = _window(mask)
    corner = (window[1].start, window[0].start)
    contours, _ = cv2.findContours(mask[window].astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=corner)
    if np.count_nonzero(mask) < _TINY_SHARE * mask.size:
        contours = (*contours, _ring(window, 10 * line))
    if rank == 0:
        cv2.polylines(drawn, contours, True, (0, 0, 0), line + max(2, line // 2), cv2.LINE_AA)
    if count == 1:
        cv2.polylines(drawn, contours, True, colour, line, cv2.LINE_AA)
        return
    for contour in contours:
        dash = max(2, min(12 * line, len(contour) // (2 * count)))
        for start in range(rank * dash, len(contour), count * dash):
            cv2.polylines(drawn, [contour[start : start + dash + 1]], False, colour, line, cv2.LINE_AA)


def _ring(window: tuple[slice, slice], gap: int) -> npt.NDArray[np.int32]:
    """A circle around a window, as a contour (n, 1, 2)."""
    rows, columns = window
    radius = max(rows.stop - rows.start, columns.stop - columns.start) / 2 + gap
    angles = np.linspace(0, 2 * np.pi, max(64, int(radius * 4)), endpoint=False)
    x = (columns.start + columns.stop - 1) / 2 + radius * np.cos(angles)
    y = (rows.start + rows.stop - 1) / 2 + radius * np.sin(angles)
    ring: npt.NDArray[np.int32] = np.rint(np.stack([x, y], axis=1)).astype(np.int32)[:, None]
    return ring


def _badges(masks: Sequence[Mask], colours: Sequence[Colour], size: tuple[int, int], radius: int) -> list[Badge]:
    """A number for each region found: in its thickest part, or beside it where it is too small; none over another."""
    badges: list[Badge] = []
    for index, (mask, colour) in enumerate(zip(masks, colours, strict=True)):
        if not mask.any():
            continue
        x, y = _badge_place(mask, radius)
        while any((x - other.x) ** 2 + (y - other.y) ** 2 < (2 * radius) ** 2 for other in badges):
            x += round(2.2 * radius)
            if x > size[1] - radius:
                x, y = radius, y + round(2.2 * radius)
        x, y = _within(x, radius, size[1]), _within(y, radius, size[0])
        badges.append(Badge(str(index + 1), x, y, radius, colour))
    return badges


def _badge_place(mask: Mask, radius: int) -> tuple[int, int]:
    import cv2

    rows, columns = window = _window(mask)
    depth = cv2.distanceTransform(np.pad(mask[window], 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = (int(value) for value in np.unravel_index(int(np.argmax(depth)), depth.shape))
    if depth[y, x] >= 1.5 * radius:
        return columns.start + x, rows.start + y
    above, below = rows.start - 2 * radius, rows.stop + 2 * radius
    return columns.start + x, above if above >= radius else below


def _within(value: int, radius: int, size: int) -> int:
    return min(max(value, radius), max(radius, size - radius - 1))


def _window(mask: Mask) -> tuple[slice, slice]:
    """The rows and columns a mask lies in."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
