"""Every tensor of a foreign file accounted for: found, missing, surplus, misshapen, or dropped and said so."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rsrefseg.engines.errors import BadInputError

from .tensor_files import FLOAT_DTYPES, State

_SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class Match:
    """A tensor of ours (``name``) and the one in the file that fills it (``source_name``)."""

    name: str
    source_name: str
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Matches:
    """Everything of a file: what fills which tensor of ours, and what is not needed."""

    path: Path
    pairs: tuple[Match, ...]
    dropped: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """One line about what was left out, if anything was."""
        if not self.dropped:
            return ()
        return (f"'{self.path}': left out what RSRefSeg does not use: {shorten(self.dropped)}",)


def match(
    expected: Mapping[str, Tensor],
    source_name: Callable[[str], str],
    state: State,
    is_unused: Callable[[str], bool],
    path: Path,
    what: str,
) -> Matches:
    """Pair every tensor of ours with one of a file.

    Args:
        expected: tensors of ours, by our names; only their shapes and dtypes matter.
        source_name: the name of one of ours in the file's layout.
        state: the file's tensors.
        is_unused: which of the file's names are known and not needed.
        path: the file, for messages.
        what: what it should be, for messages.

    Raises:
        BadInputError: names the first tensor that is missing, surplus, of another shape or dtype.
    """
    sources = {source_name(name): name for name in expected}
    dropped = tuple(sorted(name for name in state.keys() - sources.keys() if is_unused(name)))
    if missing := sorted(sources.keys() - state.keys()):
        raise BadInputError(f"'{path}' misses tensor {_first(missing)}: it is no {what}")
    if surplus := sorted(state.keys() - sources.keys() - set(dropped)):
        raise BadInputError(f"'{path}' has the unknown tensor {_first(surplus)}: it is no {what}")
    pairs = tuple(Match(name, source, state[source]) for source, name in sources.items())
    for pair in pairs:
        check_tensor(pair.tensor, expected[pair.name], pair.source_name, path, what)
    return Matches(path, pairs, dropped)


def check_tensor(found: Tensor, wanted: Tensor, name: str, path: Path, what: str) -> None:
    """Refuse a tensor of another shape or kind of numbers; half precision is taken and widened.

    Raises:
        BadInputError: names it.
    """
    if found.shape != wanted.shape:
        raise BadInputError(
            f"'{path}': tensor '{name}' has shape {tuple(found.shape)}, a {what} has {tuple(wanted.shape)}"
        )
    allowed = FLOAT_DTYPES if wanted.is_floating_point() else (wanted.dtype,)
    if found.dtype not in allowed:
        names = " or ".join(_dtype_name(dtype) for dtype in allowed)
        raise BadInputError(f"'{path}': tensor '{name}' is {_dtype_name(found.dtype)}, it must be {names}")


@torch.no_grad()
def fill(module: nn.Module, matches: Matches) -> None:
    """Copy matched tensors into a module, half precision widened to float32.

    Raises:
        BadInputError: a tensor holds a value that is not finite in float32.
    """
    state = module.state_dict()
    for pair in matches.pairs:
        target = state[pair.name]
        target.copy_(pair.tensor)
        if not bool(torch.isfinite(target).all()):
            raise BadInputError(f"'{matches.path}': tensor '{pair.source_name}' holds values that are not finite")


def shorten(names: Iterable[str]) -> str:
    """Dropped names for one line: numbered parts and long lists folded."""
    listed = sorted(names)
    more = f" and {len(listed) - _SHOWN_NAMES} more" if len(listed) > _SHOWN_NAMES else ""
    return ", ".join(listed[:_SHOWN_NAMES]) + more


def _first(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
