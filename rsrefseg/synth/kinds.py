"""The kinds of scene: what belongs together, and how it is arranged."""

import math
from collections.abc import Callable

import numpy as np

from .canvas import Pose
from .ground import Patch, Road
from .layout import Layout, away, clutter, right_angles, several, strip, turned

Compose = Callable[[Layout, float], None]


def compose(layout: Layout, trees: float) -> str:
    """Draw a kind of scene and lay it out; ``trees`` in [0, 1] is how wooded the country is. Returns the kind."""
    kinds: dict[str, tuple[float, Compose]] = {
        "airport": (1.3, _airport),
        "harbor": (1.3, _harbor),
        "tank farm": (1.1, _tank_farm),
        "sports park": (1.6, _sports_park),
        "residential": (1.2, _residential),
        "river": (1.3, _river),
        "parking": (1.1, _parking),
        "junction": (0.8, _junction),
        "farmland": (1.1, _farmland),
    }
    weights = np.array([weight for weight, _ in kinds.values()])
    kind = str(layout.rng.choice(list(kinds), p=weights / weights.sum()))
    kinds[kind][1](layout, trees)
    return kind


def _airport(layout: Layout, trees: float) -> None:
    rng = layout.rng
    angle = float(rng.uniform(0, 2 * math.pi))
    layout.plan.base = "grass"
    with_runway = rng.random() < 0.55
    shift = 0.0
    if with_runway:
        x, y = turned(angle, 0, -0.36)
        layout.put("runway", Pose(x, y, float(rng.uniform(1.1, 1.5)), angle), margin=0.02)
        shift = 0.12
        for along in (-0.3, 0.3):
            a, b = turned(angle, along, -0.36), turned(angle, along + 0.06, 0.1)
            layout.plan.layers.append(Road(np.array([a, b]), 0.06, "concrete", marked=False))
    x, y = turned(angle, 0, 0.16 + shift)
    apron = strip(x, y, angle, 0.84 if not with_runway else 0.74, 1.3)
    layout.plan.layers.append(Patch("concrete", apron))
    for offset in np.arange(-0.6, 0.7, 0.21):  # slab joints
        layout.plan.layers.append(Road(np.array([turned(angle, offset, -0.24 + shift), turned(angle, offset, 0.6)]),
                                       0.004, "asphalt", marked=False))  # fmt: skip
    if rng.random() < 0.65:  # along the apron's far side, so that the stands stay free
        x, y = turned(angle, 0, 0.34)
        layout.place("terminal", within=strip(x, y, angle, 0.3), angles=(angle + math.pi,), margin=0.03)
    heading = angle + float(rng.choice([math.pi / 2, -math.pi / 2, 0.0]))
    spread = 0.5 if rng.random() < 0.6 else math.pi
    count = int(rng.integers(3, 7))
    several(layout, "airplane", count, apron, (heading,), spread)
    if rng.random() < 0.3:
        layout.place("building", within=apron, angles=right_angles(angle), length=(0.16, 0.24))
    layout.reserve(apron)
    layout.forest(int(30 * trees), (0.012, 0.022))


def _harbor(layout: Layout, trees: float) -> None:
    rng = layout.rng
    angle = float(rng.uniform(0, 2 * math.pi))
    layout.plan.base = "water"
    quay = float(rng.uniform(0.16, 0.32))
    x, y = turned(angle, 0, quay + 0.5)
    land = strip(x, y, angle, 1.0)
    layout.plan.layers.append(Patch("concrete", land))
    x, y = turned(angle, 0, quay + 0.78)
    layout.plan.layers.append(
        Patch(str(rng.choice(["grass", "soil", "asphalt"])), strip(x, y, angle, 1.0), feather=0.004)
    )
    layout.reserve(land)
    if rng.random() < 0.6:  # a pier into the water
        along = float(rng.uniform(-0.3, 0.3))
        x, y = turned(angle, along, quay - 0.17)
        pier = strip(x, y, angle + math.pi / 2, float(rng.uniform(0.05, 0.09)), 0.4)
        layout.plan.layers.append(Patch("concrete", pier))
        layout.reserve(pier)
    several(layout, "ship", int(rng.integers(3, 6)), None, right_angles(angle) if rng.random() < 0.6 else None, 0.25)
    layout.taken &= 1 - layout.area(land)
    for name in rng.permutation(["storage tank", "building", "storage tank"])[: int(rng.integers(1, 4))]:
        layout.place(str(name), within=land, angles=right_angles(angle), length=(0.13, 0.22))
    for _ in range(int(rng.integers(3, 9))):
        x, y = turned(angle, float(rng.uniform(-0.6, 0.6)), quay + float(rng.uniform(0.04, 0.3)))
        clutter(layout, Pose(x, y, float(rng.uniform(0.03, 0.06)), angle))


