"""Detects disturbances of a measurement: other programs, the hypervisor, a CPU quota, heat, falling clocks.

Sensors are read between rounds, never while a runner is timed.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from msgspec import structs

from rsrefseg.engines.records import Record

from .gpu import GpuReading, read_gpu
from .machine import core_times

_STOLEN_SHARE = 0.03
_OTHERS_SHARE = 0.1
_CLOCK_LOSS = 0.1
_QUOTA_SHARE = 0.01
_HOT_C = 95.0
# Shorter times have too few clock ticks (10 ms each) to compute a fraction.
_MIN_CORE_S = 1.0
# Linux names of temperature sensors of processors and boards.
_PROCESSOR_CHIPS = {"coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal", "cpu-thermal", "tj-thermal"}
_PLAUSIBLE_C = (1.0, 150.0)  # inactive sensors report 0 or invalid values
_THROTTLE_COUNTS = (
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count",  # Intel: heat
    "sys/class/hwmon/hwmon*/oc*_event_cnt",  # Jetson: current
)


class HealthSample(GpuReading, frozen=True, kw_only=True):
    """State of the machine, or change since the previous sample; None for values that are not reported.

    Attributes:
        cpu_ghz: clock of the fastest core in GHz.
        hottest_c: highest temperature of processor and board in degrees Celsius.
        stolen_share: fraction of the cores' time that the hypervisor gave to other machines.
        others_share: fraction of the cores' time that other programs used.
        throttle_events: number of times the processor throttled since ``Watch.begin``.
        quota_held_ms: time that a CPU quota made threads of this control group wait since ``Watch.begin``, in ms.
    """

    cpu_ghz: float | None = None
    hottest_c: float | None = None
    stolen_share: float | None = None
    others_share: float | None = None
    throttle_events: int | None = None
    quota_held_ms: float | None = None


class Health(Record, frozen=True):
    """All samples of a measurement.

    Attributes:
        samples: samples in order.
        seconds: duration of the measurement in s.
    """

    samples: tuple[HealthSample, ...]
    seconds: float = 0.0

    @property
    def gpu_slowed_by(self) -> list[str]:
        """Reasons for reduced GPU clocks in any sample."""
        return list(dict.fromkeys(reason for sample in self.samples for reason in sample.gpu_slowed_by))

    @property
    def ranges(self) -> dict[str, dict[str, float]]:
        """``min``, ``median`` and ``max`` of every reported value by name."""
        names = (name for name in HealthSample.__struct_fields__ if name != "gpu_slowed_by")
        seen = {name: self._values(name) for name in names}
        return {
            name: {"min": min(values), "median": median(values), "max": max(values)}
            for name, values in seen.items()
            if values
        }

    def notes(self) -> list[str]:
        """Return a line for each disturbance."""
        found = []
        if (stolen := self._max("stolen_share")) >= _STOLEN_SHARE:
            found.append(f"the hypervisor gave up to {stolen:.0%} of the cores to others: ratios are safer than times")
        if (others := self._max("others_share")) >= _OTHERS_SHARE:
            found.append(f"other programs used up to {others:.0%} of the cores during the rounds")
        if (fall := _clock_fall(self._values("cpu_ghz"))) is not None:
            found.append(f"CPU clocks fell from {fall[0]:.1f} to {fall[1]:.1f} GHz")
        reasons = " and ".join(self.gpu_slowed_by)
        if (fall := _clock_fall(self._values("gpu_mhz"))) is not None:
            held = f", held down by {reasons}" if reasons else ""
            found.append(f"GPU clocks fell from {fall[0]:.0f} to {fall[1]:.0f} MHz{held}")
        elif reasons:
            found.append(f"the GPU was held down by {reasons}")
        if (events := self._max("throttle_events")) > 0:
            found.append(f"the processor slowed itself down {events:.0f} times: it needs more cooling or power")
        if (held_ms := self._max("quota_held_ms")) > _QUOTA_SHARE * self.seconds * 1e3:
            found.append(f"a CPU quota kept threads waiting for {held_ms / 1e3:.1f} s: raise it or use fewer threads")
        if (hottest := max(self._max("hottest_c"), self._max("gpu_c"))) >= _HOT_C:
            found.append(f"a sensor reported {hottest:.0f} degrees Celsius")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict with ranges instead of samples."""
        return {
            "samples": len(self.samples),
            "ranges": self.ranges,
            "gpu_slowed_by": self.gpu_slowed_by,
            "peak_gpu_memory_mib": max(self._values("gpu_memory_mib"), default=None),
        }

    def _values(self, name: str) -> list[float]:
        values = (getattr(sample, name) for sample in self.samples)
        return [float(value) for value in values if value is not None]

    def _max(self, name: str) -> float:
        return max(self._values(name), default=0.0)


