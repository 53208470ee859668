"""What anybody gets who exports the same modules with PyTorch's defaults and runs them with ONNX Runtime's defaults."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Dim, Stage, StageContract, TensorSpec
from rsrefseg.engines.errors import MissingPartError
from rsrefseg.engines.onnxruntime.engine import FATAL, PROVIDERS, why_unavailable
from rsrefseg.engines.system.files import atomic_directory
from rsrefseg.engines.tensorrt.secret import cache_folder

from .runners import Contender, Tensors, failures_told

NAIVE = "onnx-naive"


class NaiveContender(Contender):
    """``torch.onnx.export`` and ``InferenceSession``, both without a setting; graphs are kept in the user's cache.

    Args:
        bundle: names the model by its digest.
        run: folder of the run that holds it; default is the latest run.

    Raises:
        MissingPartError: PyTorch or ONNX Runtime is not installed.
        BadInputError: no run holds that model.
    """

    name = NAIVE

    def __init__(self, bundle: Bundle, run: Path | None) -> None:
        from rsrefseg.runs.run import exported_run

        super().__init__(bundle)
        if (reason := why_unavailable("cpu")) is not None:
            raise MissingPartError(reason)
        source = exported_run(bundle.root, bundle.manifest.provenance.checkpoint_sha256, run)
        import onnxruntime
        import torch

        self._runtime = onnxruntime
        digest = bundle.manifest.provenance.checkpoint_sha256
        self._folder = cache_folder() / "naive" / f"{digest}-torch-{torch.__version__}-rsrefseg-{version('rsrefseg')}"
        if not self._folder.exists():
            _export_all(source.merged_path, bundle, self._folder)
        self._sessions: dict[Stage, Any] = {}

    def load(self) -> None:
        """Build all sessions."""
        options = self._runtime.SessionOptions()
        options.log_severity_level = FATAL
        for stage in Stage:
            with failures_told(self.name, f"loading '{stage}'", f"remove '{self._folder}' to have it exported again"):
                self._sessions[stage] = self._runtime.InferenceSession(
                    str(self._folder / f"{stage}.onnx"), options, providers=[PROVIDERS["cpu"]]
                )

    def providers(self) -> dict[str, str]:
        """The same for every stage."""
        return {stage.value: session.get_providers()[0] for stage, session in self._sessions.items()}

    def precision(self, stage: Stage) -> str:
        """That of the model."""
        return "fp32"

    def run(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """Run a stage's session."""
        contract = self.bundle.manifest.stages[stage].contract
        names = [spec.name for spec in contract.outputs]
        with failures_told(self.name, f"stage '{stage}'"):
            results = self._sessions[stage].run(names, {spec.name: tensors[spec.name] for spec in contract.inputs})
        return dict(zip(names, results, strict=True))

    def to_host(self, tensor: Any) -> npt.NDArray[Any]:
        """Sessions give arrays."""
        assert isinstance(tensor, np.ndarray)
        return tensor

    def close(self) -> None:
        """Free all sessions; the graphs stay in the cache."""
        self._sessions.clear()


def _export_all(model: Path, bundle: Bundle, folder: Path) -> None:
    from rsrefseg.checkpoints.model_file import load_stage

    from .torch_runners import publish_layer_norms

    with atomic_directory(folder) as partial:
        for stage in Stage:
            with failures_told(NAIVE, f"exporting '{stage}'"):
                module = load_stage(model, stage)
                publish_layer_norms(module)
                _export(module, bundle.manifest.stages[stage].contract, partial / f"{stage}.onnx")


def _export(module: Any, contract: StageContract, path: Path) -> None:
    import torch

    # Names and varying sizes are all that is asked of the exporter: without them nothing could run the graphs.
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            module,
            tuple(_example(spec) for spec in contract.inputs),
            path,
            input_names=[spec.name for spec in contract.inputs],
            output_names=[spec.name for spec in contract.outputs],
            dynamic_shapes=tuple(
                {
                    axis: torch.export.Dim(size.name, min=size.min, max=size.max)
                    for axis, size in enumerate(spec.shape)
                    if isinstance(size, Dim)
                }
                for spec in contract.inputs
            ),
            external_data=True,
        )


def _example(spec: TensorSpec) -> Any:
    import torch

    return torch.ones(spec.sized(**{dim.name: 2 for dim in spec.dims}), dtype=getattr(torch, spec.dtype))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        yield
