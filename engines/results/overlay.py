"""The overlay: an image on which each phrase's regions are tinted, outlined and numbered, with a legend below."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from .legend import BACKGROUND, Colour, Entry, legend

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

# Okabe and Ito's colours, distinct for colour-blind readers; those visible on soil, grass and water come first.
_COLOURS: tuple[Colour, ...] = (
    (240, 228, 66), (86, 180, 233), (230, 159, 0), (204, 121, 167), (0, 158, 115), (213, 94, 0), (0, 114, 178),
)  # fmt: skip
_BLACK: Colour = (0, 0, 0)
LONGEST_LONG_SIDE = 4096  # of an overlay, px
_SHORTEST_LONG_SIDE, _NARROWEST_LEGEND = 768, 384
_TINT = 0.2  # weak, because phrases refer to colours
_DIMMED, _FADED = 0.55, 0.45
_SAME_REGION_IOU = 0.7
_COARSE = (128, 128)  # the grid on which regions are compared
_TINY_SHARE = 0.0015
_MOST_TINTS = 255  # maximum of a pixel's counter


def colour_of(index: int) -> Colour:
    """Return the colour of the phrase at an index; later passes through the palette are lighter."""
    lightened = 1 - 0.55 ** (index // len(_COLOURS))
    red, green, blue = (round(part + (255 - part) * lightened) for part in _COLOURS[index % len(_COLOURS)])
    return red, green, blue


def draw_regions(image: Image, masks: Sequence[Mask], colours: Sequence[Colour]) -> Image:
    """Return a copy of an image (H, W, 3) uint8 with regions (H, W) bool tinted and outlined, and the rest dimmed.

    Regions that are nearly equal share one dashed outline. A ring marks a region that is too small to notice.
    """
    drawing = _Drawing(image)
    for mask, colour in zip(masks, colours, strict=True):
        drawing.add(mask, colour)
    return drawing.paint()


class Overlay:
    """Draws phrases on an image one after another. Memory use does not grow with their number.

    Images whose long side is under 768 px are enlarged, those over 4096 px reduced.

    Args:
        image: (H, W, 3) uint8 RGB.
    """

    def __init__(self, image: Image) -> None:
        longest = max(image.shape[:2])
        scale = min(max(longest, _SHORTEST_LONG_SIDE), LONGEST_LONG_SIDE) / longest
        self._size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))  # (W', H')
        self._drawing = _Drawing(cv2.resize(image, self._size, interpolation=_interpolation(scale, cv2.INTER_CUBIC)))
        self._scale = scale
        self._found: list[tuple[str, float | None]] = []

    def add(
        self, phrase: str, logits: npt.NDArray[np.float32], mean_probability: float | None, cut_logit: float = 0.0
    ) -> None:
        """Draw the region of a phrase.

        Args:
            phrase: text for the legend.
            logits: (H, W) float32.
            mean_probability: mean over the region, 0..1; ``None`` if the region is empty.
            cut_logit: the region is where the logits are above it.
        """
        resized = cv2.resize(logits, self._size, interpolation=_interpolation(self._scale, cv2.INTER_LINEAR))
        mask = resized > cut_logit
        if mean_probability is not None and not mask.any():  # too thin for the smaller grid
            share = cv2.resize((logits > cut_logit).astype(np.float32), self._size, interpolation=cv2.INTER_AREA)
            mask = share > 0
        self._drawing.add(mask, colour_of(len(self._found)))
        self._found.append((phrase, mean_probability))

    def render(self) -> Image:
        """Return the overlay with the legend, (H', W', 3) uint8 RGB."""
        width = max(self._size[0], _NARROWEST_LEGEND)
        font_px = max(15, round(self._size[0] / 42))
        several = len(self._found) > 1
        drawn = self._drawing.paint(number_px=round(font_px * 0.72) if several else 0)
        entries = []
        for index, (phrase, mean) in enumerate(self._found):
            note = "nothing found" if mean is None else f"probability {mean:.2f}"
            entries.append(Entry(phrase, note, str(index + 1) if several else "", colour_of(index)))
        canvas = np.full((drawn.shape[0], width, 3), BACKGROUND, np.uint8)
        left = (width - drawn.shape[1]) // 2
        canvas[:, left : left + drawn.shape[1]] = drawn
        return np.vstack([canvas, legend(entries, width, font_px)])


class Reduced:
    """Logits at no more than the overlay's resolution, from strips: the highest of each block of pixels.

    Args:
        size: (H, W), px.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._step = -(-max(size) // LONGEST_LONG_SIDE)
        self.logits = np.full([-(-side // self._step) for side in size], -np.inf, np.float32)

    def add(self, top: int, strip: npt.NDArray[np.float32]) -> None:
        """Add a strip (h, W) whose first row is ``top``."""
        if self._step == 1:
            self.logits[top : top + len(strip)] = strip
            return
        columns = np.maximum.reduceat(strip, range(0, strip.shape[1], self._step), axis=1)
        first = -top % self._step
        starts = [0, *range(first, len(strip), self._step)] if first else list(range(0, len(strip), self._step))
        part = np.maximum.reduceat(columns, starts, axis=0)
        rows = self.logits[top // self._step :][: len(part)]
        np.maximum(rows, part, out=rows)


@dataclass(frozen=True, slots=True, eq=False)
class _Region:
    """A mask with the measurements that its outline needs."""

    box: tuple[int, int, int, int]  # x, y, width, height
    contours: Sequence[npt.NDArray[np.int32]]
    spot: tuple[int, int]  # the (x, y) farthest from the edges
    depth: float  # the distance of ``spot`` from the edges, px
    is_tiny: bool  # too small to notice
    coverage: npt.NDArray[np.float32]  # the mask on a coarse grid, shares of area
    label: int  # its number among all masks, from 1
    colour: Colour

    @classmethod
    def of(cls, mask: Mask, label: int, colour: Colour) -> "_Region":
        pixels = mask.astype(np.uint8)
        x, y, width, height = box = cv2.boundingRect(pixels)
        part = pixels[y : y + height, x : x + width]
        contours, _ = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y))
        distance = cv2.distanceTransform(np.pad(part, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        _, depth, _, (column, row) = cv2.minMaxLoc(distance)
        is_tiny = cv2.countNonZero(part) < _TINY_SHARE * mask.size
        coverage = cv2.resize(mask.astype(np.float32), _COARSE, interpolation=cv2.INTER_AREA)
        return cls(tuple(box), contours, (x + column, y + row), depth, is_tiny, coverage, label, colour)

    def is_same_as(self, other: "_Region") -> bool:
        """Return whether the IoU of both is above 0.7."""
        union = np.maximum(self.coverage, other.coverage).sum()
        return bool(np.minimum(self.coverage, other.coverage).sum() > _SAME_REGION_IOU * union)


class _Drawing:
    """Collects the regions of an image (H, W, 3) and paints them."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._tints = np.zeros(image.shape, np.uint16)  # sums of the colours that meet
        self._covers = np.zeros(image.shape[:2], np.uint8)
        self._regions: list[_Region] = []
        self._masks = 0

    def add(self, mask: Mask, colour: Colour) -> None:
        self._masks += 1
        if not mask.any():
            return
        region = _Region.of(mask, self._masks, colour)
        x, y, width, height = region.box
        window = np.s_[y : y + height, x : x + width]
        tinted = mask[window] & (self._covers[window] < _MOST_TINTS)
        self._covers[window] += tinted
        self._tints[window] += tinted[..., None] * np.array(colour, np.uint16)
        self._regions.append(region)

    def paint(self, number_px: int = 0) -> Image:
        """Return the drawing; with ``number_px``, each region has its number in a disc of that radius."""
        if not self._regions:
            return self._image.copy()
        grey = cv2.cvtColor(cv2.cvtColor(self._image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        drawn: Image = cv2.addWeighted(self._image, (1 - _FADED) * _DIMMED, grey, _FADED * _DIMMED, 0)
        tint = (self._tints // np.maximum(self._covers, 1)[..., None]).astype(np.uint8)
        cv2.copyTo(cv2.addWeighted(self._image, 1 - _TINT, tint, _TINT, 0), self._covers, drawn)
        groups: list[list[_Region]] = []
        for region in self._regions:
            group = next((group for group in groups if region.is_same_as(group[0])), [])
            if not group:
                groups.append(group)
            group.append(region)
        for group in groups:
            for rank, region in enumerate(group):
                _outline(drawn, region, rank, len(group))
        if number_px:
            self._number(drawn, number_px)
        return drawn

    def _number(self, drawn: Image, radius: int) -> None:
        """Number each region in its thickest part, or beside the region if that is too thin, without overlaps."""
        height, width = drawn.shape[:2]
        taken: list[tuple[int, int]] = []
        for region in self._regions:
            x, y = region.spot
            if region.depth < 1.5 * radius:
                above, below = region.box[1] - 2 * radius, region.box[1] + region.box[3] + 2 * radius
                y = above if above >= radius else below
            while any(np.hypot(x - other_x, y - other_y) < 2 * radius for other_x, other_y in taken):
                x += round(2.2 * radius)
                if x > width - radius:
                    x, y = radius, y + round(2.2 * radius)
            x, y = (min(max(at, radius), max(radius, end - radius - 1)) for at, end in ((x, width), (y, height)))
            taken.append((x, y))
            cv2.circle(drawn, (x, y), radius + max(1, radius // 8), _BLACK, -1, cv2.LINE_AA)
            cv2.circle(drawn, (x, y), radius, region.colour, -1, cv2.LINE_AA)
            text, scale, weight = str(region.label), radius / 18, max(1, radius // 8)
            (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
            corner = (x - text_width // 2, y + text_height // 2)
            cv2.putText(drawn, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, _BLACK, weight, cv2.LINE_AA)


def _outline(drawn: Image, region: _Region, rank: int, count: int) -> None:
    """Draw a line in the region's colour on a wider dark one; each of ``count`` equal regions draws some dashes."""
    line = max(2, round(max(drawn.shape[:2]) / 420))
    contours = list(region.contours)
    x, y, width, height = region.box
    if region.is_tiny:
        radius = max(width, height) // 2 + 10 * line
        ring = cv2.ellipse2Poly((x + width // 2, y + height // 2), (radius, radius), 0, 0, 360, 2)
        contours.append(np.array(ring, np.int32)[:, None])
    if rank == 0:
        cv2.polylines(drawn, contours, True, _BLACK, line + max(2, line // 2), cv2.LINE_AA)
    if count == 1:
        cv2.polylines(drawn, contours, True, region.colour, line, cv2.LINE_AA)
        return
    for contour in contours:
        dash = max(2, min(12 * line, len(contour) // (2 * count)))
        for start in range(rank * dash, len(contour), count * dash):
            cv2.polylines(drawn, [contour[start : start + dash + 1]], False, region.colour, line, cv2.LINE_AA)


def _interpolation(scale: float, enlarging: int) -> int:
    return int(cv2.INTER_AREA) if scale < 1 else enlarging
