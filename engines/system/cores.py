"""How many cores a process may really use."""

import math
import os
from pathlib import Path

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """Cores this process may use: those it is bound to, or fewer where a container's CPU quota allows no more.

    More threads than a quota has cores would be stopped together again and again, and wait for each other.

    Args:
        root: where ``/proc`` and ``/sys`` lie.
    """
    cores = bound_cores()
    bound = len(cores) if cores is not None else os.cpu_count() or 1
    quotas = [quota for group in cpu_groups(root) if (quota := _quota_of(group)) is not None]
    return max(1, min([bound, *(math.ceil(quota) for quota in quotas)]))


def bound_cores() -> set[int] | None:
    """Numbers of the cores this process is bound to, all of them if nobody bound it; ``None`` if unknown."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def cpu_groups(root: Path = _ROOT) -> list[Path]:
    """Folders of the control groups that hold this process's processor time: its own, then those above it.

    Not all of them need be there: a container may be told its whole path and see only its own group, at the top. Empty
    where the system has no control groups.

    Args:
        root: where ``/proc`` and ``/sys`` lie.
    """
    top = root / "sys" / "fs" / "cgroup"
    groups = []
    for line in read_text(root / "proc" / "self" / "cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if "cpu" in controllers.split(","):
            mount = top / "cpu"  # version 1
        elif not controllers:
            mount = top  # version 2 has one tree for all controllers
        else:
            continue
        names = [name for name in path.split("/") if name]
        if ".." in names:  # in a part of the tree that this process does not see
            names = []
        groups += [mount.joinpath(*names[:depth]) for depth in range(len(names), -1, -1)]
    return groups


def read_text(path: Path) -> str:
    """A small file of the system's; empty where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _quota_of(group: Path) -> float | None:
    """Cores' worth of processor time; ``None`` without a limit."""
    told = read_text(group / "cpu.max").split()
    if not told:
        told = [read_text(group / "cpu.cfs_quota_us"), read_text(group / "cpu.cfs_period_us")]
    try:
        quota, period = (int(text) for text in told)
        return quota / period if quota > 0 and period > 0 else None
    except (ValueError, OverflowError):  # "max", nothing, or something unknown
        return None
