"""Searching for the smallest set of culprits with few trials."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class _Trials(Generic[T]):
    """Asks about a set once."""

    def __init__(self, holds: Callable[[frozenset[T]], bool]) -> None:
        self._holds = holds
        self._known: dict[frozenset[T], bool] = {}

    def __call__(self, chosen: Sequence[T]) -> bool:
        key = frozenset(chosen)
        if key not in self._known:
            self._known[key] = self._holds(key)
        return self._known[key]


def smallest_set(candidates: Sequence[T], holds: Callable[[frozenset[T]], bool]) -> tuple[T, ...] | None:
    """A set of candidates that holds and of which no member can be left out.

    Assumes that a set which holds still does with more members. One culprit among n costs at most log2(n) + 4 trials
    and two if it stands first; each further one costs at most log2(n) + 2.

    Args:
        candidates: the most suspicious first.
        holds: the trial; never asked twice about one set.

    Returns:
        The set in the order of its discovery; None where not even all candidates together hold.
    """
    trial = _Trials(holds)
    found: tuple[T, ...] = ()
    pool = tuple(candidates)
    while not trial(found):
        size = _smallest_prefix(trial, found, pool)
        if size == len(pool) and not trial((*found, *pool)):
            return None
        found, pool = (*found, pool[size - 1]), pool[: size - 1]
    return found


def _smallest_prefix(trial: _Trials[T], found: tuple[T, ...], pool: tuple[T, ...]) -> int:
    """How many first members of the pool hold together with ``found``; one is tried first, all are taken to do."""
    low, high, middle = 0, len(pool), 1
    while high - low > 1:
        if trial((*found, *pool[:middle])):
            high = middle
        else:
            low = middle
        middle = (low + high) // 2
    return high
