"""Reads the state of CUDA's first NVIDIA GPU through NVML (package nvidia-ml-py).

All readings are None without the package, the driver or a GPU.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

from rsrefseg.engines.records import Record

_IDLE = 0x1
# Throttle reasons that are limits; the other bits are settings.
_SLOWED_BY = {
    0x4: "its power limit",
    0x8: "a hardware slowdown",
    0x20: "its temperature limit (driver)",
    0x40: "its temperature limit (hardware)",
    0x80: "the power supply's brake",
}


class GpuReading(Record, frozen=True, kw_only=True):
    """State of CUDA's first GPU; None for values that the GPU does not report.

    Attributes:
        gpu_mhz: clock of the multiprocessors in MHz; None if the GPU is idle.
        gpu_c: temperature of the chip in degrees Celsius.
        gpu_memory_mib: device memory used by this process in MiB.
        gpu_slowed_by: reasons for reduced clocks.
    """

    gpu_mhz: float | None = None
    gpu_c: float | None = None
    gpu_memory_mib: float | None = None
    gpu_slowed_by: tuple[str, ...] = ()


def read_gpu() -> GpuReading:
    """Read clock, temperature, memory and throttle reasons."""
    if (found := _device()) is None:
        return GpuReading()
    nvml, device = found
    bits = _reported(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, device) or 0
    clock = _reported(nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_SM)
    return GpuReading(
        gpu_mhz=None if bits & _IDLE else clock,
        gpu_c=_reported(nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU),
        gpu_memory_mib=gpu_memory_used_mib(),
        gpu_slowed_by=tuple(reason for bit, reason in _SLOWED_BY.items() if bits & bit),
    )


def gpu_memory_used_mib() -> float | None:
    """Return the device memory used by this process in MiB; None if unknown.

    It is unknown in containers whose process ids differ from those that NVML reports.
    """
    if (found := _device()) is None:
        return None
    nvml, device = found
    processes = _reported(nvml.nvmlDeviceGetComputeRunningProcesses, device) or []
    used = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    return used[0] / 2**20 if used and used[0] is not None else None


def gpu_name() -> str | None:
    """Return name and driver, e.g. ``NVIDIA H100 80GB HBM3, driver 580.95.05``; None if unknown."""
    if (found := _device()) is None:
        return None
    nvml, device = found
    name, driver = _reported(nvml.nvmlDeviceGetName, device), _reported(nvml.nvmlSystemGetDriverVersion)
    return f"{name or 'unknown'}, driver {driver or 'unknown'}"


@cache
def _device() -> tuple[Any, Any] | None:
    """Return the module ``pynvml`` and its handle of CUDA's first device."""
    if (bus_id := _cuda_bus_id()) is None:
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(bus_id)
    except pynvml.NVMLError:
        return None


def _cuda_bus_id() -> bytes | None:
    """Return the PCI bus id of CUDA's first device from CUDA, because NVML orders GPUs differently."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, bus_id = ctypes.c_int(), ctypes.create_string_buffer(32)
    failed: int = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0)
    failed = failed or cuda.cuDeviceGetPCIBusId(bus_id, len(bus_id), device)
    return None if failed else bus_id.value


def _reported(query: Callable[..., Any], *arguments: Any) -> Any:
    """Run an NVML query; return None if the GPU or the driver does not support it."""
    import pynvml

    try:
        return query(*arguments)
    except pynvml.NVMLError:
        return None
