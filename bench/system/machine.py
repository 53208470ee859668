"""What a measurement was taken on; a figure without it means nothing."""

import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rsrefseg.engines.system.cores import usable_cores

from .nvidia_smi import ask
from .sensors import cpu_ticks, own_ticks

_PACKAGES = (
    "rsrefseg",
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "tensorrt",
)
_WATCH_S = 0.5
_BUSY_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and its software.

    Attributes:
        cpu: model name, as the system tells it.
        usable_cores: cores this process may use.
        cores: cores of the machine.
        memory_mib: main memory, ``None`` where the system does not tell.
        gpu: name and driver of the NVIDIA GPU that programs see, ``None`` where its driver does not tell.
        system: operating system and kernel.
        python: version.
        versions: of the packages that have a part in the figures and are installed.
    """

    cpu: str
    usable_cores: int
    cores: int
    memory_mib: float | None
    gpu: str | None
    system: str
    python: str
    versions: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def this_machine() -> Machine:
    """Describe the machine, now."""
    return Machine(
        cpu=_cpu_name(),
        usable_cores=usable_cores(),
        cores=os.cpu_count() or 1,
        memory_mib=_memory_mib(),
        gpu=_gpu(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions={package: found for package in _PACKAGES if (found := _version(package)) is not None},
    )


def others_busy_share() -> float | None:
    """The share of this program's cores that others keep busy while it sleeps; ``None`` if unknown.

    What this program's own threads do after their work, such as waiting for more of it, is not another's.
    """
    before, own_before = cpu_ticks(), own_ticks()
    time.sleep(_WATCH_S)
    after, own_after = cpu_ticks(), own_ticks()
    if before is None or after is None or (passed := after[0].since(before[0])).total <= 0:
        return None
    return max(0.0, passed.total - passed.idle - (own_after - own_before)) / passed.total


def busy_notes(shares: Iterable[float | None]) -> list[str]:
    """A line for the report when other programs had a part in its figures; none on a quiet machine."""
    worst = max((share for share in shares if share is not None), default=0.0)
    if worst <= _BUSY_SHARE:
        return []
    return [f"other programs kept {worst:.0%} of the cores busy: these figures are not fit to be quoted"]


def peak_memory_mib() -> float | None:
    """The most resident memory this process has had; ``None`` where the system does not tell.

    ``ru_maxrss`` is only the second choice: on Linux a child's starts from its parent's at the moment of the fork.
    """
    if (peak := _status_mib("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ModuleNotFoundError:
        return None
    # Bytes on macOS, KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)


def free_memory_mib() -> float | None:
    """What this system could give to programs now; ``None`` where it does not tell."""
    return _field_mib(Path("/proc/meminfo"), "MemAvailable")


def memory_notes(peaks_mib: Sequence[float | None], free_mib: float | None) -> list[str]:
    """A warning where programs that each took so much alone may not fit beside each other: the system would end them
    without a word. A sum of peaks is more than they need at the same time.
    """
    together = sum(peak for peak in peaks_mib if peak is not None)
    if free_mib is None or together <= free_mib:
        return []
    return [
        f"the contenders took up to {together / 2**10:.1f} GiB one by one and {free_mib / 2**10:.1f} are free: the "
        "system may end a measurement of all at once, so name fewer with --backends"
    ]


def _status_mib(field: str) -> float | None:
    return _field_mib(Path("/proc/self/status"), field)


def _memory_mib() -> float | None:
    return _field_mib(Path("/proc/meminfo"), "MemTotal")


def _field_mib(path: Path, field: str) -> float | None:
    """A field of a Linux table of ``name: value kB`` lines, in MiB."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{field}:")), None)


def _gpu() -> str | None:
    told = ask(("name", "driver_version"))
    return f"{told[0]}, driver {told[1]}" if told is not None else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.lower().startswith(("model name", "hardware")))
    return next(names, None) or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
