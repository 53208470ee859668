"""A bundle on OpenVINO: on the CPU in BF16 where the processor computes in it, or FP32; on an Intel GPU in FP16."""

import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage, TensorSpec
from ..engine import IMAGE_STAGES, Arrays, Engine
from ..errors import BundleError, RSRefSegError
from ..onnxruntime.engine import one_line
from ..system.cores import usable_cores
from .gelu import rewrite_gelus
from .library import CPU, GPU, chosen_device, computes_bf16, computes_fp16, core, product_name, version
from .mapped_files import mapped_addresses, releasing_pages

_BF16, _FP16, _FP32, _AS_WRITTEN = "bf16", "f16", "f32", "dynamic"  # OpenVINO's names
_OURS = {_BF16: "bf16", _FP16: "fp16", _FP32: "fp32"}
# A hundredth of the work and most of what BF16 costs a mask. On the tiny model of `make demo`, 469 test expressions
# against FP32: mask IoU 0.983 mean and 0.40 worst with all five stages in BF16, 0.996 and 0.93 with these two in FP32.
_ALWAYS_FP32 = (Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
# One graph at a time is read in a process, so that what is mapped by then and was not before is that graph's own.
_READING = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Source:
    """What a stage is compiled from, held until it has run: until then pages of its weights are given back.

    Attributes:
        graph: an ``openvino.Model``.
        weights: where its weights are mapped as long as it lives, and no longer: what came there later would be lost.
    """

    graph: Any
    weights: frozenset[range]


class OpenVinoEngine(Engine):
    """Runs every stage as a compiled model of its own. Safe among threads.

    On the CPU the encoders compute in BF16 where the processor does, on an Intel GPU in FP16 where that does; prompter
    and decoder always in FP32. FP16 reaches 65,504, and sums of a large model may pass that: an FP16 bundle keeps them
    in FP32, which a GPU is told to leave so. NPUs are left out: they want sizes that never vary.

    OpenVINO maps the files of weights, makes its own of most of them, some when it loads a stage and some in the first
    run, and keeps all of it. The mapped pages are given back meanwhile, and read again should they be needed.
    Preset b in FP32 on 2 cores (2026-11-27), of weights of 3.85 GB: 4.2 GB while all stages load, from then on 4.4 GB.
    Before GELUs were rewritten loading took 3.5 GB, and 5.9 to 6.3 GB when pages were given back after each stage only.

    What is computed in FP32 on the CPU has its GELUs rewritten (``gelu``).

    Images go through an encoder one at a time, so that OpenVINO knows all its sizes: it then joins more operations and
    keeps their memory from run to run. Preset b on 2 cores (2026-11-26): SAM's encoder in BF16 2.77 s instead of 2.92,
    SigLIP's as before, for 0.4 GB more of memory.

    Args:
        bundle: what to run.
        threads: CPU threads, which on a GPU only compile; default is the cores this process may use.
        fp32: compute in FP32 also where the processor has BF16, or the GPU FP16.
        device: ``CPU`` or ``GPU``.

    Raises:
        MissingPartError: OpenVINO or its plugin is not installed, or there is no Intel GPU.
    """

    loads_together = True

    def __init__(self, bundle: Bundle, threads: int | None = None, fp32: bool = False, device: str = CPU) -> None:
        super().__init__(bundle)
        self._core = core(device)
        self._device = chosen_device(device)
        self._on_gpu = device == GPU
        self._threads = threads
        if self._on_gpu:
            self.name = "openvino-gpu"
            self._precision = _FP16 if not fp32 and computes_fp16(self._device) else _FP32
        else:
            self.name = "openvino-fp32" if fp32 else "openvino"
            self._precision = _BF16 if not fp32 and computes_bf16() else _FP32
        self._models: dict[Stage, Any] = {}
        self._sources: dict[Stage, _Source] = {}  # until a stage has run

    def provider_of(self, stage: Stage) -> str:
        """Runtime, device and the precision that the compiled stage computes in."""
        device = f"{self._device} {product_name(self._device)}" if self._on_gpu else self._device
        return f"OpenVINO {version()} {device}, {self._computes(stage).upper()}"

    def precision_of(self, stage: Stage) -> str:
        """``bf16`` or ``fp16`` where the stage computes in it, else what its graph says."""
        computed = self._computes(stage)
        return computed if computed in ("bf16", "fp16") else super().precision_of(stage)

    def close(self) -> None:
        """Free all compiled models."""
        self._models.clear()
        self._sources.clear()
        super().close()

    def _computes(self, stage: Stage) -> str:
        """What the compiled stage says of itself, which may be less than was asked for."""
        self.load(stage)
        found = str(self._models[stage].get_property("INFERENCE_PRECISION_HINT").to_string())
        return super().precision_of(stage) if found == _AS_WRITTEN else _OURS.get(found, found)

    def _load(self, stage: Stage) -> None:
        path = self.bundle.graph_path(stage)
        contract = self.bundle.manifest.stages[stage].contract
        try:
            source = self._read(stage, path)
            with releasing_pages(source.weights):
                if stage in IMAGE_STAGES:
                    (image,) = contract.inputs
                    source.graph.reshape(image.sized(images=1))
                if not self._on_gpu and self._asked(stage) == _FP32:
                    rewrite_gelus(source.graph)
                model = self._core.compile_model(source.graph, self._device, self._settings(stage))
        except Exception as error:  # RuntimeErrors of many subclasses, TypeErrors of its bindings
            raise BundleError(f"openvino {version()} cannot load '{path}': {one_line(error)}") from error
        _check_face(path.name, "inputs", model.inputs, contract.inputs)
        _check_face(path.name, "outputs", model.outputs, contract.outputs)
        self._models[stage], self._sources[stage] = model, source

    def _read(self, stage: Stage, path: Path) -> _Source:
        files = [self.bundle.root / data.name for data in self.bundle.manifest.stages[stage].data]
        with _READING:
            before = mapped_addresses(files)
            graph = self._core.read_model(path)
            return _Source(graph, mapped_addresses(files) - before)

    def _settings(self, stage: Stage) -> dict[str, Any]:
        """Of a stage's compiled model, by OpenVINO's own names."""
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "COMPILATION_NUM_THREADS" if self._on_gpu else "INFERENCE_NUM_THREADS": self._threads or usable_cores(),
            "INFERENCE_PRECISION_HINT": self._asked(stage),
        }

    def _asked(self, stage: Stage) -> str:
        """The precision to ask for. Asked for FP16, the GPU's plugin computes all of a graph in it."""
        if stage in _ALWAYS_FP32:
            return _FP32
        if self._precision == _FP16 and super().precision_of(stage) == "fp16":
            return _AS_WRITTEN
        return self._precision

    def _run(self, stage: Stage, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        if stage not in IMAGE_STAGES:
            return self._infer(stage, feeds)
        ((name, images),) = feeds.items()
        results = [self._infer(stage, {name: images[row : row + 1]}) for row in range(len(images))]
        if len(results) == 1:
            return results[0]
        return {output: np.concatenate([result[output] for result in results]) for output in results[0]}

    def _infer(self, stage: Stage, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        names = [spec.name for spec in self.bundle.manifest.stages[stage].contract.outputs]
        try:
            # A request of its own for each run, 0.05 ms: its results need no copy, since nothing else writes there, and
            # threads need no lock. An array keeps the memory that it shows alive. What a GPU gave is copied: it may be
            # memory that the driver shares with it.
            request = self._models[stage].create_infer_request()
            source = self._sources.get(stage)
            with releasing_pages(source.weights) if source else nullcontext():
                request.infer(dict(feeds), share_inputs=True)
            self._sources.pop(stage, None)
            results = {name: request.get_tensor(name).data for name in names}
            return {name: array.copy() for name, array in results.items()} if self._on_gpu else results
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
