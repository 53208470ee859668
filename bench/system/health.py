"""What the device tells during a measurement: whether it was slowed down, and by what, so that figures can be believed.

Looked at between the rounds only, from the measuring thread: nothing of it runs while something is timed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from . import sensors
from .nvidia_smi import GpuReading, read_gpu

_STOLEN_SHARE = 0.03
_OTHERS_SHARE = 0.1
_ELSEWHERE_SHARE = 0.1
_FALL = 0.1
_HELD_SHARE = 0.01
_HOT_C = 95.0
# Of a shorter time a single tick would be too large a share.
_LEAST_TICKS = 100


@dataclass(frozen=True, slots=True)
class HealthSample:
    """The device at one moment, or since the moment before; ``None`` where it does not tell.

    Attributes:
        cpu_ghz: clock of the fastest core.
        hottest_c: highest temperature of processor and board.
        stolen_share: of the time of this program's cores since the last sample that the hypervisor gave to others.
        others_share: of their time since then that other programs used.
        elsewhere_share: of the time of the cores this program is not bound to that was used since then.
        throttle_events: how often the processor slowed itself down since the watch began.
        quota_held_ms: how long a container's CPU quota made this program wait since then.
        gpu_mhz, gpu_memory_mhz: clocks, unless the GPU was idle.
        gpu_c: temperature of its chip.
        power_w: of the GPU's card, or of all of a Jetson.
        gpu_memory_mib: used on the device since the watch began.
    """

    cpu_ghz: float | None = None
    hottest_c: float | None = None
    stolen_share: float | None = None
    others_share: float | None = None
    elsewhere_share: float | None = None
    throttle_events: int | None = None
    quota_held_ms: float | None = None
    gpu_mhz: float | None = None
    gpu_memory_mhz: float | None = None
    gpu_c: float | None = None
    power_w: float | None = None
    gpu_memory_mib: float | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """The least, the middle and the most of what was seen."""

    min: float
    median: float
    max: float


@dataclass(frozen=True, slots=True)
class HealthSummary:
    """All samples of a measurement.

    Attributes:
        samples: in their order.
        gpu_slowed_by: what held the GPU's clocks down at any of them.
        seconds: from the first to the last.
    """

    samples: tuple[HealthSample, ...]
    gpu_slowed_by: tuple[str, ...] = ()
    seconds: float = 0.0

    @classmethod
    def of_entries(cls, entries: Sequence[Mapping[str, Any]]) -> "HealthSummary":
        """Of what ``entry`` told, one after the other."""
        slowed_by = dict.fromkeys(reason for entry in entries for reason in entry["slowed_by"])
        samples = tuple(HealthSample(**entry["sample"]) for entry in entries)
        return cls(samples, tuple(slowed_by), entries[-1]["seconds"] if entries else 0.0)

    @property
    def ranges(self) -> dict[str, Range]:
        """Of every figure that was ever told, by its name."""
        seen = {field.name: self.told(field.name) for field in fields(HealthSample)}
        return {name: Range(min(told), median(told), max(told)) for name, told in seen.items() if told}

    @property
    def peak_gpu_memory_mib(self) -> float | None:
        """The most device memory in use beyond what was taken before; ``None`` if unknown."""
        found = self.ranges.get("gpu_memory_mib")
        return found.max if found is not None else None

    def notes(self) -> list[str]:
        """A line for each thing that makes the figures worse than the device; none on a quiet one."""
        return [note for note in (check(self) for check in _CHECKS) if note]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "samples": len(self.samples),
            "ranges": {name: asdict(found) for name, found in self.ranges.items()},
            "gpu_slowed_by": list(self.gpu_slowed_by),
            "peak_gpu_memory_mib": self.peak_gpu_memory_mib,
        }

    def told(self, name: str) -> list[float]:
        """A figure by its name, where a sample has it."""
        values = (getattr(sample, name) for sample in self.samples)
        return [float(value) for value in values if value is not None]


class Watch:
    """Looks at the device whenever it is told to. The first look is at its making: what is used then is not ours.

    Args:
        root: where ``/proc`` and ``/sys`` lie.
        gpu: asks the GPU.
        earlier: what an earlier process saw of the same measurement; this one goes on with it.
    """

    def __init__(
        self,
        root: Path = sensors.ROOT,
        gpu: Callable[[], GpuReading | None] = read_gpu,
        earlier: HealthSummary = HealthSummary(()),
    ) -> None:
        self._root = root
        self._earlier = earlier
        self.begin()
        reading = gpu()
        # Asking costs a process each time, in vain on a machine that did not answer once.
        self._gpu = gpu if reading is not None else _no_gpu
        self._memory_mib = reading.memory_used_mib if reading is not None else None
        self._samples: list[HealthSample] = list(earlier.samples)
        self._slowed_by: dict[str, None] = dict.fromkeys(earlier.gpu_slowed_by)

    def begin(self) -> None:
        """Count from now on: what went before, such as warming up, is no part of the measurement."""
        self._start_s = time.monotonic() - self._earlier.seconds
        self._ticks, self._own = sensors.cpu_ticks(self._root), sensors.own_ticks()
        self._throttled = _less(sensors.throttle_count(self._root), self._earlier.told("throttle_events"))
        self._held = _less(sensors.quota_held_ms(self._root), self._earlier.told("quota_held_ms"))

    def sample(self) -> HealthSample:
        """Look now."""
        stolen, others, elsewhere = self._shares()
        gpu = self._gpu() or GpuReading()
        self._slowed_by |= dict.fromkeys(gpu.slowed_by)
        throttled = sensors.throttle_count(self._root)
        held = sensors.quota_held_ms(self._root)
        seen = HealthSample(
            cpu_ghz=sensors.cpu_clock_ghz(self._root),
            hottest_c=sensors.hottest_c(self._root),
            stolen_share=stolen,
            others_share=others,
            elsewhere_share=elsewhere,
            throttle_events=None if throttled is None or self._throttled is None else int(throttled - self._throttled),
            quota_held_ms=_beyond(held, self._held),
            gpu_mhz=_first(gpu.clock_mhz, sensors.board_gpu_clock_mhz(self._root)),
            gpu_memory_mhz=gpu.memory_clock_mhz,
            gpu_c=gpu.temperature_c,
            power_w=_first(gpu.power_w, sensors.board_power_w(self._root)),
            gpu_memory_mib=_beyond(gpu.memory_used_mib, self._memory_mib),
        )
        self._samples.append(seen)
        return seen

    def entry(self) -> dict[str, Any]:
        """The last sample and what goes with it, for a log; JSON-able."""
        told = self.summary()
        return {"sample": asdict(told.samples[-1]), "slowed_by": list(told.gpu_slowed_by), "seconds": told.seconds}

    def summary(self) -> HealthSummary:
        """Of all samples so far."""
        return HealthSummary(tuple(self._samples), tuple(self._slowed_by), time.monotonic() - self._start_s)

    def _shares(self) -> tuple[float | None, float | None, float | None]:
        """Since the last look long enough ago, of the time of this program's cores: taken by the hypervisor, used by
        other programs; and of the time of all other cores: used.
        """
        ticks, own = sensors.cpu_ticks(self._root), sensors.own_ticks()
        if ticks is None or self._ticks is None:
            return None, None, None
        passed, rest = (now.since(before) for now, before in zip(ticks, self._ticks, strict=True))
        if passed.total < _LEAST_TICKS:
            return None, None, None
        others = passed.total - passed.idle - passed.stolen - (own - self._own)
        self._ticks, self._own = ticks, own
        elsewhere = 1 - rest.idle / rest.total if rest.total else None
        return passed.stolen / passed.total, max(others / passed.total, 0.0), elsewhere


def _no_gpu() -> None:
    return None


def _less(count: float | None, told: Sequence[float]) -> float | None:
    """Where a count began that has come to the last one told."""
    return None if count is None else count - (told[-1] if told else 0.0)


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _beyond(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else max(now - before, 0.0)


def _stolen(summary: HealthSummary) -> str:
    return _share_note(
        summary.ranges.get("stolen_share"),
        _STOLEN_SHARE,
        "the hypervisor took up to {max:.0%} of the cores (median {median:.0%}):"
        " neighbours on this host slow it, ratios hold better than times",
    )


def _others(summary: HealthSummary) -> str:
    return _share_note(
        summary.ranges.get("others_share"),
        _OTHERS_SHARE,
        "other programs used up to {max:.0%} of the cores (median {median:.0%}) during the rounds",
    )


def _elsewhere(summary: HealthSummary) -> str:
    return _share_note(
        summary.ranges.get("elsewhere_share"),
        _ELSEWHERE_SHARE,
        "the cores beyond those of this program were used up to {max:.0%} (median {median:.0%}):"
        " they share the memory's bandwidth with it",
    )


def _share_note(found: Range | None, least: float, note: str) -> str:
    """The note with the share's figures where it ever was that high."""
    return "" if found is None or found.max < least else note.format(**asdict(found))


