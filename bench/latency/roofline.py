"""Roofline: the time of all operations at a device's peak or of all bytes at its bandwidth, whichever is longer.

The bytes of a stage are its weights, inputs and outputs; intermediate values may stay in caches and do not count. No
implementation of these operations is faster, and 100% is not reachable in practice. For every runner, the operations
are those of the bundle's graphs with their form of attention.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from msgspec import Struct

from rsrefseg.engines.bundle.contracts import Dim, Stage
from rsrefseg.engines.bundle.manifest import StageRecord

from ..system.peaks import Peaks

# Published peaks of other devices: dense FP16 products with FP32 sums, and memory bandwidth. The values of the H200 are
# those that large products and copies reach; the others are from data sheets, at full power.
DEVICES = {
    "H200": Peaks("cuda", {"fp16": 790e12}, 4.3e12, "published"),
    "RTX 4090": Peaks("cuda", {"fp16": 165e12}, 1.008e12, "published"),
    "AGX Orin": Peaks("cuda", {"fp16": 42.6e12}, 0.205e12, "published"),
    "Orin Nano Super": Peaks("cuda", {"fp16": 16.7e12}, 0.102e12, "published"),
}
_WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}


class Roofline(Struct, frozen=True):
    """Lower bound of the time of one or several consecutive stages.

    Attributes:
        flops: floating-point operations; a multiply-add counts as 2.
        bytes: bytes of weights, inputs and outputs.
        least_ms: sum over stages of the longer of compute time and memory time, in ms.
        bound: limit of most of that time: ``compute`` or ``memory``.
    """

    flops: int
    bytes: int
    least_ms: float
    bound: str


def roofline_of(
    stages: Iterable[StageRecord], peaks: Peaks, precisions: Mapping[Stage, str], phrases: int = 1
) -> Roofline | None:
    """Return the roofline for one image and some phrases; ``None`` if a peak of the device is unknown.

    Args:
        stages: stages to run. Operations refer to the ``opt`` sizes of a contract and scale in proportion.
        peaks: peak performance of the device.
        precisions: precision of products by stage, which limits the size of weights.
        phrases: number of phrases per batch.
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
    """Return ms for one image and one phrase in FP16, by device of ``DEVICES``, then by stage and ``sum``."""
    parts = {stage.value: [record] for stage, record in stages.items()} | {"sum": list(stages.values())}
    half = dict.fromkeys(Stage, "fp16")
    return {
        device: {name: found.least_ms for name, part in parts.items() if (found := roofline_of(part, peaks, half))}
        for device, peaks in DEVICES.items()
    }


def _weights_read(record: StageRecord, precision: str) -> int:
    """Return the bytes of weights that one run reads."""
    width = min(_WEIGHT_BYTES[precision], _WEIGHT_BYTES[record.precision])
    weights = record.weight_bytes * width / _WEIGHT_BYTES[record.precision]
    if record.contract.stage is Stage.SIGLIP_TEXT:
        # Only the rows of the phrase's tokens are read from the embedding table, and no product uses them. All other
        # weights multiply every token once, so their number is half the operations per token.
        shape = record.contract.input("input_ids").shape
        tokens = math.prod(size.opt if isinstance(size, Dim) else size for size in shape)
        weights = min(weights, record.flops / tokens / 2 * width)
    return round(weights)
