"""The least time a device could take: for all operations at its peak or all bytes at its bandwidth, the longer of them.

A stage's bytes are its weights and what goes in and out; what it keeps in between may stay in caches and does not
count. So nothing that does these operations can be faster, and a share of 100% is not reached in practice. Operations
are those of the bundle's graphs, in the form of attention that they have, whoever runs them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rsrefseg.engines.bundle.contracts import Dim, Stage, StageContract, TensorSpec
from rsrefseg.engines.bundle.manifest import StageRecord
from rsrefseg.engines.engine import IMAGE_STAGES

from ..system.devices import DEVICES
from ..system.peaks import Peaks

_WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, slots=True)
class Floor:
    """Of one run of a stage.

    Attributes:
        flops: floating-point operations, 2 for each multiply-add.
        bytes: weights, inputs and outputs.
        compute_ms, memory_ms: each at the device's peak.
    """

    flops: int
    bytes: int
    compute_ms: float
    memory_ms: float

    @property
    def floor_ms(self) -> float:
        """The longer of the two."""
        return max(self.compute_ms, self.memory_ms)

    @property
    def bound(self) -> str:
        """Which of the two it is: ``compute`` or ``memory``."""
        return "compute" if self.compute_ms >= self.memory_ms else "memory"


def floor_of(record: StageRecord, peaks: Peaks, precision: str, phrases: int = 1, images: int = 1) -> Floor | None:
    """The floor of a stage; ``None`` where the device's peak in that precision is not known.

    Args:
        record: of the stage: its operations are those of its contract's ``opt`` sizes, and grow in proportion.
        peaks: of the device.
        precision: of its products, ``fp32``, ``fp16`` or ``bf16``; weights stored in more are read in this one.
        phrases, images: how many at once; a stage takes of the two what its contract names.
    """
    peak, bandwidth = peaks.flops_per_s.get(precision), peaks.bandwidth_bytes_per_s
    if peak is None or bandwidth is None or precision not in _WEIGHT_BYTES:
        return None
    flops = round(record.flops * _times(record.contract, phrases=phrases, images=images))
    tensors = (*record.contract.inputs, *record.contract.outputs)
    moved = _weights_read(record, precision) + sum(_size_bytes(spec, phrases, images) for spec in tensors)
    return Floor(flops, moved, 1e3 * flops / peak, 1e3 * moved / bandwidth)


def share(floor: Floor, measured_ms: float) -> float:
    """Of the floor in what was measured: 1 is as fast as the device can."""
    return floor.floor_ms / measured_ms


def scenario_floor_ms(
    stages: Mapping[Stage, StageRecord],
    peaks: Peaks,
    precisions: Mapping[Stage, str],
    fresh_image: bool,
    phrases: int,
) -> float | None:
    """The floor from a picture, new or encoded before, and phrases to masks: the stages' sum, for on one device nothing
    gains by overlapping. ``None`` where a peak is not known."""
    floors = [
        floor_of(record, peaks, precisions[stage], phrases)
        for stage, record in stages.items()
        if fresh_image or stage not in IMAGE_STAGES
    ]
    known = [floor.floor_ms for floor in floors if floor is not None]
    return sum(known) if len(known) == len(floors) else None


def expected_floors(stages: Mapping[Stage, StageRecord]) -> dict[str, dict[str, float]]:
    """Floors in milliseconds of one image and one phrase in FP16: by device of ``DEVICES``, then by stage and their
    ``sum``."""
    found = {}
    for name, peaks in DEVICES.items():
        floors = {str(stage): floor_of(record, peaks, "fp16") for stage, record in stages.items()}
        by_stage = {stage: floor.floor_ms for stage, floor in floors.items() if floor is not None}
        found[name] = {**by_stage, "sum": sum(by_stage.values())}
    return found


def _times(contract: StageContract, **sizes: int) -> float:
    """How many times its ``opt`` sizes a stage is asked for."""
    return math.prod(sizes[dim.name] / dim.opt for dim in contract.dims if dim.name in sizes)


def _size_bytes(spec: TensorSpec, phrases: int, images: int) -> int:
    return math.prod(spec.sized(phrases=phrases, images=images)) * np.dtype(spec.dtype).itemsize


def _weights_read(record: StageRecord, precision: str) -> int:
    """Bytes of those weights that one run has to read."""
    width = min(_WEIGHT_BYTES[precision], _WEIGHT_BYTES[record.precision])
    weights = record.weight_bytes * width / _WEIGHT_BYTES[record.precision]
    if record.contract.stage is Stage.SIGLIP_TEXT:
        # Of the table of embeddings only the rows of the phrase's tokens are read, a hundredth at most. It multiplies
        # nothing; all else multiplies each token once, so its weights number half the operations of a token.
        per_token = record.flops / _tokens(record.contract.input("input_ids"))
        weights = min(weights, per_token / 2 * width)
    return round(weights)


def _tokens(input_ids: TensorSpec) -> int:
    return math.prod(size.opt if isinstance(size, Dim) else size for size in input_ids.shape)
