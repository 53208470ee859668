"""The GPU memory that the engines of a bundle need, from the memory plan that TensorRT-RTX writes into every engine."""

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from ..bundle.contracts import Stage, StageContract
from .session import SIDE_STAGE

# An engine holds its program as text: a region of type "user" is memory for activations and scratch.
_REGION = re.compile(rb"region = \{ name=\w+ size=(\d+) [^\n]*type=user place=accelerator ")


def activation_bytes(engine: bytes) -> int:
    """Return the GPU memory for activations and scratch that a serialised engine reserves, at its largest sizes."""
    return sum(map(int, _REGION.findall(engine)))


def tensor_bytes(contracts: Iterable[StageContract]) -> int:
    """Return the size of all inputs and outputs of the stages at their largest sizes, each once."""
    specs = {spec.name: spec for contract in contracts for spec in (*contract.inputs, *contract.outputs)}
    return sum(
        math.prod(spec.sized(**{dim.name: dim.max for dim in spec.dims})) * np.dtype(spec.dtype).itemsize
        for spec in specs.values()
    )


def shared_size(activations: Mapping[Stage, float]) -> float:
    """Return the GPU memory for the activations of all stages together, given that of each, in the same unit.

    The stages share one part, except SAM's encoder, which runs beside them.
    """
    shared = (size for stage, size in activations.items() if stage is not SIDE_STAGE)
    return max(shared, default=0) + activations.get(SIDE_STAGE, 0)
