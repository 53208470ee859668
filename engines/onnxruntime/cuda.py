"""A bundle on ONNX Runtime's CUDA provider: the image and what is made of it stay on the GPU until the mask logits."""

import contextlib
import ctypes
import io
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..engine import IMAGE_STAGES, Arrays, Tensors, check_one_image
from ..errors import MissingPartError, RSRefSegError
from .engine import FATAL, PROVIDERS, TYPES, OnnxRuntimeEngine, not_started, one_line, why_unavailable
from .placement import RECORD_KEY, placement_of
from .replay import CUDA_OPTIONS, GRAPH_ID, NOT_RECORDED, Replays

# Stages of many small kernels: their runs are recorded and replayed. SAM's encoder has large ones, and products that
# must not be.
REPLAYED = (Stage.SIGLIP_VISION, Stage.SIGLIP_TEXT, Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
# Those whose results are wanted in host memory.
TO_HOST = (Stage.SIGLIP_TEXT, Stage.SAM_DECODER)

_CPU, _CUDA = "cpu", "cuda"
_FAULTS_OF_A_GRAPH = {"InvalidGraph", "InvalidProtobuf", "NoSuchFile"}  # the names of ONNX Runtime's error classes


@dataclass(frozen=True, slots=True, eq=False)
class BoundTensor:
    """A tensor in the memory of a device, held by ONNX Runtime.

    Attributes:
        value: the ``OrtValue``.
        dtype: its numpy name.
        shape: of the tensor.
    """

    value: Any
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, value: Any) -> "BoundTensor":
        """Describe an ``OrtValue``."""
        return cls(value, TYPES.get(value.data_type(), value.data_type()), tuple(value.shape()))


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """Runs every stage on one GPU. The picture crosses the bus once for both encoders, mask logits once per answer.

    What crosses it besides are the phrases' features, 0.3 MB each: kept on the host they can be put together at will,
    which costs microseconds beside a text encoder of milliseconds. A stage is done when its run returns. The image
    encoders run at the same time, for SigLIP's kernels do not fill a large GPU; all but SAM's encoder are replayed, see
    ``Replays``.

    Whoever calls, stages run in two threads of the engine's own: ONNX Runtime keeps cuBLAS's and cuDNN's handles and
    what it recorded for every thread apart. With new threads for each picture preset b took 46 ms for a first phrase on
    an H200, and 19 with lasting ones (2026-11-27).

    The code knows the device by ONNX Runtime's name for it only. With ``cpu`` all of it runs on any machine: that is
    what the tests run. Safe among threads, which take turns.

    Args:
        bundle: what to run.
        threads: CPU threads for nodes that compute sizes; default is the cores this process may use.
        device: ``cuda``, or ``cpu`` to run the same code without a GPU.
        device_id: number of the GPU, as CUDA counts those that are visible.

    Raises:
        MissingPartError: ONNX Runtime, its CUDA provider, CUDA's libraries, the driver or the GPU is missing.
    """

    loads_together = False  # a GPU takes one stage after the other in any case

    def __init__(self, bundle: Bundle, threads: int | None = None, device: str = _CUDA, device_id: int = 0) -> None:
        super().__init__(bundle, threads, device)
        self._device_id = device_id
        self._replays: dict[Stage, Replays] = {}
        self._unrecordable: dict[Stage, str] = {}
        # Whoever uses the GPU holds it: while a run is recorded nothing else may. Taken after what guards loading.
        self._turn = threading.RLock()
        self._picture: Any = None
        self._start_threads()
        if device == _CUDA and (reason := why_not_started(device_id)) is not None:
            raise MissingPartError(reason)

    def provider_of(self, stage: Stage) -> str:
        """The execution provider, what of the stage it left to the CPU, and why its runs are not replayed."""
        self.load(stage)
        provider = str(placement_of(self._sessions[stage], PROVIDERS[self._device]) or super().provider_of(stage))
        refusal = self._replays[stage].refusal if stage in self._replays else self._unrecordable.get(stage, "")
        return f"{provider}; not replayed: {refusal}" if refusal else provider

    def encode_image(self, image: npt.NDArray[np.uint8]) -> Tensors:
        """Both image encoders at once on one upload of the picture; what they give stays on the device."""
        check_one_image(image)
        contracts = [self.bundle.manifest.stages[stage].contract for stage in IMAGE_STAGES]
        for contract in contracts:
            contract.check_inputs({"image": image})
        self.load(*IMAGE_STAGES)
        with self._turn:
            picture = {"image": self._upload(image)}
            vision = self._submit(Stage.SIGLIP_VISION, picture)
            replays = self._replays.get(Stage.SIGLIP_VISION)
            if replays is not None and not replays.is_settled(picture):
                wait([vision])  # it may be recorded, and no other may use the GPU then
            sam = self._submit(Stage.SAM_ENCODER, picture)
            wait([vision, sam])
        results = [vision.result(), sam.result()]
        for contract, made in zip(contracts, results, strict=True):
            contract.check_outputs(made)
        return {name: tensor for made in results for name, tensor in made.items()}

    def answer(self, image: Tensors, phrases: Sequence[Tensors]) -> npt.NDArray[np.float32]:
        """Prompter and decoder; the prompts stay on the device, the mask logits come back.

        Args:
            image: of ``encode_image``.
            phrases: of ``encode_text``, at most as many as the contract allows.

        Returns:
            (P, 1, h, w) mask logits.

        Raises:
            RSRefSegError: loading or running failed.
        """
        text = {name: np.stack([phrase[name] for phrase in phrases]) for name in phrases[0]}
        prompts = self._run_bound(Stage.ATTN_PROMPTER, image | text)
        return np.asarray(self._run_bound(Stage.SAM_DECODER, image | prompts)["mask_logits"], np.float32)

    def run_resident(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """As ``run_resident``; what a stage gives stays on the device, but for those in ``TO_HOST``."""
        return self._run_bound(stage, tensors)

    def to_host(self, tensors: Tensors) -> Arrays:
        """Copies in host memory."""
        with self._turn:
            return {
                name: tensor.value.numpy() if isinstance(tensor, BoundTensor) else tensor
                for name, tensor in tensors.items()
            }

    def close(self) -> None:
        """Free all sessions, and what is kept on the device for them."""
        self._replays.clear()
        self._unrecordable.clear()
        self._picture = None
        for thread in (self._vision_thread, self._other_thread):
            thread.shutdown()
        self._start_threads()
        super().close()

    def _run(self, stage: Stage, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        with self._turn:
            return self.to_host(self._submit(stage, feeds).result())

    def _run_bound(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """Run a stage on those of the tensors that its contract asks for, arrays or on the device.

        Its results stay on the device; of stages in ``TO_HOST`` they are arrays.
        """
        contract = self.bundle.manifest.stages[stage].contract
        feeds = {spec.name: tensors[spec.name] for spec in contract.inputs}
        contract.check_inputs(feeds)
        self.load(stage)
        with self._turn:
            results = self._submit(stage, feeds).result()
        contract.check_outputs(results)
        return results

    def _start_threads(self) -> None:
        """They start when they first have something to do."""
        self._vision_thread, self._other_thread = (ThreadPoolExecutor(1, self.name) for _ in range(2))

    def _submit(self, stage: Stage, feeds: Mapping[str, Any]) -> Future[Tensors]:
        """Run a loaded stage on checked feeds in its thread, for whoever has the turn."""
        thread = self._vision_thread if stage is Stage.SIGLIP_VISION else self._other_thread
        return thread.submit(self._replay_or_run, stage, feeds)

    def _replay_or_run(self, stage: Stage, feeds: Mapping[str, Any]) -> Tensors:
        """Results on the device; of stages in ``TO_HOST`` arrays."""
        replays = self._replays.get(stage)
        if replays is not None and (replayed := replays.run(feeds)) is not None:
            return replayed if replays.to_host else {name: BoundTensor.of(value) for name, value in replayed.items()}
        if stage not in TO_HOST:
            return self._bind_and_run(stage, feeds, (self._device, self._device_id))
        found = self._bind_and_run(stage, feeds, (_CPU, 0))
        return {name: tensor.value.numpy() for name, tensor in found.items()}

    def _bind_and_run(self, stage: Stage, feeds: Mapping[str, Any], place: tuple[str, int]) -> Tensors:
        """Run a loaded stage on checked feeds, arrays or on the device; its results lie at ``place``."""
        import onnxruntime

        contract = self.bundle.manifest.stages[stage].contract
        session = self._sessions[stage]
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(GRAPH_ID, NOT_RECORDED)
        try:
            binding = session.io_binding()
            for name, tensor in feeds.items():
                if isinstance(tensor, BoundTensor):
                    binding.bind_ortvalue_input(name, tensor.value)
                else:
                    binding.bind_cpu_input(name, np.ascontiguousarray(tensor))
            for spec in contract.outputs:
                # Without a buffer: every run gets memory of its own, so that results can be kept.
                binding.bind_output(spec.name, *place)
            binding.synchronize_inputs()
            session.run_with_iobinding(binding, options)
            binding.synchronize_outputs()
            values = binding.get_outputs()
        except Exception as error:  # ONNX Runtime's error classes share no base but Exception
            raise self._run_error(stage, error) from error
        return {spec.name: BoundTensor.of(value) for spec, value in zip(contract.outputs, values, strict=True)}

    def _upload(self, image: npt.NDArray[np.uint8]) -> BoundTensor:
        """The picture on the device, in the memory of the one before it: its encoders are done with that."""
        import onnxruntime

        try:
            if self._picture is None:
                self._picture = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    image.shape, image.dtype, self._device, self._device_id
                )
            self._picture.update_inplace(np.ascontiguousarray(image))
        except Exception as error:  # as above
            self._picture = None
            raise self._run_error(IMAGE_STAGES[0], error) from error
        return BoundTensor.of(self._picture)

    def _load(self, stage: Stage) -> None:
        with self._turn:
            try:
                super()._load(stage)
            except RSRefSegError as error:
                # ONNX Runtime records no graph that it leaves nodes of to the CPU.
                if stage not in REPLAYED or "graph capture" not in str(error):
                    raise
                self._unrecordable[stage] = "ONNX Runtime does not record its graph"
                super()._load(stage)
            provider = PROVIDERS[self._device]
            placement = placement_of(self._sessions[stage], provider)
            if placement is not None and placement.own == 0:
                del self._sessions[stage]
                raise MissingPartError(f"{provider} takes no node of stage '{stage}': use --backend onnxruntime")
            contract = self.bundle.manifest.stages[stage].contract
            if self._records(stage):
                place = (self._device, self._device_id)
                self._replays[stage] = Replays(self._sessions[stage], contract, *place, stage in TO_HOST)

    def _records(self, stage: Stage) -> bool:
        return stage in REPLAYED and stage not in self._unrecordable

    def _provider_options(self, stage: Stage) -> dict[str, str]:
        if self._device != _CUDA:
            return {}
        return cuda_options(self._device_id) | (CUDA_OPTIONS if self._records(stage) else {})

    def _session_entries(self) -> dict[str, str]:
        return super()._session_entries() | {RECORD_KEY: "1"}

    def _load_error(self, path: Path, error: Exception) -> RSRefSegError:
        """Every file was checked before: what a device without free memory cannot load is no fault of the bundle."""
        if self._device == _CPU or type(error).__name__ in _FAULTS_OF_A_GRAPH:
            return super()._load_error(path, error)
        return MissingPartError(not_started(f"'{path.name}' on {PROVIDERS[self._device]}", one_line(error)))


def cuda_options(device_id: int) -> dict[str, str]:
    """Options of the CUDA provider, by its own names.

    - TF32 is on by default and keeps 11 significant bits of float32: parity with FP32 would not hold, nor would blocks
      that a precision plan keeps in float32.
    - cuDNN's own choice of a convolution instead of timing all of them: these models have a handful, which take a
      percent of the time, and a search would be repeated for each number of phrases, with other roundings each time.
    - Arenas grow by what is asked for instead of by powers of two: there are five, one for each stage.
    """
    return {
        "device_id": str(device_id),
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }


def why_not_started(device_id: int = 0) -> str | None:
    """Start ONNX Runtime's CUDA provider on a GPU: why that fails, with the way out; ``None`` when it does not.

    ONNX Runtime itself goes on with the CPU where a library, the driver or the GPU is missing.
    """
    if (reason := why_unavailable(_CUDA)) is not None:
        return reason
    import onnxruntime

    # It tells on standard error what is raised here as well.
    onnxruntime.set_default_logger_severity(FATAL)
    # It prints on standard output, which belongs to the commands' reports.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(AttributeError):  # before 1.21 there is none
        onnxruntime.preload_dlls()
    try:
        onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), _CUDA, device_id)
    except Exception as error:  # as above
        missing = _missing_library(Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so")
        return not_started(PROVIDERS[_CUDA], missing or one_line(error))
    return None


def _missing_library(provider: Path) -> str | None:
    """The library that the provider's own file lacks. Only to be asked once ONNX Runtime has failed to load it."""
    if not provider.exists():
        return None
    try:
        ctypes.CDLL(str(provider))
    except OSError as error:
        return f"{str(error).partition(':')[0]} cannot be loaded"
    return None
