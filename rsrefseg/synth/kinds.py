"""Kinds of scenes: their objects and arrangements."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .canvas import F64, Pose
from .domain import Range
from .ground import Patch, Road
from .layout import Layout, right_angles, strip, turned

# Places the objects for the scene's angle and its four right angles; returns the polygon for trees.
Arrange = Callable[[Layout, np.random.Generator, float, tuple[float, ...]], F64 | None]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of scene: its frequency and content; ``trees`` is the maximum number of trees."""

    weight: float
    arrange: Arrange
    max_angle: float
    bases: tuple[str, ...]
    trees: int = 0
    crown: Range = (0.016, 0.034)


def compose(layout: Layout, trees: float) -> str:
    """Draw a kind of scene, arrange it and return its name; ``trees`` is the density of trees in [0, 1]."""
    rng, weights = layout.rng, np.array([kind.weight for kind in _KINDS.values()])
    name = str(rng.choice(list(_KINDS), p=weights / weights.sum()))
    kind = _KINDS[name]
    angle = float(rng.uniform(0, kind.max_angle))
    layout.plan.base = str(rng.choice(kind.bases)) if len(kind.bases) > 1 else kind.bases[0]
    woods = kind.arrange(layout, rng, angle, right_angles(angle))
    layout.forest(int(kind.trees * trees), kind.crown, woods)
    return name


def _airport(layout: Layout, rng: np.random.Generator, angle: float, grid: tuple[float, ...]) -> None:
    with_runway = rng.random() < 0.55
    shift = 0.12 if with_runway else 0.0
    if with_runway:
        layout.put("runway", Pose(*turned(angle, 0, -0.36), float(rng.uniform(1.1, 1.5)), angle), margin=0.02)
        for along in (-0.3, 0.3):
            ends = np.array([turned(angle, along, -0.36), turned(angle, along + 0.06, 0.1)])
            layout.add(Road(ends, 0.06, "concrete", marked=False))
    apron = strip(turned(angle, 0, 0.16 + shift), angle, 0.74 if with_runway else 0.84, 1.3)
    layout.add(Patch("concrete", apron))
    for offset in np.arange(-0.6, 0.7, 0.21):  # slab joints
        ends = np.array([turned(angle, offset, -0.24 + shift), turned(angle, offset, 0.6)])
        layout.add(Road(ends, 0.004, "asphalt", marked=False))
    # Along the far side of the apron, so that the stands stay free.
    far_side = strip(turned(angle, 0, 0.34), angle, 0.3)
    layout.place("terminal", chance=0.65, within=far_side, angles=(angle + math.pi,), margin=0.03)
    heading = angle + float(rng.choice([math.pi / 2, -math.pi / 2, 0.0]))
    spread = 0.5 if rng.random() < 0.6 else math.pi
    layout.several("airplane", int(rng.integers(3, 7)), within=apron, angles=(heading,), jitter=spread)
    layout.place("building", chance=0.3, within=apron, angles=grid, length=(0.16, 0.24))
    layout.reserve(apron)


def _harbor(layout: Layout, rng: np.random.Generator, angle: float, grid: tuple[float, ...]) -> None:
    quay = float(rng.uniform(0.16, 0.32))
    land = strip(turned(angle, 0, quay + 0.5), angle, 1.0)
    inland = strip(turned(angle, 0, quay + 0.78), angle, 1.0)
    layout.add(Patch("concrete", land))
    layout.add(Patch(str(rng.choice(["grass", "soil", "asphalt"])), inland, feather=0.004))
    layout.reserve(land)
    if rng.random() < 0.6:  # a pier into the water
        foot = turned(angle, float(rng.uniform(-0.3, 0.3)), quay - 0.17)
        pier = strip(foot, angle + math.pi / 2, float(rng.uniform(0.05, 0.09)), 0.4)
        layout.add(Patch("concrete", pier))
        layout.reserve(pier)
    ships = int(rng.integers(3, 6))
    layout.several("ship", ships, angles=grid if rng.random() < 0.6 else None, jitter=0.25)
    layout.taken &= 1 - layout.area(land)
    for name in rng.permutation(["storage tank", "building", "storage tank"])[: int(rng.integers(1, 4))]:
        layout.place(str(name), within=land, angles=grid, length=(0.13, 0.22))
    for _ in range(int(rng.integers(3, 9))):
        spot = turned(angle, float(rng.uniform(-0.6, 0.6)), quay + float(rng.uniform(0.04, 0.3)))
        layout.clutter(Pose(*spot, float(rng.uniform(0.03, 0.06)), angle))


