"""``rsrefseg doctor``: report what this machine can run, and what is missing for the rest."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import util
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from .errors import BadInputError, MissingPartError, NotInstalledError, RSRefSegError
from .hub.bases import BASES, CHECKPOINTS, bases_of, cached_weights
from .hub.fetch import hub_library
from .onnxruntime.library import package
from .system.cores import int8_instructions, usable_cores
from .system.packages import RUNTIME, TRAIN, how_to_install, import_problem, installed_version

_WSL_DRIVER = "/usr/lib/wsl/lib/libcuda.so.1"


@dataclass(frozen=True)
class Ability:
    """One ability of the toolkit: whether it works on this machine, and the versions used or the part missing."""

    name: str
    works: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """A one-line description of the machine, and every ability."""

    machine: str
    abilities: tuple[Ability, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        return asdict(self)

    def render(self) -> str:
        """Return the report as text, one line per ability."""
        width = max(len(ability.name) for ability in self.abilities)
        lines = [f"{'yes' if row.works else 'no ':3}  {row.name:{width}}  {row.detail}" for row in self.abilities]
        return "\n".join([self.machine, *lines])


def examine() -> Diagnosis:
    """Check installed packages and devices. The report includes checks that fail and packages that are broken."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    python = f"Python {platform.python_version()}"
    machine = f"{platform.system()} {platform.machine()}, {python}, usable cores: {usable_cores()}, {memory:.0f} GiB"
    abilities = {check: _ability(name, check) for name, check in _CHECKS.items()}
    targets = next((targets for check, targets in _TARGETS.items() if abilities[check].works), ())
    bundle = _bundle(targets) if targets and abilities[_packages].works else ()
    return Diagnosis(machine, (*abilities.values(), *bundle))


def _ability(name: str, check: Callable[[], str]) -> Ability:
    try:
        return Ability(name, True, check())
    except RSRefSegError as error:
        return Ability(name, False, str(error))
    except Exception as error:
        if (problem := import_problem(error)) is None:
            raise
        return Ability(name, False, problem)


def _require(reason: str | None) -> None:
    """Raise ``MissingPartError`` with a reason, unless the reason is None or empty."""
    if reason:
        raise MissingPartError(reason)


def _packages() -> str:
    problems = []
    for name in RUNTIME:
        try:
            resolve_name(name)
        except Exception as error:
            problems.append(import_problem(error) or f"the package '{name}' is broken ({error!r})")
    _require("; ".join(dict.fromkeys(problems)))
    return ", ".join(f"{name} {installed_version(name)}" for name in ("numpy", "tokenizers", "msgspec"))


def _onnxruntime() -> str:
    from .onnxruntime.engine import unavailable_reason

    both = installed_version("onnxruntime") and installed_version("onnxruntime-gpu")
    _require("onnxruntime and onnxruntime-gpu are both installed: uninstall both, install one" if both else None)
    _require(unavailable_reason("cpu"))
    return f"{_runtime()}, {_int8()}"


def _openvino() -> str:
    from .openvino.library import computes_bf16, unavailable_reason, version

    _require(unavailable_reason())
    bf16 = "this processor has BF16" if computes_bf16() else "FP32 only, this processor has no BF16"
    return f"openvino {version()}, {bf16}, {_int8()}"


def _openvino_gpu() -> str:
    from .openvino.library import GPU, chosen_device, computes_fp16, product_name, unavailable_reason, version

    _require(unavailable_reason(GPU))
    device = chosen_device(GPU)
    fp16 = "FP16" if computes_fp16(device) else "FP32 only, this GPU has no FP16"
    return f"openvino {version()}, {device} {product_name(device)}, {fp16}"


def _onnxruntime_cuda() -> str:
    from .onnxruntime.cuda import cuda_unavailable_reason
    from .onnxruntime.engine import unavailable_reason

    _require(unavailable_reason("cuda"))
    _require_nvidia_gpu()
    _require(cuda_unavailable_reason())
    return _runtime()


def _tensorrt() -> str:
    from .known_faults import known_faults
    from .tensorrt.cuda import Cuda
    from .tensorrt.library import gpu_platform, open_tensorrt

    library, gpu = open_tensorrt(), Cuda().gpu
    faults = known_faults(library, gpu.compute_capability)
    return _with_faults(str(gpu_platform(library, gpu)), faults, "tensorrt")


