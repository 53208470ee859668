"""Who is measured: PyTorch, and every backend of the engines, behind one face."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engines.backends import Backend, select_backend
from engines.bundle import Bundle
from engines.contracts import Stage
from engines.engine import Engine
from engines.errors import BadInputError, MissingPartError
from engines.onnxruntime_engine import usable_cores

if TYPE_CHECKING:
    from rsrefseg.model import RSRefSeg

TORCH = "torch"

Tensors = dict[str, Any]


class Contender(ABC):
    """Runs the five stages of one model, in its own tensors: what a stage gives can be handed to the next as it is.

    Opening one imports its runtime and checks that it can run here; :meth:`load` brings the weights in.

    Attributes:
        name: as ``--backends`` takes it.
        bundle: the model, and the contracts of its stages.
    """

    name: str

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @property
    @abstractmethod
    def threads(self) -> int:
        """CPU threads it computes with."""

    @abstractmethod
    def load(self) -> None:
        """Load all stages."""

    @abstractmethod
    def providers(self) -> dict[str, str]:
        """What really runs each stage, once loaded."""

    @abstractmethod
    def run(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """Run a stage to its end on those of the tensors that its contract names: host arrays or its own."""

    @abstractmethod
    def to_host(self, tensor: Any) -> npt.NDArray[Any]:
        """One of its own tensors as an array."""

    @abstractmethod
    def close(self) -> None:
        """Free what was loaded."""


class EngineContender(Contender):
    """A backend of the engines."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.bundle)
        self.name = engine.name
        self.engine = engine

    @property
    def threads(self) -> int:
        """The engines' own default."""
        return usable_cores()

    def load(self) -> None:
        """Check the files' digests and build all sessions."""
        self.engine.load()

    def providers(self) -> dict[str, str]:
        """In the runtime's own words."""
        return {stage.value: self.engine.provider_of(stage) for stage in Stage}

    def run(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """Run a stage, with the checks every user of an engine pays for."""
        contract = self.bundle.manifest.stages[stage].contract
        return self.engine.run(stage, {spec.name: tensors[spec.name] for spec in contract.inputs})

    def to_host(self, tensor: Any) -> npt.NDArray[Any]:
        """Engines give arrays."""
        assert isinstance(tensor, np.ndarray)
        return tensor

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()


class TorchContender(Contender):
    """PyTorch, eager, float32, on the CPU: the merged model that the bundle was exported from.

    Args:
        bundle: names the model by its digest.
        run: folder of the run that holds it; default is the latest run.

    Raises:
        MissingPartError: PyTorch is not installed.
        BadInputError: no run holds that model.
    """

    name = TORCH

    def __init__(self, bundle: Bundle, run: Path | None) -> None:
        from bench.models import exported_run

        super().__init__(bundle)
        self._run = exported_run(bundle, run)
        import torch

        import rsrefseg.model  # noqa: F401 (so that loading is not charged with it)

        self._torch = torch
        self._threads_before = torch.get_num_threads()
        self._model: RSRefSeg | None = None

    @property
    def threads(self) -> int:
        """As many as the engines take."""
        return usable_cores()

    def load(self) -> None:
        """Build the model and read its weights."""
        from rsrefseg.checkpoint import load_model

        self._torch.set_num_threads(self.threads)
        self._model = load_model(self._run.merged_path)

    def providers(self) -> dict[str, str]:
        """The same for every stage."""
        return dict.fromkeys(Stage, "eager FP32, CPU")

    def run(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """Run a stage's module."""
        assert self._model is not None, "load() comes first"
        contract = self.bundle.manifest.stages[stage].contract
        given = (tensors[spec.name] for spec in contract.inputs)
        with self._torch.inference_mode():
            results = self._model.stage(stage)(*(self._own(tensor) for tensor in given))
        results = results if isinstance(results, tuple) else (results,)
        return {spec.name: result for spec, result in zip(contract.outputs, results, strict=True)}

    def to_host(self, tensor: Any) -> npt.NDArray[Any]:
        """Without a copy."""
        array = tensor.numpy()
        assert isinstance(array, np.ndarray)
        return array

    def close(self) -> None:
        """Free the model and give PyTorch its thread count back."""
        self._model = None
        self._torch.set_num_threads(self._threads_before)

    def _own(self, tensor: Any) -> Any:
        return self._torch.from_numpy(tensor) if isinstance(tensor, np.ndarray) else tensor


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A contender that could not be measured, and why."""

    name: str
    reason: str


def open_contender(name: str, bundle: Bundle, run: Path | None) -> Contender:
    """Open ``torch`` or a backend by name.

    Raises:
        BadInputError: no backend of that name, or no run for ``torch``.
        MissingPartError: it cannot run here.
    """
    return TorchContender(bundle, run) if name == TORCH else EngineContender(select_backend(name, bundle).engine)


def open_contenders(names: list[str], bundle: Bundle, run: Path | None) -> tuple[list[Contender], list[LeftOut]]:
    """Open all that were asked for, each once.

    PyTorch is left out where it or the run is missing, as on an edge device, unless nothing else was asked for or the
    run was named. A backend asked for by name is never left out.

    Raises:
        BadInputError: no name at all, an unknown one, or as told above.
        MissingPartError: a backend cannot run here.
    """
    wanted = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not wanted:
        raise BadInputError("no contender named: give --backends, e.g. torch,onnxruntime")
    if unknown := [name for name in wanted if name not in (TORCH, *Backend)]:
        raise BadInputError(f"unknown contender '{unknown[0]}': known are {', '.join((TORCH, *Backend))}")
    opened: dict[str, Contender] = {}
    left_out = []
    for name in wanted:
        try:
            contender = open_contender(name, bundle, run)
        except (MissingPartError, BadInputError) as error:
            if name != TORCH or wanted == [TORCH] or run is not None:
                raise
            left_out.append(LeftOut(name, str(error)))
        else:
            opened.setdefault(contender.name, contender)
    return list(opened.values()), left_out
