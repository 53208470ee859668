"""``rsrefseg doctor``: what this machine can run, and what is missing for the rest."""

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from .errors import RSRefSegError
from .onnxruntime.cuda import why_not_started
from .onnxruntime.engine import why_unavailable
from .onnxruntime.library import package as onnxruntime_package
from .openvino.library import GPU, chosen_device, computes_bf16, computes_fp16, product_name, version
from .openvino.library import why_unavailable as why_no_openvino
from .system.cores import usable_cores
from .tensorrt.library import Library

# Import names of the extra `train`, and of what it brings along.
TRAIN_MODULES = (
    "torch",
    "torchvision",
    "transformers",
    "segment_anything",
    "peft",
    "accelerate",
    "onnx",
    "onnxscript",
    "pycocotools",
    "psutil",
)


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
    python = f"Python {platform.python_version()}"
    machine = f"{platform.system()} {platform.machine()}, {python}, usable cores: {usable_cores()}{size}"
    runtimes = (_onnxruntime(), _openvino(), _openvino_gpu(), _onnxruntime_cuda(), _tensorrt())
    return Diagnosis(machine, (*runtimes, _training(), _cuda_training()))


def _onnxruntime() -> Ability:
    name = "infer, parity and bench on the CPU (onnxruntime)"
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        return Ability(name, False, "onnxruntime and onnxruntime-gpu are both installed: uninstall both, install one")
    if (reason := why_unavailable("cpu")) is not None:
        return Ability(name, False, reason)
    return Ability(name, True, _runtime())


def _openvino() -> Ability:
    name = "the same, in BF16 where the processor has it (openvino)"
    if (reason := why_no_openvino()) is not None:
        return Ability(name, False, reason)
    bf16 = "this processor has BF16" if computes_bf16() else "FP32 only, this processor has no BF16"
    return Ability(name, True, f"openvino {version()}, {bf16}")


def _openvino_gpu() -> Ability:
    name = "the same on an Intel GPU (openvino-gpu)"
    if (reason := why_no_openvino(GPU)) is not None:
        return Ability(name, False, reason)
    device = chosen_device(GPU)
    fp16 = "FP16" if computes_fp16(device) else "FP32 only, this GPU has no FP16"
    return Ability(name, True, f"openvino {version()}, {device} {product_name(device)}, {fp16}")


def _onnxruntime_cuda() -> Ability:
    name = "the same on an NVIDIA GPU (onnxruntime-cuda)"
    if (reason := why_unavailable("cuda")) is not None:
        return Ability(name, False, reason)
    if not _has_nvidia_gpu():
        return Ability(name, False, "no NVIDIA GPU is visible")
    if (reason := why_not_started()) is not None:
        return Ability(name, False, reason)
    return Ability(name, True, _runtime())


def _tensorrt() -> Ability:
    name = "build and run TensorRT engines (tensorrt)"
    try:
        return Ability(name, True, str(Library().platform))
    except RSRefSegError as error:
        return Ability(name, False, str(error))


def _training() -> Ability:
    name = "train, merge and export (torch)"
    missing = [module for module in TRAIN_MODULES if util.find_spec(module) is None]
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


def _runtime() -> str:
    return f"onnxruntime {onnxruntime_package().__version__}"


def _has_nvidia_gpu() -> bool:
    return any(path.exists() for path in _nvidia_files())


def _nvidia_files() -> Iterator[Path]:
    """Files of the driver: of a desktop or server card, of a Jetson's integrated GPU, under Windows' own Linux."""
    yield from Path("/dev").glob("nvidia[0-9]*")
    yield from map(Path, ("/dev/nvhost-gpu", "/dev/nvgpu", "/usr/lib/wsl/lib/libcuda.so.1"))


def _memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return None
