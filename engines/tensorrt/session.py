"""A bundle's engines in GPU memory, with two streams, shared activation memory and contexts to run them."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from ..bundle.contracts import Dim, Stage, TensorSpec
from ..bundle.manifest import StageRecord
from ..engine import Arrays
from ..errors import RSRefSegError
from ..system.files import atomic_write_bytes
from .build import load_engine, prove_engine
from .cuda import Cuda
from .library import Library, require
from .memory import DevicePool, DeviceTensor, Staging, aligned
from .store import StoredEngine

if TYPE_CHECKING:
    import tensorrt as trt

# SAM's encoder runs in parallel to SigLIP's; all other stages wait for one of them anyway.
SIDE_STAGE = Stage.SAM_ENCODER
_AGAIN = "start again; if the error persists, build again with `rsrefseg build --force`"
_LOG = logging.getLogger(__name__)


class Session:
    """All objects on the GPU between loading and closing.

    One block of GPU memory holds the activations of all stages. Stages on the main stream run one after the other and
    share a part of it; the stage on the side stream runs in parallel and has a separate part.

    Args:
        library: the kind of TensorRT.
        cuda: the CUDA runtime.
        stored: the engine of each stage.
        records: the record of each stage's graph.
        kernels: file of the kernels that TensorRT-RTX compiled before; None for TensorRT 10 and 11.
    """

    def __init__(
        self,
        library: Library,
        cuda: Cuda,
        stored: Mapping[Stage, StoredEngine],
        records: Mapping[Stage, StageRecord],
        kernels: Path | None,
    ) -> None:
        self.library, self.cuda = library, cuda
        self.contracts = {stage: record.contract for stage, record in records.items()}
        self._stored, self._records, self._kernels = stored, records, kernels
        self._cache: Any = None
        self._engines: dict[Stage, Any] = {}
        self._contexts: dict[Stage, Any] = {}
        self.pool, self.staging = DevicePool(cuda), Staging(cuda)
        # An engine that was built without a GPU must be loaded to learn how much memory it needs.
        needs = {
            stage: aligned(one.record.activation_bytes or int(self._engine(stage).device_memory_size_v2))
            for stage, one in stored.items()
        }
        shared = max(size for stage, size in needs.items() if stage is not SIDE_STAGE)
        first = cuda.allocate(shared + needs[SIDE_STAGE])
        self._activations = {True: (first + shared, needs[SIDE_STAGE]), False: (first, shared)}
        self.main, self.side = cuda.stream(), cuda.stream()

    def load(self, stage: Stage) -> Any:
        """Return the context of a stage for calls with varying shapes, loading its engine on first use."""
        if stage not in self._contexts:
            self._contexts[stage] = self.context(stage)
        return self._contexts[stage]

    def context(self, stage: Stage) -> "trt.IExecutionContext":
        """Return a new execution context of a stage. A CUDA graph of it is valid until shapes or addresses change."""
        if not TYPE_CHECKING:
            trt = self.library.module
        engine = self._engine(stage)
        with self.library.step(stage, "create an execution context", _AGAIN):
            how: Any = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            if self._kernels is not None:
                how = self._with_kernels(engine, how)
            context: trt.IExecutionContext = require(engine.create_execution_context(how))
            if context.active_optimization_profile != 0:
                require(context.set_optimization_profile_async(0, int(self.stream_of(stage))))
            context.set_device_memory(*self._activations[stage is SIDE_STAGE])
        return context

    def bind(self, stage: Stage, context: Any, sizes: Mapping[str, int], tensors: Mapping[str, DeviceTensor]) -> None:
        """Set the shapes and addresses of a context's tensors, which may be larger, for sizes by dimension."""
        contract = self.contracts[stage]
        addresses = {spec.name: tensors[spec.name].address for spec in (*contract.inputs, *contract.outputs)}
        with self.library.step(stage, f"accept tensors of the sizes {dict(sizes)}", _AGAIN):
            for spec in contract.inputs:
                require(context.set_input_shape(spec.name, spec.sized(**sizes)))
            require(not context.infer_shapes())  # returns the names of those that lack a shape
            for spec in contract.outputs:
                shape = tuple(context.get_tensor_shape(spec.name)[:])
                if shape != spec.sized(**sizes):
                    raise ValueError(f"'{spec.name}' is {list(shape)}, its contract says {list(spec.sized(**sizes))}")
            for name, address in addresses.items():
                require(context.set_tensor_address(name, address))

    def enqueue(self, stage: Stage, context: Any) -> None:
        """Enqueue one run of a context on the stage's stream."""
        with self.library.step(stage, "run", _AGAIN):
            require(context.execute_async_v3(int(self.stream_of(stage))))

    def stream_of(self, stage: Stage) -> Any:
        """Return the stream that a stage runs on."""
        return self.side if stage is SIDE_STAGE else self.main

    def tensors(self, specs: Sequence[TensorSpec], sizes: Mapping[str, int], stream: Any) -> dict[str, DeviceTensor]:
        """Return new tensors for the specs of a contract, by name. ``stream`` may write them from now on."""
        return {spec.name: self.pool.tensor(spec.sized(**sizes), spec.dtype, stream) for spec in specs}

    def run_once(self, stage: Stage, sizes: Mapping[str, int], tensors: Mapping[str, DeviceTensor]) -> None:
        """Enqueue one run of a stage on any tensors, and mark its outputs as written."""
        context = self.load(stage)
        self.bind(stage, context, sizes, tensors)
        self.enqueue(stage, context)
        for spec in self.contracts[stage].outputs:
            tensors[spec.name].written(self.stream_of(stage))

    def run(self, stage: Stage, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run one stage on arrays and return its outputs as arrays."""
        contract, stream = self.contracts[stage], self.stream_of(stage)
        sizes = {
            dim.name: size
            for spec in contract.inputs
            for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
            if isinstance(dim, Dim)
        }
        with self.settled():
            tensors = self.tensors((*contract.inputs, *contract.outputs), sizes, stream)
            for spec in contract.inputs:
                self.staging.upload(spec.name, feeds[spec.name], tensors[spec.name].address, stream)
            self.run_once(stage, sizes, tensors)
            return self.fetch({spec.name: tensors[spec.name] for spec in contract.outputs}, stream)

    def fetch(self, tensors: Mapping[str, DeviceTensor], stream: Any, **shapes: tuple[int, ...]) -> Arrays:
        """Wait for a stream and return copies of tensors, or of their first elements in the shapes given."""
        fetched = {}
        for name, tensor in tensors.items():
            tensor.wait(stream)
            fetched[name] = self.staging.download(name, tensor, shapes.get(name, tensor.shape), stream)
        self.cuda.call("cudaStreamSynchronize", stream)
        return {name: read() for name, read in fetched.items()}

    @contextmanager
    def settled(self) -> Iterator[None]:
        """On an error, wait for both streams, so that no work remains on memory that will be reused."""
        try:
            yield
        except BaseException:
            self._wait()
            raise

    def close(self) -> None:
        """Free all engines; the caller frees what was made with CUDA. Errors are logged: they may follow another."""
        self._wait()
        if self._cache is not None and self._kernels is not None:
            try:
                atomic_write_bytes(self._kernels, bytes(self._cache.serialize() or b""))
            except RSRefSegError as error:
                _LOG.warning("compiled kernels are not kept: %s", error)
        self._cache = None
        self._contexts.clear()
        self._engines.clear()
        self.pool.closed = True

    def _wait(self) -> None:
        for stream in (self.side, self.main):
            try:
                self.cuda.call("cudaStreamSynchronize", stream)
            except RSRefSegError as error:
                _LOG.warning("%s", error)

    def _engine(self, stage: Stage) -> Any:
        if stage not in self._engines:
            engine = load_engine(self.library, stage, self._stored[stage].read())
            if self.library.is_rtx:  # others were proven when they were built
                prove_engine(self.library, engine, self._records[stage], _LOG.warning)
            self._engines[stage] = engine
        return self._engines[stage]

    def _with_kernels(self, engine: Any, strategy: Any) -> Any:
        """Return a runtime configuration of TensorRT-RTX with the kernels that were compiled before."""
        config, module = engine.create_runtime_config(), self.library.module
        config.set_execution_context_allocation_strategy(strategy)
        # Compiled before the first run: a CUDA graph would keep the slower kernels that run meanwhile.
        config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
        if self._cache is None and self._kernels is not None:
            self._cache = config.create_runtime_cache()
            with contextlib.suppress(OSError):  # no file yet, or one that cannot be read
                if not self._cache.deserialize(self._kernels.read_bytes()):
                    _LOG.warning("'%s' does not fit this machine any more: kernels are compiled again", self._kernels)
        require(config.set_runtime_cache(self._cache))
        return config