class Watch:
    """Samples the state of the machine on request.

    Args:
        root: folder that contains ``proc`` and ``sys``.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self.begin()

    def begin(self) -> None:
        """Discard earlier samples, e.g. those of the warm-up, and start the measurement."""
        self._samples: list[HealthSample] = []
        self._start_s = time.monotonic()
        self._times = core_times()
        self._throttled, self._held_ms = _throttle_count(self._root), _quota_held_ms(self._root)

    def sample(self) -> HealthSample:
        """Read all sensors now."""
        now = core_times()
        passed, stolen, others = now.since(self._times), None, None
        if passed.total >= _MIN_CORE_S:
            self._times = now
            stolen = passed.stolen / passed.total
            others = max(0.0, passed.total - passed.idle - passed.stolen - passed.own) / passed.total
        throttled, held_ms = _throttle_count(self._root), _quota_held_ms(self._root)
        sample = HealthSample(
            cpu_ghz=_cpu_ghz(),
            hottest_c=_hottest_c(),
            stolen_share=stolen,
            others_share=others,
            throttle_events=None if throttled is None or self._throttled is None else throttled - self._throttled,
            quota_held_ms=None if held_ms is None or self._held_ms is None else held_ms - self._held_ms,
            **structs.asdict(read_gpu()),
        )
        self._samples.append(sample)
        return sample

    def summary(self) -> Health:
        """Return all samples since ``begin``."""
        return Health(tuple(self._samples), time.monotonic() - self._start_s)


def _cpu_ghz() -> float | None:
    """Return the clock of the fastest core, because others may be idle."""
    try:
        clocks = [core.current / 1e3 for core in psutil.cpu_freq(percpu=True)]
    except (NotImplementedError, OSError):  # a container may expose only some of the files
        return None
    return max(clocks, default=0.0) or None


def _hottest_c() -> float | None:
    chips = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    readings = [sensor.current for name, chip in chips.items() if name in _PROCESSOR_CHIPS for sensor in chip]
    low, high = _PLAUSIBLE_C
    return max((value for value in readings if low <= value <= high), default=None)


def _throttle_count(root: Path) -> int | None:
    """Return how often the processor has throttled since the system started."""
    texts = (_read(path) for pattern in _THROTTLE_COUNTS for path in root.glob(pattern))
    counts = [int(text) for text in texts if text.strip().isdecimal()]
    return sum(counts) if counts else None


def _quota_held_ms(root: Path) -> float | None:
    """Return how long quotas of this process's control groups (version 2) have made threads wait, in ms."""
    entries = (line.partition("0::/") for line in _read(root / "proc/self/cgroup").splitlines())
    path = next((path for before, found, path in entries if found and not before), None)
    if path is None:
        return None
    top = root / "sys/fs/cgroup"
    groups = [top / path, *(parent for parent in (top / path).parents if parent.is_relative_to(top))]
    lines = [line for group in groups for line in _read(group / "cpu.stat").splitlines()]
    held_us = [int(line.split()[1]) for line in lines if line.startswith("throttled_usec ")]
    return sum(held_us) / 1e3 if held_us else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _clock_fall(clocks: Sequence[float]) -> tuple[float, float] | None:
    """Return the clocks before and after the largest relative fall, if it exceeds 10%."""
    highest, deepest = 0.0, None
    for clock in clocks:
        highest = max(highest, clock)
        if clock < (1 - _CLOCK_LOSS) * highest and (deepest is None or clock / highest < deepest[1] / deepest[0]):
            deepest = (highest, clock)
    return deepest
