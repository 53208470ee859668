"""The least time a device can take: all operations at its peak or all bytes at its bandwidth, whichever is longer.

The bytes of a stage are its weights, inputs and outputs; what it keeps in between may stay in caches and is not
counted. So no implementation of these operations is faster, and a share of 100% is not reached in practice. The
operations are those of the bundle's graphs, with their form of attention, whoever runs them.
"""

import math
from collections.abc import Mapping

import numpy as np
from msgspec import Struct

from rsrefseg.engines.bundle.contracts import Dim, Stage, StageContract, TensorSpec
from rsrefseg.engines.bundle.manifest import StageRecord
from rsrefseg.engines.engine import IMAGE_STAGES

from ..system.devices import DEVICES
from ..system.peaks import Peaks

_WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


class Roofline(Struct, frozen=True):
    """The least time of one or several stages, run one after the other.

    Attributes:
        flops: floating-point operations, 2 for each multiply-add.
        bytes: weights, inputs and outputs.
        least_ms: all operations at the device's peak or all bytes at its bandwidth; of several stages the sum.
        bound: the longer of the two, of several stages of the longest: ``compute`` or ``memory``.
    """

    flops: int
    bytes: int
    least_ms: float
    bound: str


def stage_roofline(
    record: StageRecord, peaks: Peaks, precision: str, phrases: int = 1, images: int = 1
) -> Roofline | None:
    """The roofline of a stage; ``None`` if the device's peak in that precision is not known.

    Args:
        record: of the stage. Its operations are those of its contract's ``opt`` sizes and grow in proportion.
        peaks: of the device.
        precision: of its products, ``fp32``, ``fp16`` or ``bf16``; weights are read in this one if stored in more.
        phrases, images: how many at once, for the stages whose contract names them.
    """
    peak, bandwidth = peaks.flops_per_s.get(precision), peaks.bandwidth_bytes_per_s
    if peak is None or bandwidth is None or precision not in _WEIGHT_BYTES:
        return None
    flops = round(record.flops * _scale(record.contract, phrases=phrases, images=images))
    tensors = (*record.contract.inputs, *record.contract.outputs)
    moved = _weights_read(record, precision) + sum(_size_bytes(spec, phrases, images) for spec in tensors)
    compute_ms, memory_ms = 1e3 * flops / peak, 1e3 * moved / bandwidth
    bound = "compute" if compute_ms >= memory_ms else "memory"
    return Roofline(flops, moved, max(compute_ms, memory_ms), bound)


def scenario_roofline(
    stages: Mapping[Stage, StageRecord],
    peaks: Peaks,
    precisions: Mapping[Stage, str],
    new_image: bool,
    phrases: int,
) -> Roofline | None:
    """The roofline from an image, new or encoded, and phrases to masks: the sum of its stages, since overlapping them
    gains nothing on one device. ``None`` if a peak is not known."""
    found = [
        stage_roofline(record, peaks, precisions[stage], phrases)
        for stage, record in stages.items()
        if new_image or stage not in IMAGE_STAGES
    ]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    longest = max(known, key=lambda one: one.least_ms)
    flops, moved = sum(one.flops for one in known), sum(one.bytes for one in known)
    return Roofline(flops, moved, sum(one.least_ms for one in known), longest.bound)


def expected_rooflines(stages: Mapping[Stage, StageRecord]) -> dict[str, dict[str, float]]:
    """Milliseconds of one image and one phrase in FP16: by device of ``DEVICES``, then by stage and their ``sum``."""
    found = {}
    for device, peaks in DEVICES.items():
        rooflines = {stage.value: stage_roofline(record, peaks, "fp16") for stage, record in stages.items()}
        by_stage = {stage: one.least_ms for stage, one in rooflines.items() if one is not None}
        found[device] = {**by_stage, "sum": sum(by_stage.values())}
    return found


def _scale(contract: StageContract, **sizes: int) -> float:
    """How many times its ``opt`` sizes a stage is asked for."""
    return math.prod(sizes[dim.name] / dim.opt for dim in contract.dims if dim.name in sizes)


def _size_bytes(spec: TensorSpec, phrases: int, images: int) -> int:
    return math.prod(spec.sized(phrases=phrases, images=images)) * np.dtype(spec.dtype).itemsize


def _weights_read(record: StageRecord, precision: str) -> int:
    """Bytes of the weights that one run has to read."""
    width = min(_WEIGHT_BYTES[precision], _WEIGHT_BYTES[record.precision])
    weights = record.weight_bytes * width / _WEIGHT_BYTES[record.precision]
    if record.contract.stage is Stage.SIGLIP_TEXT:
        # Of the embedding table only the rows of the phrase's tokens are read, and they take part in no product. All
        # other weights multiply every token once, so they number half the operations of a token.
        shape = record.contract.input("input_ids").shape
        tokens = math.prod(size.opt if isinstance(size, Dim) else size for size in shape)
        weights = min(weights, record.flops / tokens / 2 * width)
    return round(weights)
