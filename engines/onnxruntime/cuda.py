"""Runs a bundle on ONNX Runtime's CUDA provider. Tensors stay on the GPU from the image to the mask logits."""

import contextlib
import ctypes
import io
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..engine import IMAGE_STAGES, Arrays, Tensors, one_line, refuse_dynamic
from ..errors import MissingPartError, RSRefSegError
from .device_session import RECORDING_OPTIONS, BoundTensor, DeviceSession, PendingTensor
from .engine import FATAL, PROVIDERS, OnnxRuntimeEngine, not_started, unavailable_reason
from .library import package

# SAM's encoder joins them if its graph says that it has no products that must not be recorded; RSRefSeg 2's prompter
# has such products.
RECORDED = (Stage.SIGLIP_VISION, Stage.SIGLIP_TEXT, Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
TO_HOST = (Stage.SIGLIP_TEXT, Stage.SAM_DECODER)  # stages whose outputs go to host memory

_CUDA = "cuda"
_PLACEMENT_KEY = "session.record_ep_graph_assignment_info"
# Operators that compute sizes. ONNX Runtime deliberately runs such nodes on the CPU: they process a few integers.
_SIZES = {
    "Shape", "Size", "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Cast", "Range", "ConstantOfShape",
    "Add", "Sub", "Mul", "Div", "Identity",
}  # fmt: skip


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """Runs every stage on one GPU, one call at a time.

    An image is uploaded once for both encoders, which run in parallel with each other and with the text encoder: an
    error of theirs may be raised by the call that uses their outputs. Mask logits are downloaded once per call of
    ``predict``. Features of phrases stay on the host, so that any of them can be combined. Stages run in three worker
    threads of the engine, because ONNX Runtime keeps separate handles and recordings for each thread.

    ``device="cpu"`` runs the same code without a GPU.

    Args:
        bundle: the bundle to run.
        threads: number of CPU threads for nodes that compute sizes; by default the cores this process may use.
        device: ``cuda`` or ``cpu``.
        device_id: index of the GPU among the visible ones, as CUDA counts them.

    Raises:
        BadInputError: the bundle has dynamic INT8 scales.
        MissingPartError: ONNX Runtime, its CUDA provider, CUDA's libraries, the driver or the GPU is missing.
    """

    loads_together = False  # a GPU loads stages one after the other in any case

    def __init__(self, bundle: Bundle, threads: int | None = None, device: str = _CUDA, device_id: int = 0) -> None:
        super().__init__(bundle, threads, device)
        refuse_dynamic(bundle, "onnxruntime-cuda")
        self._place = (device, device_id)
        self._image: Any = None
        self._encoders: list[Future[Tensors]] = []  # the latest runs of both image encoders
        self._start_threads()
        if device == _CUDA and (reason := cuda_unavailable_reason(device_id)) is not None:
            raise MissingPartError(reason)

    def provider_of(self, stage: Stage) -> str:
        """Return the execution provider, the nodes it leaves to the CPU, and why its runs are not replayed, if so."""
        model: DeviceSession = self._loaded(stage)
        _, placement = node_placement(model.session, PROVIDERS[self._device])
        return f"{placement}; not replayed: {model.refusal}" if model.refusal else placement

    def run(self, stage: Stage, feeds: Mapping[str, Any]) -> Arrays:
        """Run one stage and copy its outputs to the host."""
        return self.to_host(self.run_resident(stage, feeds))

    def to_host(self, tensors: Tensors) -> Arrays:
        """Return copies of tensors in host memory."""
        with self._lock:
            return {
                name: tensor.value.numpy() if isinstance(tensor, BoundTensor) else tensor
                for name, tensor in _computed(tensors).items()
            }

    def close(self) -> None:
        """Free all sessions and their device memory, once the current call has ended."""
        with self._lock:
            self._image = None
            for thread in (self._vision_thread, self._text_thread, self._other_thread):
                thread.shutdown()
            self._encoders = []
            self._start_threads()
            super().close()

    def _start_threads(self) -> None:
        self._vision_thread, self._text_thread, self._other_thread = (
            ThreadPoolExecutor(1, self.name) for _ in range(3)
        )

    def _run(self, stage: Stage, model: Any, feeds: Mapping[str, Any]) -> Tensors:
        with self._lock:
            model = self._loaded(stage)  # `close` may have ended the threads in which `model` was recorded
            if stage is not Stage.SIGLIP_TEXT or model.may_record(feeds):
                wait(self._encoders)
            return self._submit(stage, model, _computed(feeds)).result()

    def _encode_image(self, image: npt.NDArray[np.uint8]) -> Tensors:
        with self._lock:
            vision, sam = (self._loaded(stage) for stage in IMAGE_STAGES)
            wait(self._encoders)  # they read the memory of the new image
            feeds = {"image": self._upload(image)}
            records = vision.may_record(feeds) or sam.may_record(feeds)
            self._encoders = runs = []
            for stage, model in zip(IMAGE_STAGES, (vision, sam), strict=True):
                runs.append(self._submit(stage, model, feeds))
                if records:
                    runs[-1].result()  # nothing else may use the GPU while a run is recorded
        return {
            spec.name: PendingTensor(run, spec)
            for stage, run in zip(IMAGE_STAGES, runs, strict=True)
            for spec in self.contract(stage).outputs
        }

    def _submit(self, stage: Stage, model: DeviceSession, feeds: Mapping[str, Any]) -> Future[Tensors]:
        threads = {Stage.SIGLIP_VISION: self._vision_thread, Stage.SIGLIP_TEXT: self._text_thread}
        return threads.get(stage, self._other_thread).submit(self._run_session, stage, model, feeds)

    def _run_session(self, stage: Stage, model: DeviceSession, feeds: Mapping[str, Any]) -> Tensors:
        try:
            return model.run(feeds)
        except Exception as error:  # ONNX Runtime's error classes share no base but Exception
            raise self._run_error(stage, error) from error

    def _upload(self, image: npt.NDArray[np.uint8]) -> BoundTensor:
        """Copy an image to the device, into the memory of the previous image, whose encoders have finished."""
        try:
            if self._image is None:
                make = package().OrtValue.ortvalue_from_shape_and_type
                self._image = make(image.shape, image.dtype, *self._place)
            self._image.update_inplace(np.ascontiguousarray(image))
        except Exception as error:  # ONNX Runtime's error classes share no base but Exception
            self._image = None
            raise self._run_error(IMAGE_STAGES[0], error) from error
        return BoundTensor.of(self._image)

    def _load(self, stage: Stage) -> DeviceSession:
        entries, options = {_PLACEMENT_KEY: "1"}, cuda_options(self._place[1]) if self._device == _CUDA else {}
        attention = self.bundle.manifest.stages[stage].attention
        # RSRefSeg 2's prompter has products of one image's features and several phrases.
        broadcasts = self.bundle.manifest.geometry.high_resolution and stage is Stage.ATTN_PROMPTER
        records = (stage in RECORDED and not broadcasts) or (attention is not None and attention.fused)
        recording = RECORDING_OPTIONS if records and self._device == _CUDA else {}
        refusal = ""
        try:
            session = self._session(stage, entries, options | recording)
        except RSRefSegError as error:
            # ONNX Runtime records no graph that has nodes on the CPU.
            if not recording or "graph capture" not in str(error):
                raise
            refusal = "ONNX Runtime does not record its graph"
            session = self._session(stage, entries, options)
        provider = PROVIDERS[self._device]
        nodes, _ = node_placement(session, provider)
        if nodes == 0:
            raise MissingPartError(f"{provider} runs no node of stage '{stage}': use --backend onnxruntime")
        return DeviceSession(session, self.contract(stage), self._place, stage in TO_HOST, records, refusal)


def _computed(tensors: Mapping[str, Any]) -> Tensors:
    """Wait for pending tensors."""
    return {name: one.bound() if isinstance(one, PendingTensor) else one for name, one in tensors.items()}


def node_placement(session: Any, provider: str) -> tuple[int | None, str]:
    """Return the number of nodes of a graph that a provider runs, and a text that says where the others run.

    ONNX Runtime before 1.24 does not report placement: the result is then ``None`` and the provider's name.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None, provider
    parts = session.get_provider_graph_assignment_info()
    nodes = sum(len(part.get_nodes()) for part in parts if part.ep_name == provider)
    others = Counter(node.op_type for part in parts if part.ep_name != provider for node in part.get_nodes())
    sizes = sum(others.pop(operator, 0) for operator in _SIZES)
    words = [f"{count} {operator}" for operator, count in sorted(others.items())]
    words += [f"{sizes} nodes that compute sizes"] if sizes else []
    return nodes, f"{provider}; on the CPU: {', '.join(words)}" if words else provider


def cuda_options(device_id: int) -> dict[str, str]:
    """Return the options of the CUDA provider, by ONNX Runtime's keys.

    - TF32 is off: it keeps 11 significant bits of float32, which breaks parity with FP32 and affects the blocks that a
      precision plan keeps in float32.
    - cuDNN selects convolutions by heuristics: a search would repeat for each number of phrases and round differently
      each time.
    - Arenas grow by the requested size, not to powers of two: there are five, one for each stage.
    """
    return {
        "device_id": str(device_id),
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


def cuda_unavailable_reason(device_id: int = 0) -> str | None:
    """Start ONNX Runtime's CUDA provider on a GPU; return why it fails, with a hint, or ``None`` if it starts.

    ONNX Runtime itself would continue on the CPU if a library, the driver or the GPU is missing.
    """
    if (reason := unavailable_reason(_CUDA)) is not None:
        return reason
    onnxruntime = package()
    onnxruntime.set_default_logger_severity(FATAL)  # stderr would repeat the error below
    # The function prints on standard output, which is reserved for reports. Releases before 1.21 lack it.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(AttributeError):
        onnxruntime.preload_dlls()
    try:
        onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), _CUDA, device_id)
    except Exception as error:  # ONNX Runtime's error classes share no base but Exception
        missing = _missing_library(Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so")
        return not_started(PROVIDERS[_CUDA], missing or one_line(error))
    return None


def _missing_library(provider: Path) -> str | None:
    """Return the library that the provider's file needs and cannot load, after ONNX Runtime failed to load it."""
    if not provider.exists():
        return None
    try:
        ctypes.CDLL(str(provider))
    except OSError as error:
        return f"{str(error).partition(':')[0]} cannot be loaded"
    return None
