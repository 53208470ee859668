"""Runs a bundle without PyTorch: what an edge device installs.

``from engines import Segmenter`` is the way in. Names are looked up when first used, so that importing this package
costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.backends import Backend, select_backend
    from engines.bundle import Bundle
    from engines.contracts import Geometry, Stage, StageContract, stage_contracts
    from engines.engine import Engine
    from engines.errors import RSRefSegError
    from engines.images import read_image
    from engines.result import write_results
    from engines.segmenter import EncodedImage, Segmentation, Segmenter

__all__ = [
    "Backend",
    "Bundle",
    "EncodedImage",
    "Engine",
    "Geometry",
    "RSRefSegError",
    "Segmentation",
    "Segmenter",
    "Stage",
    "StageContract",
    "read_image",
    "select_backend",
    "stage_contracts",
    "write_results",
]

_HOMES = {
    "Backend": "backends",
    "Bundle": "bundle",
    "EncodedImage": "segmenter",
    "Engine": "engine",
    "Geometry": "contracts",
    "RSRefSegError": "errors",
    "Segmentation": "segmenter",
    "Segmenter": "segmenter",
    "Stage": "contracts",
    "StageContract": "contracts",
    "read_image": "images",
    "select_backend": "backends",
    "stage_contracts": "contracts",
    "write_results": "result",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'engines' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"engines.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
