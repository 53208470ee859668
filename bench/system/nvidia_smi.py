"""What NVIDIA's driver tells of a GPU through its own tool, ``nvidia-smi``."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_SECONDS = 10.0
# Current drivers call them event reasons, those before 535 throttle reasons.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_FIGURES = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "memory.used")
_IDLE = 0x1
# The other bits say why clocks are where they were asked to be, not that something holds them back.
_SLOWED_BY = {
    0x4: "its power limit",
    0x8: "a hardware slowdown",
    0x20: "its temperature limit (driver)",
    0x40: "its temperature limit (hardware)",
    0x80: "the power supply's brake",
}


@dataclass(frozen=True, slots=True)
class GpuReading:
    """A GPU now; ``None`` where the driver does not tell.

    Attributes:
        clock_mhz, memory_clock_mhz: of the multiprocessors and of the memory; an idle GPU's are not told.
        temperature_c: of the chip.
        power_w: of the board.
        memory_used_mib: by all processes.
        slowed_by: what holds its clocks down.
    """

    clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    memory_used_mib: float | None = None
    slowed_by: tuple[str, ...] = ()


def ask(fields: Sequence[str]) -> list[str] | None:
    """Fields of the first GPU that CUDA programs see, as text without units; ``None`` where there is no answer."""
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    command = [program, f"--id={_first_visible()}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    values = [value.strip() for value in asked.stdout.partition("\n")[0].split(",")]
    return values if asked.returncode == 0 and len(values) == len(fields) else None


def read_gpu() -> GpuReading | None:
    """Clocks, temperature, power, memory and what slows it; ``None`` without a GPU that the tool knows."""
    for reasons in _REASONS:
        if (answer := ask((*_FIGURES, reasons))) is not None:
            break
    else:
        return None
    clock, memory_clock, temperature, power, memory = (_number(text) for text in answer[:-1])
    bits = _bits(answer[-1])
    if bits & _IDLE:
        clock = memory_clock = None
    slowed_by = tuple(reason for bit, reason in _SLOWED_BY.items() if bits & bit)
    return GpuReading(clock, memory_clock, temperature, power, memory, slowed_by)


def gpu_memory_used_mib() -> float | None:
    """Device memory that all processes have taken, MiB; ``None`` if unknown."""
    answer = ask(("memory.used",))
    return _number(answer[0]) if answer is not None else None


def _first_visible() -> str:
    """Its index or name; the tool does not know the slices of a divided GPU by theirs."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    return first if first.isdecimal() or first.startswith("GPU-") else "0"


def _number(text: str) -> float | None:
    """``[N/A]`` and ``[Not Supported]`` are no numbers."""
    try:
        return float(text)
    except ValueError:
        return None


def _bits(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0
