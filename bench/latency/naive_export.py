"""Baseline for ONNX: PyTorch's exporter and ONNX Runtime with their default settings."""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Dim, Stage, StageContract
from rsrefseg.engines.engine import Tensors
from rsrefseg.engines.errors import MissingPartError
from rsrefseg.engines.onnxruntime.engine import FATAL, PROVIDERS, unavailable_reason
from rsrefseg.engines.onnxruntime.library import package
from rsrefseg.engines.system.files import atomic_directory, cache_folder

from .torch_runners import PublishedModel, restore_layer_norms

NAIVE = "onnx-naive"


class NaiveRunner(PublishedModel):
    """Runs graphs of ``torch.onnx.export`` with default settings; the user's cache folder stores the graphs.

    Raises:
        MissingPartError: PyTorch or ONNX Runtime is not installed.
    """

    name = NAIVE

    def __init__(self, bundle: Bundle, run: Path | None) -> None:
        super().__init__(bundle, run)
        if (reason := unavailable_reason("cpu")) is not None:
            raise MissingPartError(reason)
        self._runtime = package()
        digest = bundle.manifest.provenance.checkpoint_sha256
        versions = f"torch-{self._torch.__version__}-rsrefseg-{version('rsrefseg')}"
        self._folder = cache_folder() / "naive" / f"{digest}-{versions}"
        self._sessions: dict[Stage, Any] = {}

    def open(self) -> None:
        """Find the run's merged model, verify its digest, and export it unless it is in the cache."""
        super().open()
        if not self._folder.exists():
            self._export_all()

    def load(self) -> None:
        """Create the sessions of all stages."""
        options = self._runtime.SessionOptions()
        options.log_severity_level = FATAL
        for stage in Stage:
            path = self._folder / f"{stage.value}.onnx"
            with self.reporting(f"loading '{path}'"):
                self._sessions[stage] = self._runtime.InferenceSession(path, options, providers=[PROVIDERS["cpu"]])
        self.providers = {stage: session.get_providers()[0] for stage, session in self._sessions.items()}
        self.precisions = dict.fromkeys(Stage, "fp32")

    def run(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """Run the session of a stage."""
        contract = self.bundle.manifest.stages[stage].contract
        names = [spec.name for spec in contract.outputs]
        with self.reporting(f"stage '{stage.value}'"):
            results = self._sessions[stage].run(names, {spec.name: tensors[spec.name] for spec in contract.inputs})
        return dict(zip(names, results, strict=True))

    def close(self) -> None:
        """Free all sessions; the graphs remain in the cache."""
        self._sessions.clear()

    def _export_all(self) -> None:
        from rsrefseg.checkpoints.model_file import load_stage

        with atomic_directory(self._folder) as partial:
            for stage in Stage:
                with self.reporting(f"exporting '{stage.value}'"):
                    module = load_stage(self._merged, stage)
                    restore_layer_norms(module)
                    _export(module, self.bundle.manifest.stages[stage].contract, partial / f"{stage.value}.onnx")


def _export(module: Any, contract: StageContract, path: Path) -> None:
    import torch

    examples = tuple(
        torch.ones(spec.sized(**{dim.name: 2 for dim in spec.dims}), dtype=getattr(torch, spec.dtype))
        for spec in contract.inputs
    )
    # Names and dynamic sizes are the only settings, because runners need them.
    sizes = tuple(
        {
            axis: torch.export.Dim(size.name, min=size.min, max=size.max)
            for axis, size in enumerate(spec.shape)
            if isinstance(size, Dim)
        }
        for spec in contract.inputs
    )
    for logger in ("torch.onnx", "onnxscript"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            examples,
            path,
            input_names=[spec.name for spec in contract.inputs],
            output_names=[spec.name for spec in contract.outputs],
            dynamic_shapes=sizes,
            external_data=True,
        )
