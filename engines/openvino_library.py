"""OpenVINO as it is installed: imported without its telemetry, and what its CPU plugin can do here."""

import sys
import threading
from typing import Any

from engines.errors import MissingPartError

DEVICE = "CPU"
_TELEMETRY = "openvino_telemetry"
_CORE: list[Any] = []  # the one of this process, once made
_CORE_LOCK = threading.Lock()


def why_unavailable() -> str | None:
    """Why OpenVINO cannot run here, with the way out; ``None`` when it can."""
    try:
        devices = _core().available_devices
    except ImportError as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        return f"openvino {reason}: pip install 'rsrefseg[openvino]'"
    except RuntimeError as error:  # a plugin's library is missing, or cannot be loaded
        return f"openvino cannot start: {' '.join(str(error).split())}"
    return None if DEVICE in devices else "this openvino has no CPU plugin: pip install 'rsrefseg[openvino]'"


def core() -> Any:
    """The ``openvino.Core`` of this process.

    Raises:
        MissingPartError: OpenVINO cannot run here.
    """
    if (reason := why_unavailable()) is not None:
        raise MissingPartError(reason)
    return _core()


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
            _CORE.append(library.Core())
        return _CORE[0]


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
    return "BF16" in _core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
