"""Describes the machine of a measurement and measures its load by other programs."""

import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from rsrefseg.engines.records import Record
from rsrefseg.engines.system.cores import usable_cores
from rsrefseg.engines.system.packages import installed_version

from .gpu import gpu_name

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "tensorrt", "tensorrt-rtx-cu13-libs")
_PACKAGES = ("rsrefseg", "numpy", "opencv-python-headless", *_RUNTIMES)
_WATCH_S = 0.5
_BUSY_SHARE = 0.1


class Machine(Record, frozen=True):
    """The machine and its software.

    Attributes:
        cpu: model name of the processor.
        usable_cores: number of cores this process may use.
        cores: number of cores of the machine.
        memory_mib: size of the main memory in MiB.
        gpu: name and driver of CUDA's first GPU; None if there is none or it is unknown.
        system: operating system and kernel.
        python: version of Python.
        versions: versions of installed packages that affect measurements.
    """

    cpu: str
    usable_cores: int
    cores: int
    memory_mib: float
    gpu: str | None
    system: str
    python: str
    versions: dict[str, str]


class CoreTimes(NamedTuple):
    """Core seconds of the cores this process is bound to, since the system started.

    Attributes:
        idle: idle time.
        stolen: time that the hypervisor gave to other virtual machines.
        own: time used by this process and its finished children.
        total: total time.
    """

    idle: float
    stolen: float
    own: float
    total: float

    def since(self, before: "CoreTimes") -> "CoreTimes":
        """Return the difference to an earlier reading."""
        return CoreTimes(*(now - then for now, then in zip(self, before, strict=True)))


def this_machine() -> Machine:
    """Describe this machine."""
    return Machine(
        cpu=_cpu_name(),
        usable_cores=usable_cores(),
        cores=os.cpu_count() or 1,
        memory_mib=psutil.virtual_memory().total / 2**20,
        gpu=gpu_name(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions={package: found for package in _PACKAGES if (found := installed_version(package)) is not None},
    )


def core_times() -> CoreTimes:
    """Read the time counters of the cores.

    All cores count in containers that number cores from 0 while the process is bound to the host's numbers.
    """
    process, cores = psutil.Process(), psutil.cpu_times(percpu=True)
    bound = process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(len(cores))
    if max(bound) < len(cores):
        cores = [cores[number] for number in bound]
    used = process.cpu_times()
    return CoreTimes(
        idle=sum(core.idle + getattr(core, "iowait", 0.0) for core in cores),
        stolen=sum(getattr(core, "steal", 0.0) for core in cores),
        own=used.user + used.system + used.children_user + used.children_system,
        # User time includes guest time.
        total=sum(sum(core) - getattr(core, "guest", 0.0) - getattr(core, "guest_nice", 0.0) for core in cores),
    )


def others_busy_share() -> float | None:
    """Return the fraction of this process's cores that other programs use during half a second of sleep.

    The result is None if unknown. Spinning threads of this process do not count.
    """
    before = core_times()
    time.sleep(_WATCH_S)
    passed = core_times().since(before)
    return max(0.0, passed.total - passed.idle - passed.own) / passed.total if passed.total > 0 else None


def busy_notes(shares: Iterable[float | None]) -> list[str]:
    """Return a note for the report if any ``others_busy_share`` exceeds 10%."""
    worst = max((share for share in shares if share is not None), default=0.0)
    return [f"other programs used {worst:.0%} of the cores: do not quote these figures"] if worst > _BUSY_SHARE else []


def peak_memory_mib() -> float | None:
    """Return the peak resident memory of this process in MiB; None without ``/proc``.

    ``ru_maxrss`` is unsuitable: on Linux a child process inherits the value of its parent.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), None)


def memory_notes(peaks_mib: Sequence[float | None]) -> list[str]:
    """Return a warning if programs with these peak memories may not fit into free memory together."""
    free_mib = psutil.virtual_memory().available / 2**20
    together = sum(peak for peak in peaks_mib if peak is not None)
    if together <= free_mib:
        return []
    return [
        f"the runners need up to {together / 2**10:.1f} GiB together and {free_mib / 2**10:.1f} GiB are free: the "
        "system may kill the measurement, so name fewer with --backends"
    ]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.lower().startswith(("model name", "hardware")))
    return next(names, None) or platform.processor() or platform.machine()
