"""Every tensor of a foreign file accounted for: found, missing, surplus, misshapen, or left out and reported."""

from collections.abc import Callable, Mapping
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
        more = f" and {len(self.dropped) - _SHOWN_NAMES} more" if len(self.dropped) > _SHOWN_NAMES else ""
        shown = ", ".join(self.dropped[:_SHOWN_NAMES])
        return (f"'{self.path}': left out what RSRefSeg does not use: {shown}{more}",)


def match(
    expected: Mapping[str, Tensor],
    source_name: Callable[[str], str],
    state: State,
    is_unused: Callable[[str], bool],
    path: Path,
    what: str,
) -> Matches:
    """Pair every tensor of ours with one of a file. Half precision is taken and widened later.

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
    missing, surplus = sources.keys() - state.keys(), state.keys() - sources.keys() - set(dropped)
    for names, verb in ((sorted(missing), "misses"), (sorted(surplus), "has the unknown")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise BadInputError(f"'{path}' {verb} tensor '{names[0]}'{more}: it is not a {what}")
    for source, name in sources.items():
        found, wanted = state[source], expected[name]
        if found.shape != wanted.shape:
            shapes = f"{tuple(found.shape)}, a {what} has {tuple(wanted.shape)}"
            raise BadInputError(f"'{path}': tensor '{source}' has shape {shapes}")
        allowed = FLOAT_DTYPES if wanted.is_floating_point() else (wanted.dtype,)
        if found.dtype not in allowed:
            kinds = " or ".join(str(dtype) for dtype in allowed)
            message = f"'{path}': tensor '{source}' is {found.dtype}, it must be {kinds}"
            raise BadInputError(message.replace("torch.", ""))
    return Matches(path, tuple(Match(name, source, state[source]) for source, name in sources.items()), dropped)


def match_own(expected: Mapping[str, Tensor], state: State, path: Path) -> Matches:
    """Pair the tensors of a model, or of a part of it, with those of a file that must have the same names.

    Raises:
        BadInputError: as ``match``.
    """
    return match(expected, str, state, lambda _: False, path, "file of this model")


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
