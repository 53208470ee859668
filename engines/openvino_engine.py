"""A bundle on OpenVINO's CPU plugin: BF16 where the processor computes in it, or FP32."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from engines.bundle import Bundle
from engines.contracts import Stage, TensorSpec
from engines.engine import Arrays, Engine
from engines.errors import BundleError, RSRefSegError
from engines.mapped_files import release_pages
from engines.onnxruntime_engine import one_line, usable_cores
from engines.openvino_library import DEVICE, computes_bf16, core, version

_BF16, _FP32 = "bf16", "f32"  # OpenVINO's names
# A hundredth of the work and most of what BF16 costs a mask. On the tiny model of `make demo`, 469 test expressions
# against FP32: mask IoU 0.983 mean and 0.40 worst with all five stages in BF16, 0.996 and 0.93 with these two in FP32.
_ALWAYS_FP32 = (Stage.ATTN_PROMPTER, Stage.SAM_DECODER)


class OpenVinoEngine(Engine):
    """Runs every stage as a compiled model of its own. Safe among threads.

    The encoders compute in BF16 where the processor does, prompter and decoder always in FP32.

    OpenVINO maps the files of weights, makes its own of most of them, some when it loads a stage and some in the first
    run, and keeps all of it. The mapped pages are given back after either, and read again should they be needed.
    Preset b on 2 cores (2026-11-25), of weights of 3.85 GB: peak 8.1 GB before, 5.3 GB so, while two
    stages load; from then on 4.3 GB in BF16 and 4.5 GB in FP32.

    Args:
        bundle: what to run.
        threads: CPU threads; default is the cores this process may use.
        fp32: compute in FP32 also where the processor has BF16.

    Raises:
        MissingPartError: OpenVINO or its CPU plugin is not installed.
    """

    loads_at_once = 2

    def __init__(self, bundle: Bundle, threads: int | None = None, fp32: bool = False) -> None:
        super().__init__(bundle)
        self._core = core()
        self.name = "openvino-fp32" if fp32 else "openvino"
        self._threads = threads
        self._precision = _BF16 if not fp32 and computes_bf16() else _FP32
        self._models: dict[Stage, Any] = {}
        self._ran: set[Stage] = set()

    def provider_of(self, stage: Stage) -> str:
        """Runtime, device and the precision that the compiled stage computes in."""
        return f"OpenVINO {version()} {DEVICE}, {'BF16' if self._computes(stage) == _BF16 else 'FP32'}"

    def precision_of(self, stage: Stage) -> str:
        """``bf16`` where the stage computes in it, else what its graph says."""
        return _BF16 if self._computes(stage) == _BF16 else super().precision_of(stage)

    def close(self) -> None:
        """Free all compiled models."""
        self._models.clear()
        self._ran.clear()
        super().close()

    def _computes(self, stage: Stage) -> str:
        """What the compiled stage says of itself, which may be less than was asked for."""
        self.load(stage)
        found = self._models[stage].get_property("INFERENCE_PRECISION_HINT").to_string()
        return str(found)

    def _load(self, stage: Stage) -> None:
        path = self.bundle.graph_path(stage)
        try:
            model = self._core.compile_model(self._core.read_model(path), DEVICE, self._settings(stage))
        except Exception as error:  # RuntimeErrors of many subclasses, TypeErrors of its bindings
            raise BundleError(f"openvino {version()} cannot load '{path}': {one_line(error)}") from error
        contract = self.bundle.manifest.stages[stage].contract
        _check_face(path.name, "inputs", model.inputs, contract.inputs)
        _check_face(path.name, "outputs", model.outputs, contract.outputs)
        self._models[stage] = model
        self._release_pages(stage)

    def _release_pages(self, stage: Stage) -> None:
        for data in self.bundle.manifest.stages[stage].data:
            release_pages(self.bundle.root / data.name)

    def _settings(self, stage: Stage) -> dict[str, Any]:
        """Of a stage's compiled model, by OpenVINO's own names."""
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self._threads or usable_cores(),
            "INFERENCE_PRECISION_HINT": _FP32 if stage in _ALWAYS_FP32 else self._precision,
        }

    def _run(self, stage: Stage, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        names = [spec.name for spec in self.bundle.manifest.stages[stage].contract.outputs]
        try:
            # A request of its own for each run, 0.05 ms: its results need no copy, since nothing else writes there, and
            # threads need no lock. An array keeps the memory that it shows alive.
            request = self._models[stage].create_infer_request()
            request.infer(dict(feeds), share_inputs=True)
            if stage not in self._ran:
                self._ran.add(stage)
                self._release_pages(stage)
            return {name: request.get_tensor(name).data for name in names}
        except Exception as error:  # as above
            raise RSRefSegError(f"stage '{stage}' failed in {self.name}: {one_line(error)}") from error


def _check_face(file: str, kind: str, found: list[Any], specs: tuple[TensorSpec, ...]) -> None:
    """A graph whose names and types are not those of its contract belongs to another bundle.

    A tensor that is handed on unchanged bears the names of all it was called on its way.
    """
    want = {spec.name: spec.dtype for spec in specs}
    have = {
        next((name for name in port.names if name in want), port.any_name): str(port.element_type.to_dtype())
        for port in found
    }
    if have != want:
        raise BundleError(f"the {kind} of '{file}' are {have}, its contract says {want}: export the bundle again")
