"""RSRefSeg: referring segmentation of remote-sensing images, from training to the edge.

``from rsrefseg import Segmenter`` runs an exported bundle, ``from rsrefseg import RSRefSeg`` is the PyTorch model.
Names are imported on first use: importing this package loads neither PyTorch nor a runtime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoints.model_file import load_model
    from .data.formats import open_dataset
    from .data.samples import Dataset, Sample
    from .engines.backends import Backend, select_backend
    from .engines.bundle.bundle import Bundle
    from .engines.bundle.contracts import Geometry, Stage, StageContract, stage_contracts
    from .engines.engine import Engine
    from .engines.errors import RSRefSegError
    from .engines.images.images import read_image
    from .engines.results.results import write_results
    from .engines.segmenter import EncodedImage, Segmentation, Segmenter
    from .engines.text import Tokenizer
    from .evaluation.metrics import MetricsResult, ReferringMetrics
    from .model.config import ModelConfig, Preset, model_config
    from .model.model import RSRefSeg, build_model

__all__ = [
    "Backend",
    "Bundle",
    "Dataset",
    "EncodedImage",
    "Engine",
    "Geometry",
    "MetricsResult",
    "ModelConfig",
    "Preset",
    "RSRefSeg",
    "RSRefSegError",
    "ReferringMetrics",
    "Sample",
    "Segmentation",
    "Segmenter",
    "Stage",
    "StageContract",
    "Tokenizer",
    "build_model",
    "load_model",
    "model_config",
    "open_dataset",
    "read_image",
    "select_backend",
    "stage_contracts",
    "write_results",
]

_HOMES = {
    "Backend": ".engines.backends",
    "Bundle": ".engines.bundle.bundle",
    "Dataset": ".data.samples",
    "EncodedImage": ".engines.segmenter",
    "Engine": ".engines.engine",
    "Geometry": ".engines.bundle.contracts",
    "MetricsResult": ".evaluation.metrics",
    "ModelConfig": ".model.config",
    "Preset": ".model.config",
    "RSRefSeg": ".model.model",
    "RSRefSegError": ".engines.errors",
    "ReferringMetrics": ".evaluation.metrics",
    "Sample": ".data.samples",
    "Segmentation": ".engines.segmenter",
    "Segmenter": ".engines.segmenter",
    "Stage": ".engines.bundle.contracts",
    "StageContract": ".engines.bundle.contracts",
    "Tokenizer": ".engines.text",
    "build_model": ".model.model",
    "load_model": ".checkpoints.model_file",
    "model_config": ".model.config",
    "open_dataset": ".data.formats",
    "read_image": ".engines.images.images",
    "select_backend": ".engines.backends",
    "stage_contracts": ".engines.bundle.contracts",
    "write_results": ".engines.results.results",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rsrefseg' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
