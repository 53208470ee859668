"""RSRefSeg: referring segmentation of remote-sensing images, from training to the edge.

``from rsrefseg import Segmenter`` runs an exported bundle, ``from rsrefseg import RSRefSeg`` is the PyTorch model.
Names are looked up when first used: importing this package loads neither PyTorch nor a runtime.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.bundle import Bundle
    from engines.errors import RSRefSegError
    from engines.images import read_image
    from engines.segmenter import Segmentation, Segmenter
    from engines.text import Tokenizer
    from rsrefseg.checkpoint import load_model
    from rsrefseg.config import ModelConfig, Preset, model_config
    from rsrefseg.data.samples import Dataset, Sample, open_dataset
    from rsrefseg.metrics import MetricsResult, ReferringMetrics
    from rsrefseg.model import RSRefSeg, build_model

__all__ = [
    "Bundle",
    "Dataset",
    "MetricsResult",
    "ModelConfig",
    "Preset",
    "RSRefSeg",
    "RSRefSegError",
    "ReferringMetrics",
    "Sample",
    "Segmentation",
    "Segmenter",
    "Tokenizer",
    "build_model",
    "load_model",
    "model_config",
    "open_dataset",
    "read_image",
]

_HOMES = {
    "Bundle": "engines.bundle",
    "Dataset": "rsrefseg.data.samples",
    "MetricsResult": "rsrefseg.metrics",
    "ModelConfig": "rsrefseg.config",
    "Preset": "rsrefseg.config",
    "RSRefSeg": "rsrefseg.model",
    "RSRefSegError": "engines.errors",
    "ReferringMetrics": "rsrefseg.metrics",
    "Sample": "rsrefseg.data.samples",
    "Segmentation": "engines.segmenter",
    "Segmenter": "engines.segmenter",
    "Tokenizer": "engines.text",
    "build_model": "rsrefseg.model",
    "load_model": "rsrefseg.checkpoint",
    "model_config": "rsrefseg.config",
    "open_dataset": "rsrefseg.data.samples",
    "read_image": "engines.images",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rsrefseg' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