def _tank_farm(layout: Layout, rng: np.random.Generator, angle: float, grid: tuple[float, ...]) -> None:
    if rng.random() < 0.7:
        _road(layout, angle, float(rng.uniform(-0.3, 0.3)), 0.07, 0.09)
    yard = strip((0.5, 0.5), angle, 0.8, 0.8)
    layout.plan.layers.insert(0, Patch("concrete", yard))
    layout.several("storage tank", int(rng.integers(4, 8)), margin=0.025)
    for _ in range(int(rng.integers(0, 3))):
        layout.place("building", angles=grid, length=(0.16, 0.27))
    layout.place("solar panel", chance=0.25, angles=grid)
    for _ in range(6):
        x, y = map(float, rng.uniform(0.05, 0.95, 2))
        layout.clutter(Pose(x, y, float(rng.uniform(0.03, 0.05)), angle))
    layout.reserve(yard)


def _sports_park(layout: Layout, rng: np.random.Generator, angle: float, grid: tuple[float, ...]) -> None:
    if rng.random() < 0.6:
        _road(layout, angle, float(rng.uniform(-0.45, 0.45)), 0.06, 0.08)
    for name, chance in (("stadium", 0.4), ("track field", 0.4), ("swimming pool", 0.25)):
        layout.place(name, chance=chance, angles=grid)
    courts = rng.choice(["tennis court", "basketball court", "baseball field"], 2, replace=False, p=[0.4, 0.35, 0.25])
    layout.several(str(courts[0]), int(rng.integers(2, 5)), angles=grid)
    layout.several(str(courts[1]), int(rng.integers(1, 3)), angles=grid)
    layout.place("swimming pool", chance=0.2, angles=grid)


def _residential(layout: Layout, rng: np.random.Generator, angle: float, grid: tuple[float, ...]) -> None:
    lines = [(angle, float(rng.uniform(-0.12, 0.12)))]
    if rng.random() < 0.5:
        lines.append((angle + math.pi / 2, float(rng.uniform(-0.3, 0.3))))
    for turn, offset in lines:
        _road(layout, turn, offset, 0.075, 0.1)
    layout.several("building", int(rng.integers(3, 6)), angles=grid, jitter=0.05)
    layout.several("swimming pool", int(rng.integers(0, 4)), angles=grid, jitter=0.4)
    layout.place("tennis court", chance=0.25, angles=grid, length=(0.2, 0.26))
    layout.place("solar panel", chance=0.15, angles=grid, length=(0.16, 0.22))


def _river(layout: Layout, rng: np.random.Generator, angle: float, grid: tuple[float, ...]) -> None:
    width, across = float(rng.uniform(0.22, 0.32)), float(rng.uniform(-0.15, 0.15))
    along = np.linspace(-0.9, 0.9, 40)
    middle = across + 0.02 * np.sin(along * rng.uniform(3, 6) + rng.uniform(0, 6.28))
    low, high = (middle + side * (width / 2 + 0.012 * np.sin(along * 9 + side)) for side in (-1, 1))
    edge = zip([*along, *along[::-1]], [*low, *high[::-1]], strict=True)
    shore = np.array([turned(angle, *point) for point in edge])
    layout.add(Patch("soil", strip(turned(angle, 0, across), angle, width + 0.1), feather=0.015))
    layout.add(Patch("water", shore))
    with_dam = rng.random() < 0.45
    spots = rng.permutation([-0.36, -0.12, 0.12, 0.36])[: int(rng.integers(2, 4)) + int(with_dam) - 1]
    if not with_dam and rng.random() < 0.6:
        spots = rng.permutation([-0.34, 0.0, 0.34])[: int(rng.integers(2, 4))]
    for index, spot in enumerate(spots):
        center = turned(angle, float(spot), float(np.interp(spot, along, middle)))
        turn = angle + math.pi / 2 + float(rng.uniform(-0.12, 0.12))
        if with_dam and index == 0:
            downstream = angle + math.pi / 2 + (math.pi if rng.random() < 0.5 else 0.0)
            layout.put("dam", Pose(*center, width * 1.25, downstream))
            continue
        reach = np.array([math.cos(turn), math.sin(turn)]) * 1.5
        layout.add(Road(np.stack([center - reach, center + reach]), 0.06))
        # The deck spans the water; a road continues beyond the banks.
        layout.put("bridge", Pose(*center, width * float(rng.uniform(1.12, 1.35)), turn), margin=0.03)
        layout.reserve(strip(center, turn, 0.09))
    layout.plan.layers.sort(key=lambda layer: isinstance(layer, Patch) and layer.material == "water")
    layout.place("ship", chance=0.5, within=shore, angles=(angle, angle + math.pi), length=(0.24, 0.3), margin=0.01)
    layout.reserve(shore)
    for _ in range(int(rng.integers(1, 4))):
        layout.place("building", angles=grid, length=(0.15, 0.26))
    if rng.random() < 0.35:
        layout.place(str(rng.choice(["pond", "field", "solar panel"])), length=(0.2, 0.3))


