"""The machine that a measurement runs on, and how much of it other programs use."""

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

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "tensorrt")
_PACKAGES = ("rsrefseg", "numpy", "opencv-python-headless", *_RUNTIMES)
_WATCH_S = 0.5
_BUSY_SHARE = 0.1


class Machine(Record, frozen=True):
    """The machine and its software.

    Attributes:
        cpu: model name.
        usable_cores: cores this process may use.
        cores: cores of the machine.
        memory_mib: main memory.
        gpu: name and driver of CUDA's first GPU; None if there is none or it is unknown.
        system: operating system and kernel.
        python: version.
        versions: of the installed packages that affect the figures.
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
        idle: with nothing to do.
        stolen: given to other virtual machines by the hypervisor.
        own: used by this process and its finished children.
        total: all.
    """

    idle: float
    stolen: float
    own: float
    total: float

    def since(self, before: "CoreTimes") -> "CoreTimes":
        """The difference to an earlier reading."""
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
    """Read the processor's counters.

    A container may number its cores from 0 while the process is bound by the host's numbers: then all cores count.
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
        # A guest's time is part of the user's time.
        total=sum(sum(core) - getattr(core, "guest", 0.0) - getattr(core, "guest_nice", 0.0) for core in cores),
    )


def others_busy_share() -> float | None:
    """The share of this program's cores that other programs use while this one sleeps for half a second.

    None if unknown. Own threads that still spin after their work are not counted.
    """
    before = core_times()
    time.sleep(_WATCH_S)
    passed = core_times().since(before)
    return max(0.0, passed.total - passed.idle - passed.own) / passed.total if passed.total > 0 else None


def busy_notes(shares: Iterable[float | None]) -> list[str]:
    """A note for the report if ``others_busy_share`` was ever more than 10%."""
    worst = max((share for share in shares if share is not None), default=0.0)
    return [f"other programs used {worst:.0%} of the cores: do not quote these figures"] if worst > _BUSY_SHARE else []


def peak_memory_mib() -> float | None:
    """Peak resident memory of this process, MiB; None where ``/proc`` is missing.

    Not ``ru_maxrss``: on Linux a child inherits its parent's at the fork.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), None)


def memory_notes(peaks_mib: Sequence[float | None]) -> list[str]:
    """A warning if programs whose peak memory was measured one by one may not fit into free memory together."""
    free_mib = psutil.virtual_memory().available / 2**20
    together = sum(peak for peak in peaks_mib if peak is not None)
    if together <= free_mib:
        return []
    return [
        f"the runners took up to {together / 2**10:.1f} GiB one by one and {free_mib / 2**10:.1f} GiB are free: the "
        "system may kill a measurement of all at once, so name fewer with --backends"
    ]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.lower().startswith(("model name", "hardware")))
    return next(names, None) or platform.processor() or platform.machine()