def _clocks(summary: HealthSummary) -> str:
    high, low = _deepest_fall(summary.told("cpu_ghz"))
    return f"CPU clocks fell from {high:.1f} to {low:.1f} GHz" if low < (1 - _FALL) * high else ""


def _gpu_clocks(summary: HealthSummary) -> str:
    high, low = _deepest_fall(summary.told("gpu_mhz"))
    reasons = f", held down by {' and '.join(summary.gpu_slowed_by)}" if summary.gpu_slowed_by else ""
    if low < (1 - _FALL) * high:
        return f"GPU clocks fell from {high:.0f} to {low:.0f} MHz{reasons}"
    return f"the GPU was{reasons.removeprefix(',')}" if reasons else ""


def _throttled(summary: HealthSummary) -> str:
    found = summary.ranges.get("throttle_events")
    if found is None or not found.max:
        return ""
    return f"the processor slowed itself down {found.max:.0f} times: cool it, or give it more power"


def _held(summary: HealthSummary) -> str:
    found = summary.ranges.get("quota_held_ms")
    if found is None or found.max < _HELD_SHARE * summary.seconds * 1e3:
        return ""
    return (
        f"this container's CPU quota made its threads wait {found.max / 1e3:.1f} s in all: raise it, or ask for fewer"
    )


def _hot(summary: HealthSummary) -> str:
    worst = max((r.max for name in ("hottest_c", "gpu_c") if (r := summary.ranges.get(name))), default=0.0)
    return f"a sensor showed {worst:.0f} degrees Celsius" if worst >= _HOT_C else ""


_CHECKS: tuple[Callable[[HealthSummary], str], ...] = (
    _stolen,
    _others,
    _elsewhere,
    _clocks,
    _gpu_clocks,
    _throttled,
    _held,
    _hot,
)


def _deepest_fall(values: Sequence[float]) -> tuple[float, float]:
    """The value before and after the deepest fall in proportion; rising, as a device that wakes up does, is none."""
    highest, found = 0.0, (0.0, 0.0)
    for value in values:
        highest = max(highest, value)
        if found == (0.0, 0.0) or value / highest < found[1] / found[0]:
            found = (highest, value)
    return found