def _parking(layout: Layout, rng: np.random.Generator, angle: float, grid: tuple[float, ...]) -> F64:
    verge = strip(turned(angle, 0, float(rng.uniform(0.3, 0.6)) + 0.5), angle, 1.0)
    layout.add(Patch("grass", verge))
    for across in (-0.62, -0.1):  # bays
        for along in np.arange(-0.7, 0.75, 0.155):
            ends = np.array([turned(angle, along, across), turned(angle, along, across + 0.3)])
            layout.add(Road(ends, 0.009, "concrete", marked=False))
    layout.place("building", chance=0.4, angles=grid, length=(0.3, 0.42))
    layout.reserve(verge)
    vehicles = int(rng.integers(4, 8))
    parked = (angle + math.pi / 2, angle - math.pi / 2) if rng.random() < 0.6 else grid
    layout.several("vehicle", vehicles, angles=parked, jitter=0.1)
    layout.taken &= 1 - layout.area(verge)
    return verge


def _junction(layout: Layout, rng: np.random.Generator, angle: float, grid: tuple[float, ...]) -> None:
    x, y = map(float, rng.uniform(0.3, 0.7, 2))
    for turn in grid[: int(rng.integers(3, 5))]:
        end = (x + 1.5 * math.cos(turn), y + 1.5 * math.sin(turn))
        layout.add(Road(np.array([(x, y), end]), 0.085))
        layout.reserve(strip(((x + end[0]) / 2, (y + end[1]) / 2), turn, 0.1, 1.5))
    layout.put("roundabout", Pose(x, y, float(rng.uniform(0.28, 0.4)), angle), margin=0.03)
    layout.several("building", int(rng.integers(2, 6)), angles=grid, jitter=0.04)
    for name, chance in (("pond", 0.35), ("basketball court", 0.3), ("solar panel", 0.35), ("swimming pool", 0.2)):
        layout.place(name, chance=chance, angles=grid)


def _farmland(layout: Layout, rng: np.random.Generator, angle: float, grid: tuple[float, ...]) -> None:
    for along in (-0.5, 0.0, 0.5):
        for across in (-0.5, 0.0, 0.5):
            if rng.random() < 0.6:
                material = str(rng.choice(["fallow", "soil", "grass"]))
                outline = strip(turned(angle, along, across), angle, 0.5, 0.5)
                layout.add(Patch(material, outline, rows=angle + float(rng.choice([0, math.pi / 2]))))
    if rng.random() < 0.6:
        _road(layout, angle, float(rng.uniform(-0.4, 0.4)), 0.045, 0.06, "soil", marked=False)
    layout.several("field", int(rng.integers(2, 5)), angles=grid, jitter=0.03)
    layout.several("pond", int(rng.integers(0, 4)))
    if rng.random() < 0.45:
        layout.several("solar panel", int(rng.integers(1, 4)), angles=grid)
    layout.several("building", int(rng.integers(0, 3)), angles=grid, scale=0.85)


def _road(layout: Layout, angle: float, across: float, width: float, kept_free: float, material: str = "asphalt",
          marked: bool = True) -> None:  # fmt: skip
    """Add a straight road through the image at a distance ``across`` from its centre, and reserve a strip."""
    path = np.array([turned(angle, -1, across), turned(angle, 1, across)])
    layout.add(Road(path, width, material, marked))
    layout.reserve(strip(turned(angle, 0, across), angle, kept_free))


_KINDS = {
    "airport": Kind(1.3, _airport, 2 * math.pi, ("grass",), 30, (0.012, 0.022)),
    "harbor": Kind(1.3, _harbor, 2 * math.pi, ("water",)),
    "tank farm": Kind(1.1, _tank_farm, math.pi, ("concrete", "soil", "grass"), 20, (0.014, 0.026)),
    "sports park": Kind(1.6, _sports_park, math.pi, ("grass",), 90),
    "residential": Kind(1.2, _residential, math.pi, ("grass",), 110),
    "river": Kind(1.3, _river, 2 * math.pi, ("grass", "fallow"), 80),
    "parking": Kind(1.1, _parking, math.pi, ("asphalt",), 40, (0.03, 0.05)),
    "junction": Kind(0.8, _junction, math.pi, ("grass", "concrete"), 60, (0.016, 0.03)),
    "farmland": Kind(1.1, _farmland, math.pi, ("fallow",), 50, (0.014, 0.03)),
}
