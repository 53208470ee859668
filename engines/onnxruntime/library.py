"""Imports ``onnxruntime`` with its telemetry off."""

import os
from typing import Any

_TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"


def package() -> Any:
    """Import ``onnxruntime`` with its telemetry off, unless the user has set ``ORT_DISABLE_TELEMETRY``.

    From version 1.32 on, importing a Linux build writes to ``~/.cache/Microsoft`` and looks up a host. This project
    imports the package only through this function.

    Raises:
        ImportError: the package is not installed, or one of its libraries cannot be loaded.
    """
    os.environ.setdefault(_TELEMETRY_OFF, "1")
    import onnxruntime

    return onnxruntime


def quantization() -> Any:
    """Import ``onnxruntime.quantization``, which needs ``onnx``; see ``package``."""
    package()
    import onnxruntime.quantization

    return onnxruntime.quantization
