"""Categories of objects: their shapes, sizes, colours and names."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import shapes
from .canvas import Brush
from .domain import RGB, Range

Draw = Callable[[Brush, np.random.Generator, RGB], None]

PAINTS: dict[str, RGB] = {
    "white": (226, 226, 222),
    "gray": (146, 148, 150),
    "black": (44, 46, 50),
    "red": (184, 56, 46),
    "blue": (52, 92, 164),
    "green": (62, 128, 76),
    "yellow": (214, 184, 62),
    "brown": (128, 88, 58),
}

# Pairs of colours that haze and light may make indistinguishable.
CONFUSABLE = {frozenset(pair) for pair in (("white", "gray"), ("gray", "black"), ("gray", "brown"), ("red", "brown"))}


@dataclass(frozen=True, slots=True)
class Category:
    """A class of objects."""

    name: str
    draw: Draw
    aspect: float  # width per length of the shape's rectangle
    length: Range  # usual length as a fraction of the image
    height: float  # per length, for shadows
    paints: tuple[str, ...]  # its colour words; empty if phrases do not use its colour
    names: tuple[str, ...]  # names in phrases, most common first
    rgb: RGB = (150, 150, 150)


_TANK_PAINTS = ("white", "gray", "brown", "green", "blue")
_ROOFS = ("red", "gray", "white", "brown", "blue")
_CARS = ("white", "black", "red", "blue", "yellow", "gray", "green")
_CATEGORIES = (
    Category("airplane", shapes.airplane, 0.94, (0.22, 0.35), 0.10, ("white", "gray", "blue", "red", "yellow"),
             ("airplane", "plane", "aircraft")),
    Category("runway", shapes.runway, 0.115, (1.1, 1.5), 0.0, (), ("runway", "airport runway"),
             (112, 112, 114)),
    Category("terminal", shapes.terminal, 0.26, (0.42, 0.58), 0.10, (), ("terminal", "airport terminal"),
             (208, 206, 200)),
    Category("ship", shapes.ship, 0.26, (0.26, 0.52), 0.06, ("white", "gray", "red", "blue", "green", "black"),
             ("ship", "vessel")),
    Category("storage tank", shapes.storage_tank, 1.0, (0.13, 0.32), 0.32, _TANK_PAINTS,
             ("storage tank", "tank")),
    Category("building", shapes.building, 0.68, (0.16, 0.34), 0.22, _ROOFS, ("building", "house")),
    Category("bridge", shapes.bridge, 0.16, (0.3, 0.5), 0.05, ("gray", "white", "red", "brown"), ("bridge",)),
    Category("dam", shapes.dam, 0.4, (0.4, 0.6), 0.08, (), ("dam",), (176, 174, 168)),
    Category("tennis court", shapes.tennis_court, 0.54, (0.2, 0.34), 0.0, ("green", "blue", "red"),
             ("tennis court",)),
    Category("basketball court", shapes.basketball_court, 0.56, (0.18, 0.30), 0.0, ("blue", "red", "gray", "green"),
             ("basketball court",)),
    Category("baseball field", shapes.baseball_field, 1.0, (0.24, 0.42), 0.0, (),
             ("baseball field", "baseball diamond")),
    Category("track field", shapes.track_field, 0.6, (0.32, 0.52), 0.0, (), ("track field", "ground track field")),
    Category("stadium", shapes.stadium, 0.82, (0.34, 0.56), 0.12, (), ("stadium",), (190, 190, 190)),
    Category("swimming pool", shapes.swimming_pool, 0.58, (0.15, 0.28), 0.0, (), ("swimming pool", "pool")),
    Category("roundabout", shapes.roundabout, 1.0, (0.28, 0.42), 0.0, (), ("roundabout",), (112, 112, 116)),
    Category("vehicle", shapes.vehicle, 0.43, (0.17, 0.27), 0.12, _CARS, ("vehicle", "car")),
    Category("pond", shapes.pond, 0.8, (0.2, 0.36), 0.0, (), ("pond",)),
    Category("field", shapes.field, 0.72, (0.28, 0.46), 0.0, ("green", "yellow", "brown"),
             ("field", "farmland")),
    Category("solar panel", shapes.solar_panel, 0.66, (0.18, 0.32), 0.03, (), ("solar panel",)),
)  # fmt: skip

CATEGORIES = {category.name: category for category in _CATEGORIES}
