"""Runs a bundle on OpenVINO: on CPUs in BF16 if the processor supports it, else FP32; on Intel GPUs in FP16."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage, TensorSpec
from ..bundle.manifest import QUANTIZED
from ..engine import IMAGE_STAGES, Engine, Tensors, check_signature, one_line
from ..errors import BundleError, RSRefSegError
from ..system.cores import usable_cores
from .gelu import rewrite_gelus
from .library import CPU, GPU, chosen_device, computes_bf16, computes_fp16, core, product_name, version

_BF16, _FP16, _FP32, _AS_WRITTEN = "bf16", "f16", "f32", "dynamic"  # OpenVINO's names
_OURS = {_BF16: "bf16", _FP16: "fp16", _FP32: "fp32"}
# In these stages BF16 saves 1% of the work and causes most of its loss in mask accuracy.
_ALWAYS_FP32 = (Stage.ATTN_PROMPTER, Stage.SAM_DECODER)


class OpenVinoEngine(Engine):
    """Runs every stage as a separate compiled model.

    The encoders compute in BF16 on a CPU that supports it, and in FP16 on an Intel GPU that supports it; prompter and
    decoder compute in FP32. FP16 overflows at 65,504, so the sums that an FP16 bundle keeps in FP32 stay in FP32 on a
    GPU. Stages in FP32 on the CPU have their GELUs rewritten (``gelu``). NPUs are not supported, because they need
    fixed sizes. Image encoders are compiled for one image, so that all their sizes are known; batches run one by one.

    Args:
        bundle: the bundle to run.
        threads: number of CPU threads (on a GPU, to compile only); by default the cores this process may use.
        fp32: compute in FP32 even if the device supports BF16 or FP16.
        device: ``CPU`` or ``GPU``.

    Raises:
        MissingPartError: OpenVINO or its plugin is not installed, or no Intel GPU is found.
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

    def provider_of(self, stage: Stage) -> str:
        """Return OpenVINO's version, the device, and the precision that the compiled stage reports."""
        device = f"{self._device} {product_name(self._device)}" if self._on_gpu else self._device
        return f"OpenVINO {version()} {device}, {self._computes(stage).upper()}"

    def precision_of(self, stage: Stage) -> str:
        """Return ``bf16`` or ``fp16`` if the stage computes in it and is not quantised, else that of its graph."""
        computed, written = self._computes(stage), super().precision_of(stage)
        return computed if computed in ("bf16", "fp16") and written not in QUANTIZED else written

    def _computes(self, stage: Stage) -> str:
        """Return the precision that the compiled stage reports, which may be lower than the requested one."""
        found = str(self._loaded(stage).get_property("INFERENCE_PRECISION_HINT").to_string())
        return super().precision_of(stage) if found == _AS_WRITTEN else _OURS.get(found, found)

    def _load(self, stage: Stage) -> Any:
        path, contract, precision = self.bundle.graph_path(stage), self.contract(stage), self._requested(stage)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "COMPILATION_NUM_THREADS" if self._on_gpu else "INFERENCE_NUM_THREADS": self._threads or usable_cores(),
            "INFERENCE_PRECISION_HINT": precision,
        }
        try:
            graph = self._core.read_model(path)
            if stage in IMAGE_STAGES:
                (image,) = contract.inputs
                graph.reshape(image.sized(images=1))
            if not self._on_gpu and precision == _FP32:
                rewrite_gelus(graph)
            model = self._core.compile_model(graph, self._device, settings)
        except Exception as error:  # RuntimeErrors of many subclasses, TypeErrors of its bindings
            raise BundleError(f"openvino {version()} cannot load '{path}': {one_line(error)}") from error
        inputs, outputs = _types(model.inputs, contract.inputs), _types(model.outputs, contract.outputs)
        check_signature(path.name, contract, inputs, outputs)
        return model

    def _requested(self, stage: Stage) -> str:
        """Return the precision to request. On a request for FP16, the GPU plugin computes a whole graph in FP16."""
        if stage in _ALWAYS_FP32:
            return _FP32
        if self._precision == _FP16 and super().precision_of(stage) == "fp16":
            return _AS_WRITTEN
        return self._precision

    def _run(self, stage: Stage, model: Any, feeds: Mapping[str, Any]) -> Tensors:
        if stage not in IMAGE_STAGES or len(feeds["image"]) == 1:
            return self._infer(stage, model, feeds)
        results = [self._infer(stage, model, {"image": image[None]}) for image in feeds["image"]]
        return {name: np.concatenate([result[name] for result in results]) for name in results[0]}

    def _infer(self, stage: Stage, model: Any, feeds: Mapping[str, Any]) -> Tensors:
        try:
            # Each run has its own request, so threads need no lock and no other run overwrites the results: arrays
            # that keep the request's memory alive. On a GPU the driver may share that memory, so it is copied.
            request = model.create_infer_request()
            request.infer(dict(feeds), share_inputs=True)
            results = {spec.name: request.get_tensor(spec.name).data for spec in self.contract(stage).outputs}
            return {name: array.copy() for name, array in results.items()} if self._on_gpu else results
        except Exception as error:  # RuntimeErrors of many subclasses, TypeErrors of its bindings
            raise RSRefSegError(f"stage '{stage}' failed in {self.name}: {one_line(error)}") from error


def _types(ports: list[Any], specs: tuple[TensorSpec, ...]) -> dict[str, str]:
    """Return the dtypes of a model's inputs or outputs by name; of several names of one tensor, the contract's."""
    wanted = {spec.name for spec in specs}
    return {
        next((name for name in port.names if name in wanted), port.any_name): str(port.element_type.to_dtype())
        for port in ports
    }
