"""Imports OpenVINO without its telemetry, and finds the devices it can use."""

import sys
import threading
from typing import Any

import numpy as np

from ..errors import MissingPartError, NotInstalledError

CPU, GPU = "CPU", "GPU"  # OpenVINO's names; its GPU plugin supports Intel GPUs
_TELEMETRY = "openvino_telemetry"
_CORE: list[Any] = []  # the core of this process, once created
_CORE_LOCK = threading.Lock()


def unavailable_reason(device: str = CPU) -> str | None:
    """Return why OpenVINO cannot run on a device of this machine, with a hint; ``None`` if it can."""
    try:
        core(device)
    except MissingPartError as error:
        return str(error)
    return None


def core(device: str = CPU) -> Any:
    """Return the ``openvino.Core`` of this process.

    Raises:
        MissingPartError: OpenVINO cannot run on the device.
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
            f"openvino {version()} finds no Intel GPU, only {', '.join(devices) or 'nothing'}:"
            " if this machine has one, install its OpenCL driver"
        )
    return found


def chosen_device(device: str) -> str:
    """Return OpenVINO's name of the device to use; of several GPUs (``GPU.0``, ...) the first discrete or the first."""
    names = _of_kind(device, _core().available_devices)
    if len(names) == 1:
        return names[0]
    discrete = (name for name in names if _core().get_property(name, "DEVICE_TYPE").name == "DISCRETE")
    return next(discrete, names[0])


def _of_kind(device: str, found: list[str]) -> list[str]:
    return [name for name in found if name.partition(".")[0] == device]


def _core() -> Any:
    """Return the shared core, which lives as long as the process.

    The first use of OpenVINO's CPU plugin by a core sets another signal stack for the calling thread and frees it with
    the last user of the plugin (OpenVINO 2026.4). If that happens on another thread, or after the plugin of a later
    core is freed, a thread keeps a dangling stack, and the next signal that Python handles, such as Ctrl-C, ends the
    process. A plugin that is never unloaded frees nothing.
    """
    library = package()  # also if the core exists, so that a missing package is reported
    with _CORE_LOCK:
        if not _CORE:
            _read_a_constant(library)
            _CORE.append(library.Core())
        return _CORE[0]


def _read_a_constant(library: Any) -> None:
    """Read a constant as an array for the first time while no other thread can.

    The first read creates a static table of types in the bindings and releases the GIL meanwhile. A second thread that
    reads a constant then holds the GIL and waits for the table, whose creator waits for the GIL: stages that load in
    parallel deadlock (OpenVINO 2026.4).
    """
    library.opset13.constant(np.zeros(1, np.float32)).data.item()


def package() -> Any:
    """Import ``openvino`` without its telemetry.

    The import normally sends an event to OpenVINO's developers and stores an identifier in the home folder, both by the
    optional package ``openvino_telemetry``. This function hides that package during the import.

    Raises:
        ImportError: the package is not installed, or one of its libraries cannot be loaded.
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
    """Return OpenVINO's version without the build name."""
    return str(package().__version__).partition("-")[0]


def computes_bf16() -> bool:
    """Return whether this processor has BF16 arithmetic."""
    return "BF16" in _core().get_property(CPU, "OPTIMIZATION_CAPABILITIES")


def computes_fp16(device: str) -> bool:
    """Return whether a GPU has FP16 arithmetic. If it has none, its plugin accepts the hint and computes in FP32."""
    return "FP16" in _core().get_property(device, "OPTIMIZATION_CAPABILITIES")


def product_name(device: str) -> str:
    """Return the product name of a device."""
    return str(_core().get_property(device, "FULL_DEVICE_NAME"))