def _tensorrt_rtx() -> str:
    from .known_faults import known_faults
    from .tensorrt.cuda import Cuda
    from .tensorrt.gpus import parse_gpus
    from .tensorrt.library import gpu_platform, open_rtx

    library = open_rtx()
    try:
        gpu = Cuda().gpu
    except MissingPartError as error:
        return f"{library}, compiles only: {error}"
    try:
        parse_gpus(f"sm{gpu.compute_capability.replace('.', '')}")
    except BadInputError as error:
        return f"{library}, compiles only: {error}"
    faults = known_faults(library, gpu.compute_capability)
    return _with_faults(str(gpu_platform(library, gpu)), faults, "tensorrt-rtx")


def _with_faults(text: str, faults: tuple[str, ...], backend: str) -> str:
    check = f"check with `rsrefseg parity --backend {backend}`"
    return f"{text}; known faults: {'; '.join(faults)}: {check}" if faults else text


def _bundle(targets: Sequence[str]) -> tuple[Ability, ...]:
    """Report whether the default bundle was exported for one of the targets; return nothing if it does not exist."""
    from .bundle.bundle import Bundle, default_bundle_path

    def check() -> str:
        bundle = Bundle.open()
        _require(bundle.manifest.note_for(*targets))
        return f"'{bundle.root}' was exported for it"

    return (_ability("run the default bundle at full speed", check),) if default_bundle_path().exists() else ()


def _weights(preset: str) -> str:
    """Name the weights of a preset or checkpoint in the hub's cache; those of a large file have its SHA-256 as name."""
    found = {base: cached_weights(base) for base in bases_of(preset)}
    named = ", ".join(f"{base.name} {base.size_gb} GB" for base, path in found.items() if path is None)
    if named:
        reason = f"`rsrefseg download {preset}` gets them ({named})"
        try:
            hub_library()
        except NotInstalledError as error:
            reason = f"{error}; then {reason}"
        raise MissingPartError(reason)
    return ", ".join(f"{base.name} ({path.resolve().name[:12]})" for base, path in found.items() if path is not None)


def _training() -> str:
    missing = [module for module in TRAIN if util.find_spec(module) is None]
    _require(f"{', '.join(missing)} missing: `pip install {how_to_install(missing[0])}`" if missing else None)
    return f"torch {installed_version('torch')}, transformers {installed_version('transformers')}"


def _cuda_training() -> str:
    _require("torch is missing: `pip install 'rsrefseg[train]'`" if util.find_spec("torch") is None else None)
    _require_nvidia_gpu()
    build = installed_version("torch") or ""
    _require(f"torch {build} is a CPU build" if "+cpu" in build else None)
    return f"torch {build}"


_CHECKS: dict[str, Callable[[], str]] = {
    "read images, phrases and bundles": _packages,
    "infer, parity and bench on the CPU (onnxruntime)": _onnxruntime,
    "infer, parity and bench on the CPU, BF16 or FP32 (openvino)": _openvino,
    "infer, parity and bench on an Intel GPU (openvino-gpu)": _openvino_gpu,
    "infer, parity and bench on an NVIDIA GPU (onnxruntime-cuda)": _onnxruntime_cuda,
    "build and run TensorRT engines (tensorrt)": _tensorrt,
    "compile for named NVIDIA GPUs, and run on this one (tensorrt-rtx)": _tensorrt_rtx,
    "train, merge and export (torch)": _training,
    "train on an NVIDIA GPU": _cuda_training,
    **{f"train preset {preset} from published weights": partial(_weights, preset) for preset in BASES},
    **{f"convert the published checkpoint {name}": partial(_weights, name) for name in CHECKPOINTS},
}

# Targets of an export that suit a runtime, the best runtime and the best target first.
_TARGETS = {
    _tensorrt: ("tensorrt",),
    _onnxruntime_cuda: ("onnxruntime-cuda", "tensorrt"),
    _onnxruntime: ("onnxruntime", "openvino"),
    _openvino: ("openvino", "onnxruntime"),
}


def _int8() -> str:
    instructions = int8_instructions()
    if instructions is None:
        return "instructions for INT8 unknown"
    if not instructions:
        return "no VNNI or AMX: INT8 bundles run and are smaller, but need not be faster"
    return f"{instructions}: INT8 bundles are faster"


def _runtime() -> str:
    return f"onnxruntime {package().__version__}"


def _require_nvidia_gpu() -> None:
    """Fail if no device file of an NVIDIA driver exists (desktop or server GPU, Jetson, WSL)."""
    files = (*Path("/dev").glob("nvidia[0-9]*"), *map(Path, ("/dev/nvhost-gpu", "/dev/nvgpu", _WSL_DRIVER)))
    _require(None if any(path.exists() for path in files) else "no NVIDIA GPU is visible")
