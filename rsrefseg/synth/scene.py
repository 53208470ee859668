"""Renders a scene from a seed: an overhead image with referring expressions."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsrefseg.engines.errors import BadInputError

from ..data.rrsisd_writer import Referral
from .canvas import Brush, Canvas, Mask
from .domain import LOOKS, Domain, Look
from .expressions import Expression, express, express_absent
from .ground import GroundPainter
from .kinds import compose
from .layout import Layout
from .sensor import expose
from .solver import Item, Query

_ATTEMPTS = 20
_MAX_ABSENT = 20


@dataclass(frozen=True, slots=True)
class Scene:
    """An image (H, W, 3) uint8 RGB and its referring expressions."""

    image: NDArray[np.uint8]
    referrals: tuple[Referral, ...]


@dataclass(frozen=True, slots=True)
class Rendering:
    """A scene with its kind, all visible objects, and the query of each phrase.

    The phrases without a target are the last ones of the scene; ``absent`` has their queries.
    """

    scene: Scene
    kind: str
    items: tuple[Item, ...]
    expressions: tuple[Expression, ...]
    absent: tuple[Query, ...] = ()


def render_scene(seed: int, domain: Domain, size: int = 256, max_referrals: int = 6, absent: int = 0) -> Scene:
    """Render a scene; equal arguments produce equal bytes.

    ``size`` is the height and width in pixels, 64 to 4096. A scene has up to ``max_referrals`` phrases, and ``absent``
    more, at most 20, that refer to nothing; the number of these changes nothing else.

    Raises:
        BadInputError: a value is out of range.
    """
    return render(seed, domain, size, max_referrals, absent).scene


def render(seed: int, domain: Domain, size: int = 256, max_referrals: int = 6, absent: int = 0) -> Rendering:
    """Render a scene and return it with its objects and queries; see ``render_scene``."""
    if seed < 0 or not 64 <= size <= 4096 or max_referrals < 1 or not 0 <= absent <= _MAX_ABSENT:
        raise BadInputError(
            f"scene seed {seed}, size {size}, max_referrals {max_referrals}, absent {absent}: the seed must not be "
            f"negative, the size must be 64 to 4096, max_referrals at least 1, and absent 0 to {_MAX_ABSENT}"
        )
    for attempt in range(_ATTEMPTS):
        # The domains use different geometry: a test scene of one must not be a training scene of the other.
        root = np.random.SeedSequence([seed, *domain.encode(), attempt])
        rendering = _render(root, LOOKS[domain], size, max_referrals, absent)
        if len(rendering.expressions) >= min(2, max_referrals) or attempt == _ATTEMPTS - 1:
            break
    return rendering


def _render(root: np.random.SeedSequence, look: Look, size: int, limit: int, absent: int) -> Rendering:
    # One generator per step, so that no draw depends on the size of the image.
    arranging, painting, lighting, wording, sensing, denying = (np.random.default_rng(part) for part in root.spawn(6))
    layout = Layout(arranging)
    kind = compose(layout, float(lighting.uniform(*look.tree_density)))

    azimuth, reach = lighting.uniform(0, 2 * math.pi), lighting.uniform(*look.sun_length)
    painter = GroundPainter(look, size, painting)
    sun = (reach * math.cos(azimuth), reach * math.sin(azimuth))
    canvas = Canvas(painter.paint(layout.plan), sun, float(lighting.uniform(*look.shadow)))
    painter.plant(canvas, layout.plan)

    masks: list[Mask] = []
    for thing in layout.placed:
        brush = Brush(thing.pose, thing.category.aspect, size, thing.rgb)
        thing.category.draw(brush, np.random.default_rng(thing.seed), thing.rgb)
        mask = canvas.paint(brush, thing.category.height * thing.pose.length, painter.fine)
        for earlier in masks:
            earlier &= ~mask
        masks.append(mask)

    seen = zip(layout.placed, masks, strict=True)
    items = tuple(_item(thing.category.name, thing.color, mask) for thing, mask in seen)
    expressions = tuple(express(items, wording, limit))
    referrals = tuple(Referral(e.phrase, e.query.category, masks[e.target]) for e in expressions)
    nothing = express_absent(items, denying, absent)
    empty = np.zeros((size, size), np.bool_)
    referrals += tuple(Referral(phrase, query.category, empty, has_target=False) for phrase, query in nothing)
    scene = Scene(expose(canvas.image, look, sensing), referrals)
    return Rendering(scene, kind, items, expressions, tuple(query for _, query in nothing))


def _item(category: str, color: str | None, mask: Mask) -> Item:
    """Measure the visible part of an object."""
    size = mask.shape[0]
    step = max(1, size // 64)
    rows, cols = np.nonzero(mask[::step, ::step])
    points = (np.stack([cols, rows], axis=1) * step + 0.5) / size
    x, y = points.mean(axis=0) if len(points) else (0.5, 0.5)
    return Item(category, color, float(mask.mean()), float(x), float(y), points[:: max(1, len(points) // 32)])
