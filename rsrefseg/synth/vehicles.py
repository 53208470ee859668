"""Shapes of things that move: airplanes, ships, vehicles."""

import numpy as np

from .canvas import Brush, shade
from .domain import RGB

_GLASS: RGB = (52, 60, 70)


def airplane(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """An airliner from above, nose towards +x, wings swept back."""
    sweep, dark, light = rng.uniform(0.25, 0.5), shade(rgb, 0.82), shade(rgb, 1.08)
    for side in (-1.0, 1.0):
        wing = [[0.30, 0.0], [0.24 - sweep, 0.92], [0.02 - sweep, 0.94], [-0.20, 0.08]]
        brush.poly([[x, y * side] for x, y in wing], dark if side > 0 else shade(rgb, 0.92))
        tail = [[-0.62, 0.0], [-0.84, 0.36], [-1.0, 0.36], [-0.94, 0.0]]
        brush.poly([[x, y * side] for x, y in tail], dark)
        brush.disc(0.16 - sweep * 0.35, 0.42 * side, 0.13, shade(rgb, 0.62), 0.055)
    body = [[1.0, 0.0], [0.93, 0.08], [0.78, 0.13], [-0.45, 0.13], [-0.9, 0.05], [-1.0, 0.0]]
    brush.poly([*body, *[[x, -y] for x, y in reversed(body)]], rgb)
    brush.rect(-0.5, -0.05, 0.75, 0.02, light, solid=False)
    brush.poly([[0.9, 0.07], [0.84, 0.09], [0.84, -0.09], [0.9, -0.07]], _GLASS, solid=False)
    brush.rect(-1.0, -0.025, -0.62, 0.025, shade(rgb, 0.7), solid=False)


def ship(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """A freighter, bow towards +x: hull, deck with hatches or containers, bridge at the stern."""
    width = 0.26
    hull = [[-1.0, -0.8], [-0.94, -1.0], [0.55, -1.0], [0.82, -0.62], [1.0, 0.0]]
    outline = [*hull, *[[x, -y] for x, y in reversed(hull[:-1])]]
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
    """A car, front towards +x."""
    outline = [[-1.0, -0.34], [-0.94, -0.43], [0.8, -0.43], [0.97, -0.3], [1.0, 0.0]]
    brush.poly([*outline, *[[x, -y] for x, y in reversed(outline[:-1])]], shade(rgb, 0.88))
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
