"""Referring expressions: selects queries that identify one object and puts them into words."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .catalog import CATEGORIES
from .solver import Item, Query, Relation, comparison_set, fits_nothing, solve

# Weight of each kind among those possible in a scene. Kinds that few objects allow have larger weights, so that phrases
# are about 20 % class, 20 % colour, 20 % place, 15 % size, 15 % relation, 10 % combination.
_MIX = {"class": 0.62, "color": 0.28, "place": 0.20, "size": 0.30, "relation": 0.12, "combination": 0.07}
_PLACES = ("left", "right", "upper", "lower", "upper left", "upper right", "lower left", "lower right", "middle")
_SIDES = ("left", "right", "upper", "lower")
_SIDE_WORDS = {"upper": ("upper", "top"), "lower": ("lower", "bottom"), "left": ("left",), "right": ("right",)}
_MOST = {"upper": ("topmost", "uppermost"), "lower": ("bottommost", "lowest")}
_RELATION_WORDS = {
    "left": ("to the left of", "on the left of"),
    "right": ("to the right of", "on the right of"),
    "upper": ("above",),
    "lower": ("below",),
    "nearest": ("nearest to", "closest to"),
    "farthest": ("farthest from",),
    "next": ("next to", "beside"),
}
_MIN_AREA = 0.008  # fraction of the image; smaller objects get no phrases
_PER_TARGET = 2


@dataclass(frozen=True, slots=True)
class Expression:
    """A phrase, its kind and query, and the index of the object it refers to."""

    phrase: str
    kind: str
    query: Query
    target: int


def express(items: Sequence[Item], rng: np.random.Generator, limit: int) -> list[Expression]:
    """Return up to ``limit`` unambiguous phrases for a scene, spread over its objects and kinds of phrases."""
    options = _options(items)
    used = [0] * len(items)
    seen: set[tuple[int, str]] = set()
    chosen: list[Expression] = []
    while len(chosen) < limit and options:
        least = min(used[target] for _, _, target in options)
        pool = [option for option in options if used[option[2]] == least]
        kinds = sorted({kind for kind, _, _ in pool})
        weights = np.array([_MIX[kind] for kind in kinds])
        kind = str(rng.choice(kinds, p=weights / weights.sum()))
        ranked = [option for option in pool if option[0] == kind]
        # Four times as often if the class alone does not identify the object.
        alike = Counter(item.category for item in items)
        needed = np.array([4.0 if alike[query.category] > 1 else 1.0 for _, query, _ in ranked])
        _, query, target = ranked[int(rng.choice(len(ranked), p=needed / needed.sum()))]
        chosen.append(Expression(_say(items, query, rng), kind, query, target))
        used[target] += 1
        seen.add((target, kind))
        options = [(k, q, t) for k, q, t in options if (t, k) not in seen and used[t] < _PER_TARGET]
    return chosen


def express_absent(items: Sequence[Item], rng: np.random.Generator, count: int) -> list[tuple[str, Query]]:
    """Return ``count`` phrases, with their queries, that refer to nothing in a scene.

    Half of them, where possible, name a class that is there with a colour or at a place where none of it is.
    """
    there = sorted({item.category for item in items})
    near = [Query(name, color=color) for name in there for color in CATEGORIES[name].paints]
    near += [Query(name, place=place) for name in there for place in _PLACES]
    far = [Query(name, color=color) for name in CATEGORIES if name not in there for color in CATEGORIES[name].paints]
    far += [Query(name) for name in CATEGORIES if name not in there]
    pools = [[query for query in pool if fits_nothing(items, query)] for pool in (far, near)]
    chosen: list[tuple[str, Query]] = []
    while len(chosen) < count:
        pool = pools[len(chosen) % 2] or pools[0]
        query = pool.pop(int(rng.integers(len(pool))))
        chosen.append((_say(items, query, rng), query))
    return chosen


def _options(items: Sequence[Item]) -> list[tuple[str, Query, int]]:
    """Return all unambiguous queries as (kind, query, target)."""
    found: list[tuple[str, Query, int]] = []
    for name in sorted({item.category for item in items}):
        like = [item for item in items if item.category == name]
        colors = sorted({item.color for item in like if item.color is not None})
        sizes = ("large", "small") if len(like) > 1 else ()
        queries: list[tuple[str, Query]] = [("class", Query(name))]
        queries += [("color", Query(name, color=color)) for color in colors]
        queries += [("place", Query(name, place=place)) for place in _PLACES]
        queries += [("size", Query(name, size=size)) for size in sizes]
        queries += [("relation", Query(name, rank=side)) for side in _SIDES if len(like) > 1]
        queries += [("combination", Query(name, size=s, place=p)) for s, p in itertools.product(sizes, _PLACES)]
        repeated = [color for color in colors if sum(item.color == color for item in like) > 1]
        queries += [("combination", Query(name, color=c, size=s)) for c, s in itertools.product(repeated, sizes)]
        queries += [("combination", Query(name, color=c, place=p)) for c, p in itertools.product(colors, _PLACES)]
        for relation in _relations(items, name, len(like) > 1):
            queries.append(("relation", Query(name, relation=relation)))
            queries += [("combination", Query(name, color=color, relation=relation)) for color in colors]
        for kind, query in queries:
            target = solve(items, query)
            if target is not None and items[target].area >= _MIN_AREA:
                found.append((kind, query, target))
    return found


def _relations(items: Sequence[Item], name: str, several: bool) -> list[Relation]:
    """Return relations to all objects that a class, or else a class and a colour, identifies."""
    relations = []
    for category, color in sorted({(item.category, item.color) for item in items}, key=str):
        alone = sum(item.category == category for item in items) == 1
        said = None if alone else color
        if (category == name if alone else color is None) or solve(items, Query(category, color=said)) is None:
            continue
        kinds = (*_SIDES, "nearest", "farthest", "next") if several else (*_SIDES, "next")
        relations += [Relation(kind, category, said) for kind in kinds]
    return relations


def _say(items: Sequence[Item], query: Query, rng: np.random.Generator) -> str:
    """Return one wording of a query."""
    words, tail = _rank_words(query.rank, rng) if query.rank is not None else ([], "")
    if query.size is not None:
        words.append(_size_word(query.size, comparison_set(items, query), rng))
    if query.color is not None:
        words.append(query.color)
    phrase = " ".join([*words, _name(query.category, rng)]) + tail
    definite = query.size is not None or query.rank is not None or query.relation is not None
    indefinite = "an" if phrase[0] in "aeiou" else "a"
    phrase = f"{'the' if definite or rng.random() >= 0.3 else indefinite} {phrase}"
    if (relation := query.relation) is not None:
        phrase += f" {rng.choice(_RELATION_WORDS[relation.kind])} the {relation.color + ' ' if relation.color else ''}"
        phrase += _name(relation.category, rng)
    if query.place is not None:
        phrase += f" {_place_words(query.place, rng)}"
    return phrase[0].upper() + phrase[1:] if rng.random() < 0.3 else phrase


def _name(category: str, rng: np.random.Generator) -> str:
    names = CATEGORIES[category].names
    return names[0] if len(names) == 1 or rng.random() < 0.65 else str(rng.choice(names[1:]))


def _size_word(size: str, compared: int, rng: np.random.Generator) -> str:
    if rng.random() < 0.25:
        return str(rng.choice(["large", "big"])) if size == "large" else "small"
    if size == "small":
        return "smaller" if compared == 2 else "smallest"
    return str(rng.choice(["larger", "bigger"] if compared == 2 else ["largest", "biggest"]))


def _rank_words(direction: str, rng: np.random.Generator) -> tuple[list[str], str]:
    if direction in _MOST:
        return [str(rng.choice(_MOST[direction]))], ""
    return ([f"{direction}most"], "") if rng.random() < 0.6 else ([], f" farthest to the {direction}")


def _place_words(place: str, rng: np.random.Generator) -> str:
    if place == "middle":
        return str(rng.choice(["in the middle", "in the center", "in the middle of the image"]))
    parts = [str(rng.choice(_SIDE_WORDS[word])) for word in place.split()]
    spot = " ".join(parts)
    if len(parts) == 2:
        ways = ["in the {}", "at the {}", "in the {} corner", "on the {}"]
    elif place in ("left", "right"):
        ways = ["on the {}", "on the {} side", "at the {}", "on the {} of the image"]
    elif spot in ("upper", "lower"):
        ways = ["in the {} part", "in the {} half"]
    else:
        ways = ["at the {}", "on the {}", "at the {} of the image"]
    return str(rng.choice(ways)).format(spot)
