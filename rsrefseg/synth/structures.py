"""Shapes of what is built or dug: buildings, tanks, bridges, runways, fields, ponds."""

import math

import numpy as np

from .canvas import Brush, ellipse, shade
from .domain import RGB

_PAINT: RGB = (230, 230, 224)


def building(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """A house with a pitched roof, or a flat-roofed block with a parapet and plant."""
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
    """A long airport hall with a ribbed roof and piers towards +y."""
    brush.rect(-1, -0.24, 1, 0.12, shade(rgb, 0.86))
    for x in (-0.8, 0.0, 0.8):
        brush.rect(x - 0.13, 0.05, x + 0.13, 0.26, shade(rgb, 0.78))
        brush.rect(x - 0.08, 0.05, x + 0.08, 0.22, rgb, solid=False)
    brush.rect(-0.97, -0.21, 0.97, 0.09, rgb, solid=False)
    for x in np.arange(-0.9, 0.95, 0.15):
        brush.line([[x, -0.21], [x, 0.09]], 0.02, shade(rgb, 0.84))
    brush.rect(-0.95, -0.09, 0.95, -0.04, (96, 118, 138), solid=False)


def storage_tank(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """A cylindrical tank: floating roof in its shell, or a domed one with ribs."""
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
    """A road deck with parapets and a centre line along x."""
    width = 0.16
    brush.rect(-1, -width, 1, width, shade(rgb, 1.12))
    brush.rect(-1, -width * 0.82, 1, width * 0.82, shade(rgb, 0.88), solid=False)
    for x in np.arange(-0.95, 0.95, 0.2):
        brush.line([[x, 0], [x + 0.1, 0]], 0.02, _PAINT)
    for x in np.arange(-0.9, 1.0, 0.3):
        brush.rect(x - 0.02, -width, x + 0.02, -width * 0.8, shade(rgb, 0.6), solid=False)
        brush.rect(x - 0.02, width * 0.8, x + 0.02, width, shade(rgb, 0.6), solid=False)


def dam(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """An arched wall with spillway piers, its hollow side towards +y."""
    outer = ellipse(0, 0.95, 1.28, 1.15, math.pi * 1.22, math.pi * 1.78)
    inner = ellipse(0, 0.95, 1.10, 0.86, math.pi * 1.22, math.pi * 1.78)
    brush.poly(np.concatenate([outer, inner[::-1]]), rgb)
    brush.line((outer * 0.7 + inner * 0.3), 0.1, shade(rgb, 1.15))
    for index in range(3, 48, 6):
        brush.line([outer[index].tolist(), inner[index].tolist()], 0.035, shade(rgb, 0.66))


def runway(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """A paved strip with threshold bars and a dashed centre line."""
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
    """A ring road around a planted island."""
    brush.disc(0, 0, 1.0, shade(rgb, 1.18))
    brush.disc(0, 0, 0.96, rgb, solid=False)
    brush.loop(ellipse(0, 0, 0.72, 0.72), 0.022, _PAINT)
    brush.disc(0, 0, 0.5, (190, 186, 176), solid=False)
    brush.disc(0, 0, 0.45, (88, 126, 66), solid=False)
    brush.disc(0, 0, 0.2, (150, 140, 116), solid=False)
    brush.disc(0, 0, 0.11, (66, 100, 50), solid=False)


def pond(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """Still water with an irregular shore."""
    turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    radius = np.full_like(turn, 0.81)
    for wave in (2, 3, 5):
        radius += rng.uniform(0.02, 0.075) * np.cos(wave * turn + rng.uniform(0, 2 * math.pi))
    shore = np.stack([radius * np.cos(turn), 0.74 * radius * np.sin(turn)], axis=1)
    brush.poly(shore, (150, 140, 108))
    brush.poly(shore * 0.93, (46, 84, 96), solid=False)
    brush.poly(shore * 0.6, (36, 70, 86), solid=False)


def field(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """A cropped parcel with rows and tractor lines."""
    skew = rng.uniform(0.0, 0.16)
    edge = np.array([[-1 + skew, -0.72], [1, -0.72], [1 - skew, 0.72], [-1, 0.72]])
    brush.poly(edge, rgb)
    for index, y in enumerate(np.arange(-0.68, 0.7, 0.075)):
        brush.line([[-1.1, y], [1.1, y]], 0.034, shade(rgb, 1.07 if index % 2 else 0.91))
    for y in (-0.4, 0.1, 0.5):
        brush.line([[-1.1, y], [1.1, y]], 0.02, shade(rgb, 0.72))
    brush.loop(edge, 0.04, shade(rgb, 0.78))


def solar_panel(brush: Brush, rng: np.random.Generator, rgb: RGB) -> None:
    """A block of panel rows on gravel."""
    brush.rect(-1, -0.66, 1, 0.66, (148, 146, 138))
    panel: RGB = (34, 46, 84)
    for y in np.arange(-0.6, 0.5, 0.22):
        brush.rect(-0.94, y, 0.94, y + 0.16, panel, solid=False)
        brush.line([[-0.94, y + 0.05], [0.94, y + 0.05]], 0.014, (92, 106, 140))
    for x in np.arange(-0.94, 0.95, 0.235):
        brush.line([[x, -0.6], [x, 0.66]], 0.014, (112, 118, 136))