def _tank_farm(layout: Layout, trees: float) -> None:
    rng = layout.rng
    angle = float(rng.uniform(0, math.pi))
    layout.plan.base = str(rng.choice(["concrete", "soil", "grass"]))
    if rng.random() < 0.7:
        _road(layout, angle, float(rng.uniform(-0.3, 0.3)), 0.07, 0.09)
    yard = strip(0.5, 0.5, angle, 0.8, 0.8)
    layout.plan.layers.insert(0, Patch("concrete", yard))
    several(layout, "storage tank", int(rng.integers(4, 8)), margin=0.025)
    for _ in range(int(rng.integers(0, 3))):
        layout.place("building", angles=right_angles(angle), length=(0.16, 0.27))
    if rng.random() < 0.25:
        layout.place("solar panel", angles=right_angles(angle))
    for _ in range(6):
        clutter(layout, Pose(away(rng), away(rng), float(rng.uniform(0.03, 0.05)), angle))
    layout.reserve(yard)
    layout.forest(int(20 * trees), (0.014, 0.026))


def _sports_park(layout: Layout, trees: float) -> None:
    rng = layout.rng
    angle = float(rng.uniform(0, math.pi))
    layout.plan.base = "grass"
    grid = right_angles(angle)
    if rng.random() < 0.6:
        _road(layout, angle, float(rng.uniform(-0.45, 0.45)), 0.06, 0.08)
    for name, chance in (("stadium", 0.4), ("track field", 0.4), ("swimming pool", 0.25)):
        if rng.random() < chance:
            layout.place(name, angles=grid)
    courts = rng.choice(["tennis court", "basketball court", "baseball field"], 2, replace=False, p=[0.4, 0.35, 0.25])
    several(layout, str(courts[0]), int(rng.integers(2, 5)), None, grid)
    several(layout, str(courts[1]), int(rng.integers(1, 3)), None, grid)
    if rng.random() < 0.2:
        layout.place("swimming pool", angles=grid)
    layout.forest(int(90 * trees), (0.016, 0.034))


def _residential(layout: Layout, trees: float) -> None:
    rng = layout.rng
    angle = float(rng.uniform(0, math.pi))
    layout.plan.base = "grass"
    grid = right_angles(angle)
    across = float(rng.uniform(-0.12, 0.12))
    lines = [(angle, across)]
    if rng.random() < 0.5:
        lines.append((angle + math.pi / 2, float(rng.uniform(-0.3, 0.3))))
    for turn, offset in lines:
        _road(layout, turn, offset, 0.075, 0.1)
    several(layout, "building", int(rng.integers(3, 6)), None, grid, 0.05)
    several(layout, "swimming pool", int(rng.integers(0, 4)), None, grid, 0.4)
    if rng.random() < 0.25:
        layout.place("tennis court", angles=grid, length=(0.2, 0.26))
    if rng.random() < 0.15:
        layout.place("solar panel", angles=grid, length=(0.16, 0.22))
    layout.forest(int(110 * trees), (0.016, 0.034))


def _river(layout: Layout, trees: float) -> None:
    rng = layout.rng
    angle = float(rng.uniform(0, 2 * math.pi))
    layout.plan.base = str(rng.choice(["grass", "fallow"]))
    width, across = float(rng.uniform(0.22, 0.32)), float(rng.uniform(-0.15, 0.15))
    along = np.linspace(-0.9, 0.9, 40)
    wave = 0.02 * np.sin(along * rng.uniform(3, 6) + rng.uniform(0, 6.28))
    banks = [across + wave + side * (width / 2 + 0.012 * np.sin(along * 9 + side)) for side in (-1, 1)]
    shore = np.array([turned(angle, a, b) for a, b in [*zip(along, banks[0], strict=True),
                                                       *zip(along[::-1], banks[1][::-1], strict=True)]])  # fmt: skip
    x, y = turned(angle, 0, across)
    layout.plan.layers.append(Patch("soil", strip(x, y, angle, width + 0.1), feather=0.015))
    layout.plan.layers.append(Patch("water", shore))
    with_dam = rng.random() < 0.45
    spots = rng.permutation([-0.36, -0.12, 0.12, 0.36])[: int(rng.integers(2, 4)) + int(with_dam) - 1]
    if not with_dam and rng.random() < 0.6:
        spots = rng.permutation([-0.34, 0.0, 0.34])[: int(rng.integers(2, 4))]
    for index, spot in enumerate(spots):
        x, y = turned(angle, float(spot), across + float(np.interp(spot, along, wave)))
        turn = angle + math.pi / 2 + float(rng.uniform(-0.12, 0.12))
        if with_dam and index == 0:
            layout.put("dam", Pose(x, y, width * 1.25, angle + math.pi / 2 + (math.pi if rng.random() < 0.5 else 0.0)))
            continue
        reach = np.array([math.cos(turn), math.sin(turn)])
        center = np.array([x, y])
        layout.plan.layers.append(Road(np.stack([center - reach * 1.5, center + reach * 1.5]), 0.06))
        # The deck spans the water; what lies beyond the banks is road.
        layout.put("bridge", Pose(x, y, width * float(rng.uniform(1.12, 1.35)), turn), margin=0.03)
        layout.reserve(strip(x, y, turn, 0.09))
    layout.plan.layers.sort(key=lambda layer: isinstance(layer, Patch) and layer.material == "water")
    if rng.random() < 0.5:
        layout.place("ship", within=shore, angles=(angle, angle + math.pi), length=(0.24, 0.3), margin=0.01)
    layout.reserve(shore)
    for _ in range(int(rng.integers(1, 4))):
        layout.place("building", angles=right_angles(angle), length=(0.15, 0.26))
    if rng.random() < 0.35:
        layout.place(str(rng.choice(["pond", "field", "solar panel"])), length=(0.2, 0.3))
    layout.forest(int(80 * trees), (0.016, 0.034))


