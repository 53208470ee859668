"""``rsrefseg doctor``: what this machine can run, and what is missing for the rest."""

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing the toolkit can do: whether it works here, and with what, or what is missing."""

    name: str
    works: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The machine in a line, and every ability."""

    machine: str
    abilities: tuple[Ability, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    def render(self) -> str:
        """One line per ability."""
        width = max(len(ability.name) for ability in self.abilities)
        lines = [f"{'yes' if row.works else 'no ':3}  {row.name:{width}}  {row.detail}" for row in self.abilities]
        return "\n".join([self.machine, *lines])


def examine() -> Diagnosis:
    """Look at installed packages and devices; nothing is loaded that is not needed to know."""
    memory = _memory_gib()
    size = f", {memory:.0f} GiB" if memory is not None else ""
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {_cores()} cores{size}"
    return Diagnosis(machine, (_onnxruntime(), _onnxruntime_cuda(), _tensorrt(), _training(), _cuda_training()))


def _onnxruntime() -> Ability:
    name = "infer, parity and bench on the CPU (onnxruntime)"
    if (version := _version("onnxruntime", "onnxruntime-gpu")) is None:
        return Ability(name, False, "install it with `pip install 'rsrefseg[cpu]'`")
    both = [package for package in ("onnxruntime", "onnxruntime-gpu") if _version(package)]
    if len(both) == 2:
        return Ability(name, False, "onnxruntime and onnxruntime-gpu are both installed: uninstall both, install one")
    return Ability(name, True, version)


def _onnxruntime_cuda() -> Ability:
    name = "the same on an NVIDIA GPU (onnxruntime-cuda)"
    if _version("onnxruntime-gpu") is None:
        return Ability(
            name, False, "install onnxruntime-gpu with `pip install 'rsrefseg[cuda]'` (not beside onnxruntime)"
        )
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return Ability(name, False, "this onnxruntime-gpu was built without CUDA")
    if not _has_nvidia_gpu():
        return Ability(name, False, "no NVIDIA GPU is visible")
    return Ability(name, True, f"onnxruntime-gpu {_version('onnxruntime-gpu')}")


def _tensorrt() -> Ability:
    name = "TensorRT engines"
    version = _version("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
    found = f"{version} is installed, but " if version else ""
    return Ability(name, False, f"{found}this release does not build engines yet")


def _training() -> Ability:
    name = "train, merge and export (torch)"
    missing = [
        module
        for module in ("torch", "transformers", "segment_anything", "peft", "accelerate", "onnxscript")
        if util.find_spec(module) is None
    ]
    if missing:
        return Ability(name, False, f"{', '.join(missing)} missing: `pip install 'rsrefseg[train]'`")
    return Ability(name, True, f"torch {_version('torch')}, transformers {_version('transformers')}")


def _cuda_training() -> Ability:
    name = "train on an NVIDIA GPU"
    if util.find_spec("torch") is None:
        return Ability(name, False, "torch is missing: `pip install 'rsrefseg[train]'`")
    if not _has_nvidia_gpu():
        return Ability(name, False, "no NVIDIA GPU is visible")
    build = _version("torch") or ""
    if "+cpu" in build:
        return Ability(name, False, f"torch {build} is a CPU build")
    return Ability(name, True, f"torch {build}")


def _version(*packages: str) -> str | None:
    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def _has_nvidia_gpu() -> bool:
    # The driver's own device files: a desktop or server card, or a Jetson's integrated GPU.
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu"))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return None
