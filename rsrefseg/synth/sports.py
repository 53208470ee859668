"""Shapes of sports grounds: courts, fields, tracks, stadiums, pools."""

import math

import numpy as np

from .canvas import F64, Brush, ellipse, shade
from .domain import RGB

_CHALK: RGB = (232, 232, 226)
_LAWN: RGB = (92, 138, 68)
_CLAY: RGB = (172, 112, 76)
_TARTAN: RGB = (178, 84, 66)


def tennis_court(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """A court with its run-off and net."""
    brush.rect(-1, -0.54, 1, 0.54, shade(rgb, 0.78))
    brush.rect(-0.76, -0.36, 0.76, 0.36, rgb, solid=False)
    brush.frame(-0.76, -0.36, 0.76, 0.36, 0.035, _CHALK)
    for y in (-0.27, 0.27):
        brush.line([[-0.76, y], [0.76, y]], 0.03, _CHALK)
    for x in (-0.4, 0.4):
        brush.line([[x, -0.27], [x, 0.27]], 0.03, _CHALK)
    brush.line([[-0.4, 0], [0.4, 0]], 0.03, _CHALK)
    brush.line([[0, -0.42], [0, 0.42]], 0.03, (60, 64, 66))


def basketball_court(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """A court with keys, three-point arcs and centre circle."""
    brush.rect(-1, -0.56, 1, 0.56, rgb)
    brush.frame(-0.9, -0.47, 0.9, 0.47, 0.04, _CHALK)
    brush.line([[0, -0.47], [0, 0.47]], 0.035, _CHALK)
    brush.disc(0, 0, 0.16, shade(rgb, 0.72), solid=False)
    brush.loop(ellipse(0, 0, 0.16, 0.16), 0.035, _CHALK)
    for side in (-1.0, 1.0):
        brush.rect(0.54 * side, -0.16, 0.9 * side, 0.16, shade(rgb, 0.66), solid=False)
        brush.frame(0.54 * side, -0.16, 0.9 * side, 0.16, 0.03, _CHALK)
        arc = ellipse(0.86, 0, 0.5, 0.4, math.pi / 2, 3 * math.pi / 2)
        brush.line(arc * np.array([side, 1.0]), 0.035, _CHALK)


def baseball_field(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """A quarter-circle outfield with its clay diamond at -x."""
    lawn = shade(_LAWN, rng.uniform(0.9, 1.1))
    home, quarter = -0.69, math.pi / 4
    brush.poly(_wedge(home, 1.39, quarter), _CLAY)
    brush.poly(_wedge(home + 0.05, 1.25, quarter * 0.94), lawn, solid=False)
    for ring in (0.72, 0.95, 1.18):
        brush.line(ellipse(home, 0, ring, ring, -quarter * 0.9, quarter * 0.9), 0.09, shade(lawn, 1.09))
    brush.poly(_wedge(home, 0.68, quarter), _CLAY)
    brush.poly([[home + 0.1, 0], [home + 0.33, -0.23], [home + 0.56, 0], [home + 0.33, 0.23]], lawn, solid=False)
    brush.disc(home + 0.33, 0, 0.05, _CLAY, solid=False)
    brush.disc(home + 0.07, 0, 0.07, _CLAY, solid=False)


def track_field(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """A running track around a football pitch."""
    brush.poly(_oval(1.0, 0.6), shade(_TARTAN, rng.uniform(0.9, 1.1)))
    for lane in (0.95, 0.89):
        brush.loop(_oval(lane, 0.6 * lane - 0.02), 0.012, (214, 170, 156))
    brush.poly(_oval(0.80, 0.42), _LAWN, solid=False)
    for index, x in enumerate(np.arange(-0.5, 0.5, 0.125)):
        tone = shade(_LAWN, 1.12 if index % 2 else 0.94)
        brush.rect(x, -0.32, x + 0.125, 0.32, tone, solid=False)
    brush.frame(-0.5, -0.32, 0.5, 0.32, 0.025, _CHALK)
    brush.line([[0, -0.32], [0, 0.32]], 0.025, _CHALK)
    brush.loop(ellipse(0, 0, 0.1, 0.1), 0.025, _CHALK)


def stadium(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """A bowl of stands, partly roofed, around a pitch."""
    brush.disc(0, 0, 1.0, rgb, 0.82)
    for ring, tone in ((0.9, 0.8), (0.8, 1.05), (0.7, 0.72)):
        brush.disc(0, 0, ring, shade(rgb, tone), ring * 0.8, solid=False)
    for turn in np.arange(0, 2 * math.pi, math.pi / 14):
        cos, sin = math.cos(turn), math.sin(turn)
        brush.line([[0.62 * cos, 0.5 * sin], [0.99 * cos, 0.81 * sin]], 0.018, shade(rgb, 0.68))
    brush.disc(0, 0, 0.62, shade(_TARTAN, 0.95), 0.46, solid=False)
    brush.disc(0, 0, 0.55, _LAWN, 0.4, solid=False)
    for index, x in enumerate(np.arange(-0.4, 0.4, 0.1)):
        brush.rect(x, -0.25, x + 0.1, 0.25, shade(_LAWN, 1.12 if index % 2 else 0.94), solid=False)
    brush.frame(-0.4, -0.25, 0.4, 0.25, 0.022, _CHALK)
    brush.line([[0, -0.25], [0, 0.25]], 0.022, _CHALK)


def swimming_pool(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Bright water with a pale rim: a rectangle, an oval or a kidney."""
    rim: RGB = (216, 212, 200)
    water: RGB = (72, 178, 206)
    kind = rng.integers(3)
    if kind == 0:
        brush.rect(-1, -0.55, 1, 0.55, rim)
        brush.rect(-0.88, -0.43, 0.88, 0.43, water, solid=False)
        for y in (-0.215, 0, 0.215):
            brush.line([[-0.84, y], [0.84, y]], 0.025, (40, 130, 170))
    elif kind == 1:
        brush.disc(0, 0, 1, rim, 0.58)
        brush.disc(0, 0, 0.87, water, 0.45, solid=False)
        brush.disc(0.2, 0.08, 0.5, shade(water, 0.9), 0.26, solid=False)
    else:
        brush.disc(-0.42, 0.02, 0.58, rim, 0.56)
        brush.disc(0.42, -0.04, 0.58, rim, 0.5)
        brush.disc(-0.42, 0.02, 0.46, water, 0.44, solid=False)
        brush.disc(0.42, -0.04, 0.46, water, 0.38, solid=False)
        brush.rect(-0.45, -0.3, 0.45, 0.3, water, solid=False)
        brush.disc(-0.42, 0.02, 0.26, shade(water, 0.88), 0.24, solid=False)


def _oval(length: float, width: float) -> F64:
    """A track's outline: two half circles joined by straights."""
    straight = length - width
    right = ellipse(straight, 0, width, width, -math.pi / 2, math.pi / 2)
    return np.concatenate([right, -right])


def _wedge(tip: float, radius: float, half_angle: float) -> F64:
    """A sector of a circle that opens towards +x."""
    return np.concatenate([[[tip, 0.0]], ellipse(tip, 0, radius, radius, -half_angle, half_angle)])
