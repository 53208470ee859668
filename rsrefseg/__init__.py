"""RSRefSeg: referring segmentation of remote-sensing images, from training to the edge.

``from rsrefseg import Segmenter`` runs an exported bundle, ``from rsrefseg import RSRefSeg`` is the PyTorch model.
Names are imported on first use: importing this package loads neither PyTorch nor a runtime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoints.model_file import load_model as load_model
    from .data.formats import open_dataset as open_dataset
    from .data.samples import Dataset as Dataset
    from .data.samples import Sample as Sample
    from .engines.backends import Backend as Backend
    from .engines.backends import select_backend as select_backend
    from .engines.bundle.bundle import Bundle as Bundle
    from .engines.bundle.contracts import Geometry as Geometry
    from .engines.bundle.contracts import Stage as Stage
    from .engines.bundle.contracts import StageContract as StageContract
    from .engines.bundle.contracts import stage_contracts as stage_contracts
    from .engines.engine import Engine as Engine
    from .engines.errors import RSRefSegError as RSRefSegError
    from .engines.images.images import read_image as read_image
    from .engines.images.images import read_scene as read_scene
    from .engines.images.scene import Scene as Scene
    from .engines.results.results import write_results as write_results
    from .engines.segmentation import Segmentation as Segmentation
    from .engines.segmenter import EncodedImage as EncodedImage
    from .engines.segmenter import Segmenter as Segmenter
    from .engines.text import Tokenizer as Tokenizer
    from .evaluation.metrics import MetricsResult as MetricsResult
    from .evaluation.metrics import ReferringMetrics as ReferringMetrics
    from .model.config import ModelConfig as ModelConfig
    from .model.config import Preset as Preset
    from .model.config import model_config as model_config
    from .model.model import RSRefSeg as RSRefSeg
    from .model.model import build_model as build_model

# The names above, by module.
_HOMES = {
    ".checkpoints.model_file": ("load_model",),
    ".data.formats": ("open_dataset",),
    ".data.samples": ("Dataset", "Sample"),
    ".engines.backends": ("Backend", "select_backend"),
    ".engines.bundle.bundle": ("Bundle",),
    ".engines.bundle.contracts": ("Geometry", "Stage", "StageContract", "stage_contracts"),
    ".engines.engine": ("Engine",),
    ".engines.errors": ("RSRefSegError",),
    ".engines.images.images": ("read_image", "read_scene"),
    ".engines.images.scene": ("Scene",),
    ".engines.results.results": ("write_results",),
    ".engines.segmentation": ("Segmentation",),
    ".engines.segmenter": ("EncodedImage", "Segmenter"),
    ".engines.text": ("Tokenizer",),
    ".evaluation.metrics": ("MetricsResult", "ReferringMetrics"),
    ".model.config": ("ModelConfig", "Preset", "model_config"),
    ".model.model": ("RSRefSeg", "build_model"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'rsrefseg' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
