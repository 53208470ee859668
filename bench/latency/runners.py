"""Creates runners by name: every backend of the engines, and PyTorch and ONNX baselines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.backends import Backend, select_backend
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.engine import Engine, Tensors
from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.engines.segmenter import EncodedImage, Segmenter

from .naive_export import NAIVE, NaiveRunner
from .runner import Prediction, Runner
from .torch_runners import TORCH, TORCH_RUNNERS, TorchRunner

_AT = "@"  # between a backend and its bundle
RUNNERS = (*TORCH_RUNNERS, NAIVE, *Backend)
_DEVICES: Mapping[str, str] = {
    Backend.ONNXRUNTIME_CUDA: "cuda",
    Backend.TENSORRT: "cuda",
    Backend.TENSORRT_RTX: "cuda",
    Backend.OPENVINO_GPU: "intel-gpu",
}


class EngineRunner(Runner):
    """Runs a backend of the engines through ``Segmenter`` without its cache of phrases.

    Args:
        engine: the backend with its bundle.
        folder: the engine's bundle as named in ``BACKEND@BUNDLE``; empty for the bundle of all other runners.
    """

    def __init__(self, engine: Engine, folder: str = "") -> None:
        super().__init__(engine.bundle)
        self.name, self.engine = f"{engine.name}{_AT}{folder}" if folder else engine.name, engine
        self.device = _DEVICES.get(engine.name, "cpu")
        self._segmenter = Segmenter(engine.bundle, engine, cached_phrases=0)

    def open(self) -> None:
        """Verify the digests of all graphs and weights."""
        for stage in Stage:
            self.bundle.graph_path(stage)

    def load(self) -> None:
        """Load all stages of the engine."""
        self.engine.load()
        self.providers = {stage: self.engine.provider_of(stage) for stage in Stage}
        self.precisions = {stage: self.engine.precision_of(stage) for stage in Stage}

    def encode(self, image: npt.NDArray[np.uint8]) -> EncodedImage:
        """Encode an image, (H, W, 3) uint8, as ``rsrefseg infer`` does."""
        return self._segmenter.encode_image(image)

    def predict(self, features: EncodedImage, phrases: Sequence[str], size: tuple[int, int]) -> Prediction:
        """Segment the phrases as ``rsrefseg infer`` does."""
        results = self._segmenter.segment(EncodedImage(*size, features.features), phrases)
        return Prediction(np.stack([one.mask_logits for one in results]), np.stack([one.mask for one in results]))

    def run(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """Run a stage; its time includes the engine's checks and TensorRT's copies to the host."""
        return self.engine.run_resident(stage, tensors)

    def to_host(self, tensor: Any) -> npt.NDArray[Any]:
        """Return an array, copied by the engine if necessary."""
        return tensor if isinstance(tensor, np.ndarray) else self.engine.to_host({"tensor": tensor})["tensor"]

    def close(self) -> None:
        """Free the engine."""
        self._segmenter.close()


def make_runner(name: str, bundle: Bundle, run: Path | None) -> Runner:
    """Create a runner.

    Args:
        name: one of ``RUNNERS``, or ``BACKEND@BUNDLE`` for a backend with another bundle of the same model.
        bundle: the bundle of all other runners.
        run: run with the bundle's model, for PyTorch; by default the latest.

    Raises:
        BadInputError: no runner has that name, or the other bundle is of another model.
        BundleError: the other bundle is missing or incomplete.
        MissingPartError: the runner cannot run here.
    """
    backend, _, folder = name.partition(_AT)
    if folder:
        if backend not in tuple(Backend):
            raise BadInputError(f"{backend} runs the model of a run, not a bundle: leave out '{_AT}{folder}'")
        other = Bundle.open(folder)
        if other.manifest.provenance.checkpoint_sha256 != bundle.manifest.provenance.checkpoint_sha256:
            raise BadInputError(f"the bundle '{folder}' is of another model: export it from the same run")
        return EngineRunner(select_backend(backend, other).engine, folder)
    if name in TORCH_RUNNERS:
        return TorchRunner(bundle, run, name)
    if name == NAIVE:
        return NaiveRunner(bundle, run)
    return EngineRunner(select_backend(name, bundle).engine)


def open_runners(names: Sequence[str], bundle: Bundle, run: Path | None) -> tuple[list[Runner], list[str]]:
    """Create and open runners; return them and notes about skipped ones.

    ``torch`` is skipped if PyTorch or the run is missing, as on an edge device, unless it is the only name or ``run``
    is given. Any other runner that cannot run here raises an error.

    Raises:
        BadInputError: there is no name, a name is unknown, or there is no run of the bundle's model.
        MissingPartError: a runner cannot run here.
    """
    wanted = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not wanted:
        raise BadInputError("no runner named: give --backends, e.g. torch,onnxruntime")
    if unknown := [name for name in wanted if name.partition(_AT)[0] not in RUNNERS]:
        raise BadInputError(f"unknown runner '{unknown[0]}': known are {', '.join(RUNNERS)}")
    opened: dict[str, Runner] = {}
    notes = []
    for name in wanted:
        try:
            runner = make_runner(name, bundle, run)
            runner.open()
        except (MissingPartError, BadInputError) as error:
            if name != TORCH or wanted == [TORCH] or run is not None:
                raise
            notes.append(f"without {name}: {error}")
        else:
            opened.setdefault(runner.name, runner)
            if runner.bundle.root != bundle.root:
                notes += [f"{runner.name}: {note}" for note in runner.bundle.manifest.notes]
    return list(opened.values()), notes
