"""The number of cores that a process may use, and their instructions for INT8."""

import math
import os
from pathlib import Path

_ROOT = Path("/")
# Flags of /proc/cpuinfo, the best first.
_INT8_FLAGS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "i8mm": "I8MM",
    "asimddp": "DotProd",
}


def usable_cores(root: Path = _ROOT) -> int:
    """Return the number of cores this process may use: its CPU affinity, limited by a container's CPU quota.

    Args:
        root: folder that contains ``/proc`` and ``/sys``.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in _cpu_groups(root) if (quota := _quota_of(group)) is not None]
    return max(1, min([bound, *map(math.ceil, quotas)]))


def _cpu_groups(root: Path) -> list[Path]:
    """Return the folders of this process's control groups (version 2), from its own to the top; some may not exist."""
    paths = [line[3:] for line in _read_text(root / "proc/self/cgroup").splitlines() if line.startswith("0::")]
    names = [name for path in paths for name in path.split("/") if name]
    if ".." in names:  # in a part of the tree that is hidden from this process
        names = []
    top = root / "sys/fs/cgroup"
    return [top.joinpath(*names[:depth]) for depth in range(len(names), -1, -1)] if paths else []


def _read_text(path: Path) -> str:
    """Return the text of a small system file; empty if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _quota_of(group: Path) -> float | None:
    """Return the CPU quota of a control group as a number of cores; ``None`` without a limit."""
    try:
        quota, period = (int(text) for text in _read_text(group / "cpu.max").split())
        return quota / period if quota > 0 and period > 0 else None
    except (ValueError, OverflowError):  # "max", nothing, or something unknown
        return None


def int8_instructions(root: Path = _ROOT) -> str | None:
    """Return the name of this processor's instructions for sums of 8-bit products; empty without, None if unknown.

    Args:
        root: folder that contains ``/proc``.
    """
    flags = {flag for line in _read_text(root / "proc/cpuinfo").splitlines() for flag in line.lower().split()}
    return next((name for flag, name in _INT8_FLAGS.items() if flag in flags), "") if flags else None
