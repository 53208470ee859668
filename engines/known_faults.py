"""Versions of TensorRT that are known to give wrong results, or not to run, on some GPUs."""

import re
from pathlib import Path
from typing import NamedTuple

from .tensorrt.library import Library

_JETSON = Path("/etc/nv_tegra_release")
_ISSUE = "https://github.com/NVIDIA/TensorRT/issues/"


class _Fault(NamedTuple):
    versions: str  # pattern of the start of the version
    gpus: tuple[str, ...]  # compute capabilities; empty for all
    what: str


# Reports of related models, vision transformers most of all. All were found by comparing with the FP32 model.
_REPORTED = (
    _Fault(r".", ("12.0", "12.1"), f"fused attention in half precision can be wrong on this GPU ({_ISSUE}4837)"),
    _Fault(r"10\.3\.", (), f"vision transformers in FP16 can be wrong ({_ISSUE}4723)"),
    _Fault(r"10\.4\.", (), f"vision transformers can be wrong, in FP32 as well ({_ISSUE}4742)"),
    _Fault(r"10\.7\.", (), f"attention from PyTorch can be wrong ({_ISSUE}4333)"),
    _Fault(
        r"10\.13\.",
        ("11.0",),
        "projections of attention can be wrong for one image (https://github.com/NVIDIA/TensorRT-Edge-LLM/issues/151)",
    ),
)


def known_faults(library: Library, compute_capability: str, jetson: bool | None = None) -> tuple[str, ...]:
    """Return what is known to be wrong with a version of TensorRT on a GPU, one line each.

    Args:
        library: the kind of TensorRT.
        compute_capability: that of the GPU, e.g. ``8.7``.
        jetson: whether this machine is a Jetson; by default as the system says.
    """
    found = [
        fault.what
        for fault in _REPORTED
        if re.match(fault.versions, library.version) and compute_capability in (fault.gpus or (compute_capability,))
    ]
    if _JETSON.exists() if jetson is None else jetson:
        if "site-packages" in str(getattr(library.module, "__file__", "")):
            found.append("TensorRT from pip does not run on a Jetson: use the one of JetPack")
        if library.version.startswith("11."):
            found.append("TensorRT 11 runs on AGX Orin and Thor only, from JetPack 7.2.2 on")
    return tuple(found)
