"""What a Linux system tells of its processor and board: ticks, clocks, temperatures, throttling.

Every reader takes the root folder that ``/proc`` and ``/sys`` lie in and gives ``None`` where the system does not tell.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsrefseg.engines.system.cores import bound_cores, cpu_groups, read_text

ROOT = Path("/")
_CPUS = "sys/devices/system/cpu/cpu[0-9]*"
# Chips that sit on or in the processor; a disk's or a radio's heat slows nobody here.
_PROCESSOR_SENSORS = {"coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal"}
_BELIEVED_C = (1.0, 150.0)  # a sensor that is off tells 0 or nonsense
_HELD_PER_MS = {"throttled_usec": 1e3, "throttled_time": 1e6}  # of control groups of version 2 and 1
_STOLEN = 7
_TICKS = 8  # guest time, behind these, is contained in user time


@dataclass(frozen=True, slots=True)
class Ticks:
    """Time of some cores since the system started, in ticks: with nothing to do, taken by the hypervisor, all."""

    idle: int
    stolen: int
    total: int

    def since(self, before: "Ticks") -> "Ticks":
        """What came between."""
        return Ticks(self.idle - before.idle, self.stolen - before.stolen, self.total - before.total)


def cpu_ticks(root: Path = ROOT) -> tuple[Ticks, Ticks] | None:
    """Of the cores this process is bound to, together, and of the machine's others: what runs there slows it less.

    Some containers number the cores they show anew: all of them are this process's then.
    """
    cores = {}
    for line in read_text(root / "proc/stat").splitlines():
        name, *fields = line.split() or [""]
        if name.startswith("cpu") and name != "cpu" and len(fields) >= _TICKS:
            cores[int(name.removeprefix("cpu"))] = [int(field) for field in fields[:_TICKS]]
    if not cores:
        return None
    bound = bound_cores()
    ours = bound if bound is not None and bound <= cores.keys() else cores.keys()
    return _together(cores[core] for core in ours), _together(cores[core] for core in cores.keys() - ours)


def own_ticks() -> float:
    """Ticks that this process and those of its children that have ended were computing."""
    used = os.times()
    return (used.user + used.system + used.children_user + used.children_system) * os.sysconf("SC_CLK_TCK")


def cpu_clock_ghz(root: Path = ROOT) -> float | None:
    """Of the fastest core, now: the others may be asleep."""
    khz = _numbers(root.glob(f"{_CPUS}/cpufreq/scaling_cur_freq"))
    if khz:
        return max(khz) / 1e6
    lines = read_text(root / "proc/cpuinfo").splitlines()
    mhz = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return max(mhz) / 1e3 if mhz else None


def hottest_c(root: Path = ROOT) -> float | None:
    """The highest temperature of processor and board, degrees Celsius."""
    found = _numbers(root.glob("sys/class/thermal/thermal_zone*/temp"))
    for chip in root.glob("sys/class/hwmon/hwmon*"):
        if read_text(chip / "name").strip() in _PROCESSOR_SENSORS:
            found += _numbers(chip.glob("temp*_input"))
    low, high = _BELIEVED_C
    return max((value / 1e3 for value in found if low <= value / 1e3 <= high), default=None)


def throttle_count(root: Path = ROOT) -> int | None:
    """How often heat or current made the processor slow itself down since the system started.

    Intel counts heat by core and package; a Jetson counts over-current events.
    """
    found = _numbers(root.glob(f"{_CPUS}/thermal_throttle/*_throttle_count"))
    found += _numbers(root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt"))
    return round(sum(found)) if found else None


def quota_held_ms(root: Path = ROOT) -> float | None:
    """How long CPU quotas, a container's and those above it, have kept their threads waiting so far, in milliseconds.

    A quota is counted by the group that has it, for all processes in that.
    """
    found = [held for group in cpu_groups(root) if (held := _held_ms(group)) is not None]
    return sum(found) if found else None


def board_gpu_clock_mhz(root: Path = ROOT) -> float | None:
    """Of a Jetson's GPU, which is no card."""
    hertz = [
        value
        for pattern in ("*.gpu", "*.ga10b", "*.gv11b", "*.gp10b")
        for value in _numbers(root.glob(f"sys/class/devfreq/{pattern}/cur_freq"))
    ]
    return max(hertz) / 1e6 if hertz else None


def board_power_w(root: Path = ROOT) -> float | None:
    """What a Jetson takes in all, from the monitor at its input."""
    for label in root.glob("sys/class/hwmon/hwmon*/in*_label"):
        if read_text(label).strip() == "VDD_IN":
            number = label.name.removeprefix("in").removesuffix("_label")
            millivolts = _numbers([label.with_name(f"in{number}_input")])
            milliamperes = _numbers([label.with_name(f"curr{number}_input")])
            if millivolts and milliamperes:
                return millivolts[0] * milliamperes[0] / 1e6
    return None


def _together(cores: Iterable[Sequence[int]]) -> Ticks:
    fields = [sum(column) for column in zip(*cores, strict=True)] or [0] * _TICKS
    return Ticks(fields[3] + fields[4], fields[_STOLEN], sum(fields))


def _held_ms(group: Path) -> float | None:
    for line in read_text(group / "cpu.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in _HELD_PER_MS:
            return int(value) / _HELD_PER_MS[name]
    return None


def _numbers(paths: Iterable[Path]) -> list[float]:
    """The numbers in those of the files that can be read; a sensor may be there and not answer."""
    found = []
    for path in paths:
        try:
            found.append(float(read_text(path)))
        except ValueError:
            continue
    return found
