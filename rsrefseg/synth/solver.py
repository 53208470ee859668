"""Finds the object that a query identifies, or none if the query is ambiguous.

Every test returns yes, no or unclear. One unclear candidate makes the query ambiguous, so that every remaining phrase
has exactly one reading.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .catalog import CONFUSABLE

YES, NO, UNCLEAR = 1, 0, -1
_SIZE_RATIO = 1.35  # "larger" needs at least this ratio of areas
_RANK_GAP = 0.07  # "leftmost" needs this lead, as a fraction of the image
_NEAR_RATIO, _NEAR_GAP = 1.5, 0.04  # "nearest" needs the next object to be this much farther

_AXES: dict[str, tuple[int, int]] = {  # axis and sign of each direction, in image coordinates
    "left": (0, -1),
    "right": (0, 1),
    "upper": (1, -1),
    "lower": (1, 1),
}


@dataclass(frozen=True, slots=True)
class Item:
    """A visible object: area and centre as fractions of the image, ``points`` (N, 2) spread over its pixels."""

    category: str
    color: str | None
    area: float
    x: float
    y: float
    points: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Relation:
    """Position relative to another object: left, right, upper, lower, nearest, farthest or next."""

    kind: str
    category: str
    color: str | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """Meaning of a phrase."""

    category: str
    color: str | None = None
    place: str | None = None  # directions joined by a space ("upper left", "right"), or "middle"
    size: str | None = None  # "large" or "small" within its class
    rank: str | None = None  # direction in which it is the outermost of its class
    relation: Relation | None = None


def solve(items: Sequence[Item], query: Query) -> int | None:
    """Return the index of the object that a query identifies; None if there is none or the query is ambiguous."""
    kept = _select(items, query.category, query.color)
    if not kept:
        return None
    if query.relation is not None:
        kept = _related(items, kept, query.relation)
    if query.rank is not None and kept:
        kept = _outermost(items, kept, query.rank)
    if query.size is None:
        kept = _placed(items, kept, query.place)
    else:
        # "the larger tank at the lower left": the largest of those at the place, and the largest of all that is there.
        largest_there = _by_size(items, _placed(items, kept, query.place), query.size)
        kept = _agree(largest_there, _placed(items, _by_size(items, kept, query.size), query.place))
    return kept[0] if kept is not None and len(kept) == 1 else None


def fits_nothing(items: Sequence[Item], query: Query) -> bool:
    """Return whether certainly no object has the class, colour and place of a query."""
    return _placed(items, _select(items, query.category, query.color), query.place) == []


def comparison_set(items: Sequence[Item], query: Query) -> int:
    """Return the number of objects a size word compares: those at the place if there are several, else all."""
    kept = _select(items, query.category, query.color) or []
    there = _placed(items, kept, query.place) or []
    return len(there) if len(there) > 1 else len(kept)


def _agree(first: list[int] | None, second: list[int] | None) -> list[int] | None:
    found = {tuple(indices) for indices in (first, second) if indices}
    return list(found.pop()) if len(found) == 1 else None


def _keep(indices: Sequence[int], test: Callable[[int], int]) -> list[int] | None:
    """Return the indices that pass; None if any is unclear."""
    results = {index: test(index) for index in indices}
    if UNCLEAR in results.values():
        return None
    return [index for index, result in results.items() if result == YES]


def _select(items: Sequence[Item], category: str, color: str | None) -> list[int] | None:
    same = [index for index, item in enumerate(items) if item.category == category]
    if color is None:
        return same

    def test(index: int) -> int:
        own = items[index].color
        if own == color:
            return YES
        return UNCLEAR if frozenset({str(own), color}) in CONFUSABLE else NO

    return _keep(same, test)


def _placed(items: Sequence[Item], indices: list[int] | None, place: str | None) -> list[int] | None:
    return indices if indices is None or place is None else _keep(indices, lambda index: _at(items[index], place))


def _at(item: Item, place: str) -> int:
    if place == "middle":
        off = max(abs(item.x - 0.5), abs(item.y - 0.5))
        return YES if off < 0.12 else (NO if off > 0.22 else UNCLEAR)
    results = []
    for word in place.split():
        axis, sign = _AXES[word]
        lead = sign * ((item.x, item.y)[axis] - 0.5)
        results.append(YES if lead > 0.11 else (NO if lead < -0.01 else UNCLEAR))
    return NO if NO in results else min(results)


def _by_size(items: Sequence[Item], indices: list[int] | None, size: str) -> list[int] | None:
    if indices is None or len(indices) < 2:  # a single object is neither large nor small
        return None
    ordered = sorted(indices, key=lambda index: items[index].area, reverse=size == "large")
    first, second = items[ordered[0]].area, items[ordered[1]].area
    return [ordered[0]] if max(first, second) >= _SIZE_RATIO * min(first, second) else None


def _outermost(items: Sequence[Item], indices: list[int], direction: str) -> list[int] | None:
    axis, sign = _AXES[direction]
    ordered = sorted(indices, key=lambda index: -sign * (items[index].x, items[index].y)[axis])
    if len(ordered) == 1:
        return ordered
    first, second = ((items[index].x, items[index].y)[axis] for index in ordered[:2])
    return [ordered[0]] if sign * (first - second) >= _RANK_GAP else None


def _related(items: Sequence[Item], indices: list[int], relation: Relation) -> list[int] | None:
    anchors = _select(items, relation.category, relation.color)
    if anchors is None or len(anchors) != 1:
        return None
    anchor = items[anchors[0]]
    others = [index for index in indices if index != anchors[0]]
    if relation.kind in _AXES:
        return _keep(others, lambda index: _beside(items[index], anchor, relation.kind))
    gaps = {index: _gap(items[index], anchor) for index in others}
    if relation.kind == "next":
        return _keep(others, lambda index: YES if gaps[index] < 0.07 else (NO if gaps[index] > 0.16 else UNCLEAR))
    ordered = sorted(others, key=lambda index: gaps[index], reverse=relation.kind == "farthest")
    if len(ordered) < 2:
        return ordered
    near, far = sorted((gaps[ordered[0]], gaps[ordered[1]]))
    # Centres and outlines must agree, otherwise long objects make the query ambiguous.
    first, second = (np.hypot(items[index].x - anchor.x, items[index].y - anchor.y) for index in ordered[:2])
    agree = (first < second) == (relation.kind == "nearest")
    return [ordered[0]] if far >= _NEAR_RATIO * near + _NEAR_GAP and agree else None


def _beside(item: Item, anchor: Item, direction: str) -> int:
    """Test whether an item is to one side: within a cone around the direction, with distant centres."""
    axis, sign = _AXES[direction]
    offset = (item.x - anchor.x, item.y - anchor.y)
    lead, aside = sign * offset[axis], abs(offset[1 - axis])
    if lead > 0.12 and aside < 0.8 * lead:
        return YES
    return NO if lead < -0.02 else UNCLEAR


def _gap(one: Item, other: Item) -> float:
    """Return the smallest distance between the points of two objects."""
    steps = one.points[:, None, :] - other.points[None, :, :]
    return float(np.sqrt((steps**2).sum(axis=2).min()))