def _parking(layout: Layout, trees: float) -> None:
    rng = layout.rng
    angle = float(rng.uniform(0, math.pi))
    layout.plan.base = "asphalt"
    edge = float(rng.uniform(0.3, 0.6))
    x, y = turned(angle, 0, edge + 0.5)
    verge = strip(x, y, angle, 1.0)
    layout.plan.layers.append(Patch("grass", verge))
    for across in (-0.62, -0.1):  # bays
        for along in np.arange(-0.7, 0.75, 0.155):
            ends = np.array([turned(angle, along, across), turned(angle, along, across + 0.3)])
            layout.plan.layers.append(Road(ends, 0.009, "concrete", marked=False))
    if rng.random() < 0.4:
        layout.place("building", angles=right_angles(angle), length=(0.3, 0.42))
    layout.reserve(verge)
    parked = (angle + math.pi / 2, angle - math.pi / 2)
    several(
        layout, "vehicle", int(rng.integers(4, 8)), None, parked if rng.random() < 0.6 else right_angles(angle), 0.1
    )
    layout.taken &= 1 - layout.area(verge)
    layout.forest(int(40 * trees), (0.03, 0.05), verge)


def _junction(layout: Layout, trees: float) -> None:
    rng = layout.rng
    angle = float(rng.uniform(0, math.pi))
    layout.plan.base = str(rng.choice(["grass", "concrete"]))
    grid = right_angles(angle)
    x, y = map(float, rng.uniform(0.3, 0.7, 2))
    arms = [*grid[: int(rng.integers(3, 5))]]
    for turn in arms:
        end = (x + 1.5 * math.cos(turn), y + 1.5 * math.sin(turn))
        layout.plan.layers.append(Road(np.array([(x, y), end]), 0.085))
        layout.reserve(strip((x + end[0]) / 2, (y + end[1]) / 2, turn, 0.1, 1.5))
    layout.put("roundabout", Pose(x, y, float(rng.uniform(0.28, 0.4)), angle), margin=0.03)
    several(layout, "building", int(rng.integers(2, 6)), None, grid, 0.04)
    for name, chance in (("pond", 0.35), ("basketball court", 0.3), ("solar panel", 0.35), ("swimming pool", 0.2)):
        if rng.random() < chance:
            layout.place(name, angles=grid)
    layout.forest(int(60 * trees), (0.016, 0.03))


def _farmland(layout: Layout, trees: float) -> None:
    rng = layout.rng
    angle = float(rng.uniform(0, math.pi))
    layout.plan.base = "fallow"
    grid = right_angles(angle)
    for along in (-0.5, 0.0, 0.5):
        for across in (-0.5, 0.0, 0.5):
            if rng.random() < 0.6:
                x, y = turned(angle, along, across)
                outline = strip(x, y, angle, 0.5, 0.5)
                material = str(rng.choice(["fallow", "soil", "grass"]))
                layout.plan.layers.append(Patch(material, outline, rows=angle + float(rng.choice([0, math.pi / 2]))))
    if rng.random() < 0.6:
        _road(layout, angle, float(rng.uniform(-0.4, 0.4)), 0.045, 0.06, "soil", marked=False)
    several(layout, "field", int(rng.integers(2, 5)), None, grid, 0.03)
    several(layout, "pond", int(rng.integers(0, 4)))
    if rng.random() < 0.45:
        several(layout, "solar panel", int(rng.integers(1, 4)), None, grid)
    several(layout, "building", int(rng.integers(0, 3)), None, grid, scale=0.85)
    layout.forest(int(50 * trees), (0.014, 0.03))


def _road(layout: Layout, angle: float, across: float, width: float, kept_free: float, material: str = "asphalt",
          marked: bool = True) -> None:  # fmt: skip
    """A straight road through the whole image, ``across`` from its centre, with a strip free of objects."""
    path = np.array([turned(angle, -1, across), turned(angle, 1, across)])
    layout.plan.layers.append(Road(path, width, material, marked))
    x, y = turned(angle, 0, across)
    layout.reserve(strip(x, y, angle, kept_free))
