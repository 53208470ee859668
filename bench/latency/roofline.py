"""The least time a device can take: all operations at its peak or all bytes at its bandwidth, whichever is longer.

The bytes of a stage are its weights, inputs and outputs; what it keeps in between may stay in caches and is not
counted. So no implementation of these operations is faster, and a share of 100% is not reached in practice. The
operations are those of the bundle's graphs, with their form of attention, for every runner.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from msgspec import Struct

from rsrefseg.engines.bundle.contracts import Dim, Stage
from rsrefseg.engines.bundle.manifest import StageRecord

from ..system.peaks import Peaks

# Published peaks of other devices: dense FP16 products summed in FP32, and memory bandwidth. The H200's are what large
# products and copies reach, the others' are their data sheets' at full power.
DEVICES = {
    "H200": Peaks("cuda", {"fp16": 790e12}, 4.3e12, "published"),
    "RTX 4090": Peaks("cuda", {"fp16": 165e12}, 1.008e12, "published"),
    "AGX Orin": Peaks("cuda", {"fp16": 42.6e12}, 0.205e12, "published"),
    "Orin Nano Super": Peaks("cuda", {"fp16": 16.7e12}, 0.102e12, "published"),
}
_WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


class Roofline(Struct, frozen=True):
    """The least time of one or several stages, run one after the other.

    Attributes:
        flops: floating-point operations, 2 for each multiply-add.
        bytes: weights, inputs and outputs.
        least_ms: of each stage all operations at the device's peak or all bytes at its bandwidth; their sum.
        bound: what most of that time is bound by: ``compute`` or ``memory``.
    """

    flops: int
    bytes: int
    least_ms: float
    bound: str


def roofline_of(
    stages: Iterable[StageRecord], peaks: Peaks, precisions: Mapping[Stage, str], phrases: int = 1
) -> Roofline | None:
    """The roofline of one image and some phrases; ``None`` if the device's peak in a precision is not known.

    Args:
        stages: to be run. Operations are those of the ``opt`` sizes of a stage's contract and grow in proportion.
        peaks: of the device.
        precisions: of products, by stage: ``fp32``, ``fp16`` or ``bf16``; weights stored in more are read in this one.
        phrases: at once.
    """
    flops, moved, least_ms = 0, 0, {"compute": 0.0, "memory": 0.0}
    for record in stages:
        contract, precision = record.contract, precisions[record.contract.stage]
        peak, bandwidth = peaks.flops_per_s.get(precision), peaks.bandwidth_bytes_per_s
        if peak is None or bandwidth is None:
            return None
        scale = math.prod(phrases / dim.opt for dim in contract.dims if dim.name == "phrases")
        stage_flops = round(record.flops * scale)
        sizes = ((spec.sized(phrases=phrases, images=1), spec.dtype) for spec in (*contract.inputs, *contract.outputs))
        tensor_bytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in sizes)
        stage_bytes = _weights_read(record, precision) + tensor_bytes
        compute_ms, memory_ms = 1e3 * stage_flops / peak, 1e3 * stage_bytes / bandwidth
        least_ms["compute" if compute_ms >= memory_ms else "memory"] += max(compute_ms, memory_ms)
        flops, moved = flops + stage_flops, moved + stage_bytes
    return Roofline(flops, moved, sum(least_ms.values()), max(least_ms, key=lambda bound: least_ms[bound]))


def expected_rooflines(stages: Mapping[Stage, StageRecord]) -> dict[str, dict[str, float]]:
    """Milliseconds of one image and one phrase in FP16: by device of ``DEVICES``, then by stage and their ``sum``."""
    parts = {stage.value: [record] for stage, record in stages.items()} | {"sum": list(stages.values())}
    half = dict.fromkeys(Stage, "fp16")
    return {
        device: {name: found.least_ms for name, part in parts.items() if (found := roofline_of(part, peaks, half))}
        for device, peaks in DEVICES.items()
    }


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
