"""The package ``onnxruntime``, with its telemetry off."""

import os
from typing import Any

_TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"


def package() -> Any:
    """Import ``onnxruntime`` with its telemetry off, unless the user has set ``ORT_DISABLE_TELEMETRY``.

    From version 1.32 on its Linux builds write to ``~/.cache/Microsoft`` and look up a host as soon as they are
    imported. Every import of the package in this project goes through here.

    Raises:
        ImportError: it is not installed, or one of its libraries cannot be loaded.
    """
    os.environ.setdefault(_TELEMETRY_OFF, "1")
    import onnxruntime

    return onnxruntime
