"""Matches the tensors of a file with those of a model and reports missing, unknown, misshapen and unused ones."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rsrefseg.engines.errors import BadInputError

from .tensor_files import FLOAT_DTYPES, State

_SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class Match:
    """A tensor of the model (``name``) and its source in the file (``source_name``)."""

    name: str
    source_name: str
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Matches:
    """All matches of a file, and the names of its unused tensors (``dropped``)."""

    path: Path
    pairs: tuple[Match, ...]
    dropped: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """One line that lists unused tensors; empty if there are none."""
        if not self.dropped:
            return ()
        more = f" and {len(self.dropped) - _SHOWN_NAMES} more" if len(self.dropped) > _SHOWN_NAMES else ""
        shown = ", ".join(self.dropped[:_SHOWN_NAMES])
        return (f"'{self.path}': left out tensors that RSRefSeg does not use: {shown}{more}",)


def match(
    expected: Mapping[str, Tensor],
    source_name: Callable[[str], str],
    state: State,
    is_unused: Callable[[str], bool],
    path: Path,
    what: str,
) -> Matches:
    """Match every tensor of the model with a tensor of the file. Half precision is accepted; ``fill`` widens it.

    Args:
        expected: tensors of the model by name; only their shapes and dtypes are used.
        source_name: maps a name of the model to the name in the file's layout.
        state: tensors of the file by name.
        is_unused: returns whether a name of the file is known and not needed.
        path: the file, for messages.
        what: kind of checkpoint, for messages.

    Raises:
        BadInputError: a tensor is missing, unknown, or of another shape or dtype; the message names the first one.
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
    """Match the tensors of a model, or of a part of it, with a file that uses the same names.

    Raises:
        BadInputError: see ``match``.
    """
    return match(expected, str, state, lambda _: False, path, "file of this model")


@torch.no_grad()
def fill(module: nn.Module, matches: Matches) -> None:
    """Copy matched tensors into a module; half precision becomes float32.

    Raises:
        BadInputError: a tensor has a value that is not finite in float32.
    """
    state = module.state_dict()
    for name, tensor in single_precision(matches):
        state[name].copy_(tensor)


def single_precision(matches: Matches) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the tensor of each match; floating-point tensors are or become float32.

    Raises:
        BadInputError: a tensor has a value that is not finite in float32.
    """
    for pair in matches.pairs:
        tensor = pair.tensor.float() if pair.tensor.is_floating_point() else pair.tensor
        if not bool(torch.isfinite(tensor).all()):
            raise BadInputError(f"'{matches.path}': tensor '{pair.source_name}' holds values that are not finite")
        yield pair.name, tensor
