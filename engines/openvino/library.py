"""OpenVINO as it is installed: imported without its telemetry, and the devices it can use here."""

import sys
import threading
from typing import Any

import numpy as np

from ..errors import MissingPartError, NotInstalledError

CPU, GPU = "CPU", "GPU"  # OpenVINO's names; its GPU plugin knows Intel's
_TELEMETRY = "openvino_telemetry"
_CORE: list[Any] = []  # the one of this process, once made
_CORE_LOCK = threading.Lock()


def unavailable_reason(device: str = CPU) -> str | None:
    """Why OpenVINO cannot run on a device here, with a hint; ``None`` when it can."""
    try:
        core(device)
    except MissingPartError as error:
        return str(error)
    return None


def core(device: str = CPU) -> Any:
    """The ``openvino.Core`` of this process.

    Raises:
        MissingPartError: OpenVINO cannot run on the device here.
    """
    try:
        found = _core()
        devices = found.available_devices
    except ModuleNotFoundError as error:
        raise NotInstalledError("openvino is not installed: pip install 'rsrefseg[openvino]'") from error
    except (ImportError, OSError) as error:  # a shared library may be missing
        raise MissingPartError(f"openvino cannot be imported ({error}): pip install 'rsrefseg[openvino]'") from error
    except RuntimeError as error:  # a plugin's library is missing, or cannot be loaded
        raise MissingPartError(f"openvino cannot start: {' '.join(str(error).split())}") from error
    if not _of_kind(device, devices):
        if device == CPU:
            raise MissingPartError("this openvino has no CPU plugin: pip install 'rsrefseg[openvino]'")
        raise MissingPartError(
            f"openvino {version()} finds no Intel GPU here, only {', '.join(devices) or 'nothing'}:"
            " where there is one, install its OpenCL driver"
        )
    return found


def chosen_device(device: str) -> str:
    """OpenVINO's name of the device to use: of several GPUs (``GPU.0``, ...) the first discrete one or the first."""
    names = _of_kind(device, _core().available_devices)
    if len(names) == 1:
        return names[0]
    discrete = (name for name in names if _core().get_property(name, "DEVICE_TYPE").name == "DISCRETE")
    return next(discrete, names[0])


def _of_kind(device: str, found: list[str]) -> list[str]:
    return [name for name in found if name.partition(".")[0] == device]


def _core() -> Any:
    """One core for all, which lives as long as the process.

    A core that uses OpenVINO's CPU plugin for the first time gives the calling thread another stack for signals, which
    is freed with the last user of the plugin (seen in OpenVINO 2026.4). Freed on another thread, or after the plugin of
    a later core, it leaves a thread with a dangling stack, and the next signal that Python handles, such as Ctrl-C,
    ends the process. A plugin that is never unloaded frees nothing.
    """
    library = package()  # also when the core is there, so that a missing package is noticed
    with _CORE_LOCK:
        if not _CORE:
            _read_a_constant(library)
            _CORE.append(library.Core())
        return _CORE[0]


def _read_a_constant(library: Any) -> None:
    """Read a constant as an array for the first time while no other thread can.

    The first read makes a static table of types in the bindings and releases Python's lock (GIL) meanwhile. A thread
    that then reads another constant takes that lock and waits for the table, whose maker waits for the lock: a deadlock
    (OpenVINO 2026.4) for stages that load in parallel.
    """
    library.opset13.constant(np.zeros(1, np.float32)).data.item()


def package() -> Any:
    """The package ``openvino``, without its telemetry.

    Its import would send an event to its makers and leave an identifier in the home folder, both by the package
    ``openvino_telemetry``, without which it works as well: that package is hidden during the import.

    Raises:
        ImportError: it is not installed, or one of its libraries cannot be loaded.
    """
    if "openvino" in sys.modules or _TELEMETRY in sys.modules:
        import openvino

        return openvino
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # makes its import fail
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
    """Whether a GPU multiplies FP16. Where it does not, its plugin accepts the hint and computes in FP32."""
    return "FP16" in _core().get_property(device, "OPTIMIZATION_CAPABILITIES")


def product_name(device: str) -> str:
    """The product name of a device."""
    return str(_core().get_property(device, "FULL_DEVICE_NAME"))
