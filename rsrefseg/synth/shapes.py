"""Draws the shapes of all objects from above in object coordinates; ``catalog`` lists them."""

import math

import numpy as np

from .canvas import F64, Brush, ellipse, shade
from .domain import RGB

_GLASS: RGB = (52, 60, 70)
_PAINT: RGB = (230, 230, 224)
_CHALK: RGB = (232, 232, 226)
_LAWN: RGB = (92, 138, 68)
_CLAY: RGB = (172, 112, 76)
_TARTAN: RGB = (178, 84, 66)


def airplane(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw an airliner from above, nose towards +x, wings swept back."""
    sweep, dark, light = rng.uniform(0.25, 0.5), shade(rgb, 0.82), shade(rgb, 1.08)
    for side in (-1.0, 1.0):
        wing = [[0.30, 0.0], [0.24 - sweep, 0.92], [0.02 - sweep, 0.94], [-0.20, 0.08]]
        brush.poly([[x, y * side] for x, y in wing], dark if side > 0 else shade(rgb, 0.92))
        tail = [[-0.62, 0.0], [-0.84, 0.36], [-1.0, 0.36], [-0.94, 0.0]]
        brush.poly([[x, y * side] for x, y in tail], dark)
        brush.disc(0.16 - sweep * 0.35, 0.42 * side, 0.13, shade(rgb, 0.62), 0.055)
    body = [[1.0, 0.0], [0.93, 0.08], [0.78, 0.13], [-0.45, 0.13], [-0.9, 0.05], [-1.0, 0.0]]
    brush.poly(_mirrored(body), rgb)
    brush.rect(-0.5, -0.05, 0.75, 0.02, light, solid=False)
    brush.poly([[0.9, 0.07], [0.84, 0.09], [0.84, -0.09], [0.9, -0.07]], _GLASS, solid=False)
    brush.rect(-1.0, -0.025, -0.62, 0.025, shade(rgb, 0.7), solid=False)


def ship(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw a freighter, bow towards +x: hull, deck with hatches or containers, bridge at the stern."""
    width = 0.26
    hull = [[-1.0, -0.8], [-0.94, -1.0], [0.55, -1.0], [0.82, -0.62], [1.0, 0.0]]
    outline = _mirrored(hull)
    brush.poly([[x, y * width] for x, y in outline], shade(rgb, 0.66))
    brush.poly([[x * 0.955, y * width * 0.82] for x, y in outline], rgb)
    if rng.random() < 0.5:
        hatch = shade(rgb, rng.choice([0.78, 1.2]))
        for x in np.arange(-0.42, 0.6, 0.26):
            brush.rect(x, -0.13, x + 0.19, 0.13, hatch, solid=False)
            brush.line([[x, 0.0], [x + 0.19, 0.0]], 0.02, shade(rgb, 0.6))
    else:
        for x in np.arange(-0.44, 0.58, 0.15):
            for y in (-0.155, -0.05, 0.055):
                tone = shade(rgb, rng.uniform(0.7, 1.2))
                brush.rect(x, y, x + 0.13, y + 0.1, tone, solid=False)
    brush.rect(-0.84, -0.19, -0.56, 0.19, (226, 226, 222), solid=False)
    brush.rect(-0.64, -0.19, -0.58, 0.19, _GLASS, solid=False)
    brush.disc(-0.75, 0.0, 0.055, shade(rgb, 0.5), solid=False)


def vehicle(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw a car, front towards +x."""
    outline = [[-1.0, -0.34], [-0.94, -0.43], [0.8, -0.43], [0.97, -0.3], [1.0, 0.0]]
    brush.poly(_mirrored(outline), shade(rgb, 0.88))
    brush.rect(-0.9, -0.36, 0.86, 0.36, rgb, solid=False)
    brush.poly([[0.42, -0.36], [0.42, 0.36], [0.2, 0.29], [0.2, -0.29]], _GLASS, solid=False)
    brush.poly([[-0.72, -0.33], [-0.72, 0.33], [-0.52, 0.28], [-0.52, -0.28]], _GLASS, solid=False)
    for side in (-1.0, 1.0):
        glass = [[0.34, 0.37], [-0.62, 0.37], [-0.5, 0.31], [0.18, 0.31]]
        brush.poly([[x, y * side] for x, y in glass], _GLASS, solid=False)
    brush.rect(-0.5, -0.29, 0.18, 0.29, shade(rgb, 1.1), solid=False)
    for side in (-1.0, 1.0):
        brush.rect(0.86, 0.2 * side - 0.06, 0.96, 0.2 * side + 0.06, (236, 234, 214), solid=False)
    if rng.random() < 0.25:
        brush.rect(-0.3, -0.14, 0.0, 0.14, _GLASS, solid=False)


def building(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw a house with a pitched roof, or a flat-roofed block with a parapet and plant."""
    width = 0.68
    if rng.random() < 0.5:
        brush.rect(-1, -width, 1, 0, shade(rgb, 1.1))
        brush.rect(-1, 0, 1, width, shade(rgb, 0.74))
        if rng.random() < 0.6:  # hipped ends
            brush.poly([[-1, -width], [-0.5, 0], [-1, width]], shade(rgb, 0.9), solid=False)
            brush.poly([[1, -width], [0.5, 0], [1, width]], shade(rgb, 0.98), solid=False)
        for y in np.arange(-0.55, 0.6, 0.18):
            brush.line([[-0.97, y], [0.97, y]], 0.012, shade(rgb, 0.86))
        brush.line([[-0.5, 0], [0.5, 0]], 0.03, shade(rgb, 1.2))
        brush.rect(0.28, -0.36, 0.42, -0.22, shade(rgb, 0.5), solid=False)
        return
    notch = rng.random() < 0.5
    brush.rect(-1, -width, 1 if not notch else 0.2, width, shade(rgb, 0.8))
    brush.rect(-0.93, -width + 0.07, 0.93 if not notch else 0.13, width - 0.07, rgb, solid=False)
    if notch:
        brush.rect(0.1, -width, 1, 0.12, shade(rgb, 0.8))
        brush.rect(0.05, -width + 0.07, 0.93, 0.05, rgb, solid=False)
    for _ in range(int(rng.integers(2, 6))):
        x, y = rng.uniform(-0.8, 0.0), rng.uniform(-0.5, 0.4)
        w, h = rng.uniform(0.06, 0.2), rng.uniform(0.06, 0.14)
        brush.rect(x + 0.03, y + 0.03, x + w + 0.03, y + h + 0.03, shade(rgb, 0.6), solid=False)
        brush.rect(x, y, x + w, y + h, shade(rgb, rng.choice([0.85, 1.15])), solid=False)


def terminal(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw a long airport hall with a ribbed roof and piers towards +y."""
    brush.rect(-1, -0.24, 1, 0.12, shade(rgb, 0.86))
    for x in (-0.8, 0.0, 0.8):
        brush.rect(x - 0.13, 0.05, x + 0.13, 0.26, shade(rgb, 0.78))
        brush.rect(x - 0.08, 0.05, x + 0.08, 0.22, rgb, solid=False)
    brush.rect(-0.97, -0.21, 0.97, 0.09, rgb, solid=False)
    for x in np.arange(-0.9, 0.95, 0.15):
        brush.line([[x, -0.21], [x, 0.09]], 0.02, shade(rgb, 0.84))
    brush.rect(-0.95, -0.09, 0.95, -0.04, (96, 118, 138), solid=False)


def storage_tank(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw a cylindrical tank: floating roof in its shell, or a domed one with ribs."""
    brush.disc(0, 0, 1, shade(rgb, 0.7))
    brush.disc(-0.02, -0.02, 0.92, rgb, solid=False)
    if rng.random() < 0.5:
        brush.disc(0.05, 0.05, 0.82, shade(rgb, 0.78), solid=False)
        brush.disc(0.0, 0.0, 0.78, shade(rgb, 0.95), solid=False)
        brush.loop(ellipse(0, 0, 0.45, 0.45), 0.03, shade(rgb, 0.82))
    else:
        brush.disc(-0.12, -0.12, 0.68, shade(rgb, 1.06), solid=False)
        for turn in np.arange(0, 2 * math.pi, math.pi / 6):
            brush.line([[0, 0], [0.88 * math.cos(turn), 0.88 * math.sin(turn)]], 0.02, shade(rgb, 0.86))
        brush.disc(0, 0, 0.12, shade(rgb, 0.72), solid=False)
    brush.line([[0.25, 0.3], [0.6, 0.72]], 0.06, shade(rgb, 0.55))


def bridge(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw a road deck with parapets and a centre line along x."""
    width = 0.16
    brush.rect(-1, -width, 1, width, shade(rgb, 1.12))
    brush.rect(-1, -width * 0.82, 1, width * 0.82, shade(rgb, 0.88), solid=False)
    for x in np.arange(-0.95, 0.95, 0.2):
        brush.line([[x, 0], [x + 0.1, 0]], 0.02, _PAINT)
    for x in np.arange(-0.9, 1.0, 0.3):
        brush.rect(x - 0.02, -width, x + 0.02, -width * 0.8, shade(rgb, 0.6), solid=False)
        brush.rect(x - 0.02, width * 0.8, x + 0.02, width, shade(rgb, 0.6), solid=False)


def dam(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw an arched wall with spillway piers, its hollow side towards +y."""
    outer = ellipse(0, 0.95, 1.28, 1.15, math.pi * 1.22, math.pi * 1.78)
    inner = ellipse(0, 0.95, 1.10, 0.86, math.pi * 1.22, math.pi * 1.78)
    brush.poly(np.concatenate([outer, inner[::-1]]), rgb)
    brush.line((outer * 0.7 + inner * 0.3), 0.1, shade(rgb, 1.15))
    for index in range(3, 48, 6):
        brush.line([outer[index].tolist(), inner[index].tolist()], 0.035, shade(rgb, 0.66))


def runway(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw a paved strip with threshold bars and a dashed centre line."""
    width = 0.115
    brush.rect(-1, -width, 1, width, rgb)
    for side in (-1.0, 1.0):
        brush.line([[-1, side * width * 0.88], [1, side * width * 0.88]], 0.012, _PAINT)
        for y in np.linspace(-width * 0.7, width * 0.7, 6):
            brush.line([[0.78 * side, y], [0.68 * side, y]], 0.016, _PAINT)
    for x in np.arange(-0.6, 0.6, 0.14):
        brush.line([[x, 0], [x + 0.08, 0]], 0.016, _PAINT)
    for _ in range(3):  # tyre marks
        x, y = rng.uniform(-0.6, 0.3), rng.uniform(-0.04, 0.04)
        brush.line([[x, y], [x + 0.3, y]], 0.02, shade(rgb, 0.8))


def roundabout(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw a ring road around a planted island."""
    brush.disc(0, 0, 1.0, shade(rgb, 1.18))
    brush.disc(0, 0, 0.96, rgb, solid=False)
    brush.loop(ellipse(0, 0, 0.72, 0.72), 0.022, _PAINT)
    for radius, tone in ((0.5, (190, 186, 176)), (0.45, (88, 126, 66)), (0.2, (150, 140, 116)), (0.11, (66, 100, 50))):
        brush.disc(0, 0, radius, tone, solid=False)


def pond(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw still water with an irregular shore."""
    turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    radius = np.full_like(turn, 0.81)
    for wave in (2, 3, 5):
        radius += rng.uniform(0.02, 0.075) * np.cos(wave * turn + rng.uniform(0, 2 * math.pi))
    shore = np.stack([radius * np.cos(turn), 0.74 * radius * np.sin(turn)], axis=1)
    brush.poly(shore, (150, 140, 108))
    brush.poly(shore * 0.93, (46, 84, 96), solid=False)
    brush.poly(shore * 0.6, (36, 70, 86), solid=False)


def field(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw a cropped parcel with rows and tractor lines."""
    skew = rng.uniform(0.0, 0.16)
    edge = np.array([[-1 + skew, -0.72], [1, -0.72], [1 - skew, 0.72], [-1, 0.72]])
    brush.poly(edge, rgb)
    for index, y in enumerate(np.arange(-0.68, 0.7, 0.075)):
        brush.line([[-1.1, y], [1.1, y]], 0.034, shade(rgb, 1.07 if index % 2 else 0.91))
    for y in (-0.4, 0.1, 0.5):
        brush.line([[-1.1, y], [1.1, y]], 0.02, shade(rgb, 0.72))
    brush.loop(edge, 0.04, shade(rgb, 0.78))


def solar_panel(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw a block of panel rows on gravel."""
    brush.rect(-1, -0.66, 1, 0.66, (148, 146, 138))
    panel: RGB = (34, 46, 84)
    for y in np.arange(-0.6, 0.5, 0.22):
        brush.rect(-0.94, y, 0.94, y + 0.16, panel, solid=False)
        brush.line([[-0.94, y + 0.05], [0.94, y + 0.05]], 0.014, (92, 106, 140))
    for x in np.arange(-0.94, 0.95, 0.235):
        brush.line([[x, -0.6], [x, 0.66]], 0.014, (112, 118, 136))


def tennis_court(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw a court with its run-off and net."""
    brush.rect(-1, -0.54, 1, 0.54, shade(rgb, 0.78))
    brush.rect(-0.76, -0.36, 0.76, 0.36, rgb, solid=False)
    brush.frame(-0.76, -0.36, 0.76, 0.36, 0.035, _CHALK)
    for side in (-1, 1):
        brush.line([[-0.76, 0.27 * side], [0.76, 0.27 * side]], 0.03, _CHALK)
        brush.line([[0.4 * side, -0.27], [0.4 * side, 0.27]], 0.03, _CHALK)
    brush.line([[-0.4, 0], [0.4, 0]], 0.03, _CHALK)
    brush.line([[0, -0.42], [0, 0.42]], 0.03, (60, 64, 66))


def basketball_court(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Draw a court with keys, three-point arcs and centre circle."""
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
    """Draw a quarter-circle outfield with its clay diamond at -x."""
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
    """Draw a running track around a football pitch."""
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
    """Draw a bowl of stands, partly roofed, around a pitch."""
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
    """Draw bright water with a pale rim: a rectangle, an oval or a kidney."""
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


def _mirrored(half: list[list[float]]) -> list[list[float]]:
    """Return a closed outline from its half, whose ends may be on the x axis."""
    return [*half, *[[x, -y] for x, y in reversed(half)]]


def _oval(length: float, width: float) -> F64:
    """Return the outline of a track: two half circles joined by straights."""
    straight = length - width
    right = ellipse(straight, 0, width, width, -math.pi / 2, math.pi / 2)
    return np.concatenate([right, -right])


def _wedge(tip: float, radius: float, half_angle: float) -> F64:
    """Return a sector of a circle that opens towards +x."""
    return np.concatenate([[[tip, 0.0]], ellipse(tip, 0, radius, radius, -half_angle, half_angle)])
