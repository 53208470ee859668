"""OpenVINO as it is installed: imported without its telemetry, and which devices it can use here."""

import sys
import threading
from typing import Any

import numpy as np

from ..errors import MissingPartError

CPU, GPU = "CPU", "GPU"  # OpenVINO's names; its GPU plugin knows Intel's
_TELEMETRY = "openvino_telemetry"
_CORE: list[Any] = []  # the one of this process, once made
_CORE_LOCK = threading.Lock()


def why_unavailable(device: str = CPU) -> str | None:
    """Why OpenVINO cannot run on a device here, with the way out; ``None`` when it can."""
    try:
        devices = _core().available_devices
    except (ImportError, OSError) as error:  # a shared library may be missing
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        return f"openvino {reason}: pip install 'rsrefseg[openvino]'"
    except RuntimeError as error:  # a plugin's library is missing, or cannot be loaded
        return f"openvino cannot start: {' '.join(str(error).split())}"
    if _of_kind(device, devices):
        return None
    if device == CPU:
        return "this openvino has no CPU plugin: pip install 'rsrefseg[openvino]'"
    seen = ", ".join(devices) or "nothing"
    return f"openvino {version()} finds no Intel GPU here, only {seen}: where there is one, install its OpenCL driver"


def core(device: str = CPU) -> Any:
    """The ``openvino.Core`` of this process.

    Raises:
        MissingPartError: OpenVINO cannot run on the device here.
    """
    if (reason := why_unavailable(device)) is not None:
        raise MissingPartError(reason)
    return _core()


def chosen_device(device: str) -> str:
    """OpenVINO's name of the device to use: of several GPUs (``GPU.0``, ...) the first discrete one or the first."""
    first, *others = _of_kind(device, _core().available_devices)
    if not others:
        return first
    discrete = (name for name in (first, *others) if _core().get_property(name, "DEVICE_TYPE").name == "DISCRETE")
    return next(discrete, first)


def _of_kind(device: str, found: list[str]) -> list[str]:
    return [name for name in found if name.partition(".")[0] == device]


def _core() -> Any:
    """One core for all, which lives as long as the process.

    A core that uses OpenVINO's CPU plugin for the first time gives the calling thread another stack for signals, which
    goes with the last that uses the plugin (seen in OpenVINO 2026.4). Gone on another thread, or after the plugin of a
    later core, it leaves a thread with a stack that is freed, and the next signal that Python handles, such as Ctrl-C,
    ends the process. A plugin that never goes frees nothing.
    """
    library = package()  # also when the core is there: whether OpenVINO can be imported is asked of the import
    with _CORE_LOCK:
        if not _CORE:
            _read_a_constant(library)
            _CORE.append(library.Core())
        return _CORE[0]


def _read_a_constant(library: Any) -> None:
    """Have the bindings read a constant as an array for the first time while no other thread can.

    It makes them a static table of types, and lets go of Python's lock (GIL) in between. A thread that reads one then
    holds that lock and waits for the table, which waits for the lock: for ever (OpenVINO 2026.4). Stages that load
    together would hang so, one first load in seven.
    """
    library.opset13.constant(np.zeros(1, np.float32)).data.item()


def package() -> Any:
    """The package ``openvino``.

    Importing it sends an event to its makers and leaves an identifier in the home folder, both by a package that it
    does without where that is missing. Running a model is nobody's business, so it is missing during the import.

    Raises:
        ImportError: it is not installed, or one of its libraries cannot be loaded.
    """
    if "openvino" in sys.modules or _TELEMETRY in sys.modules:
        import openvino

        return openvino
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # how Python is told that there is no such module
    try:
        import openvino
    finally:
        del sys.modules[_TELEMETRY]
    return openvino


def version() -> str:
    """OpenVINO's version, without the build's name."""
    return str(package().__version__).partition("-")[0]


def computes_bf16() -> bool:
    """Whether this processor multiplies BF16 itself."""
    return "BF16" in _core().get_property(CPU, "OPTIMIZATION_CAPABILITIES")


def computes_fp16(device: str) -> bool:
    """Whether a GPU multiplies FP16. Where it does not, its plugin takes the hint all the same and computes in FP32."""
    return "FP16" in _core().get_property(device, "OPTIMIZATION_CAPABILITIES")


def product_name(device: str) -> str:
    """What its maker calls a device."""
    return str(_core().get_property(device, "FULL_DEVICE_NAME"))
