"""A bundle's engines in GPU memory, with two streams and shared activation memory."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt

from ..bundle.contracts import Stage, TensorSpec
from ..bundle.manifest import StageRecord
from ..engine import Arrays
from ..errors import RSRefSegError
from .build import load_engine, prove_engine
from .context import Place, StageContext, sizes_of
from .cuda import Cuda
from .library import Library
from .memory import DevicePool, DeviceTensor, Staging, aligned
from .records import StoredEngine
from .runtime_cache import RuntimeCache

# SAM's encoder runs in parallel to SigLIP's; all other stages wait for one of them anyway.
SIDE_STAGE = Stage.SAM_ENCODER
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
        cache: kernels that TensorRT-RTX compiled before; None for TensorRT 10 and 11.
    """

    def __init__(
        self,
        library: Library,
        cuda: Cuda,
        stored: Mapping[Stage, StoredEngine],
        records: Mapping[Stage, StageRecord],
        cache: RuntimeCache | None,
    ) -> None:
        self.library, self.cuda = library, cuda
        self.contracts = {stage: record.contract for stage, record in records.items()}
        self._stored, self._records, self._cache = stored, records, cache
        self._engines: dict[Stage, Any] = {}
        self._contexts: dict[Stage, StageContext] = {}
        # An engine that was built without a GPU must be loaded to learn how much memory it needs.
        needs = {
            stage: aligned(one.record.activation_bytes or int(self._engine(stage).device_memory_size_v2))
            for stage, one in stored.items()
        }
        shared = max(size for stage, size in needs.items() if stage is not SIDE_STAGE)
        self._activations = self.cuda.allocate(shared + needs[SIDE_STAGE], "for activations")
        self.main, self.side = self.cuda.make_stream(), self.cuda.make_stream()
        self._on_main = Place(self.main, self._activations, shared)
        self._on_side = Place(self.side, self._activations + shared, needs[SIDE_STAGE])
        self.pool, self.staging = DevicePool(self.cuda), Staging(self.cuda)

    def load(self, stage: Stage) -> StageContext:
        """Return the context of a stage for calls with varying shapes, loading its engine on first use."""
        if stage not in self._contexts:
            self._contexts[stage] = self.context(stage)
        return self._contexts[stage]

    def context(self, stage: Stage) -> StageContext:
        """Return a new context of a stage."""
        place = self._on_side if stage is SIDE_STAGE else self._on_main
        return StageContext(self.library, self.contracts[stage], self._engine(stage), place, self._cache)

    def stream_of(self, stage: Stage) -> Any:
        """Return the stream that a stage runs on."""
        return self.side if stage is SIDE_STAGE else self.main

    def tensors(self, specs: Sequence[TensorSpec], sizes: Mapping[str, int], stream: Any) -> dict[str, DeviceTensor]:
        """Return new tensors for the specs of a contract, by name. ``stream`` may write them from now on."""
        return {spec.name: self.pool.tensor(spec.sized(**sizes), spec.dtype, stream) for spec in specs}

    def enqueue(self, stage: Stage, sizes: Mapping[str, int], tensors: Mapping[str, DeviceTensor]) -> None:
        """Enqueue one run of a stage on its stream, and mark its outputs as written."""
        context = self.load(stage)
        context.bind(sizes, {name: tensor.address for name, tensor in tensors.items()})
        context.enqueue()
        for spec in self.contracts[stage].outputs:
            tensors[spec.name].written(self.stream_of(stage))

    def run(self, stage: Stage, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run one stage on arrays and return its outputs as arrays."""
        contract, stream = self.contracts[stage], self.stream_of(stage)
        sizes = sizes_of(contract, {name: array.shape for name, array in feeds.items()})
        with self.settled():
            tensors = self.tensors((*contract.inputs, *contract.outputs), sizes, stream)
            for spec in contract.inputs:
                self.staging.upload(spec.name, feeds[spec.name], tensors[spec.name].address, stream)
            self.enqueue(stage, sizes, tensors)
            fetched = {
                spec.name: self.staging.download(
                    spec.name, tensors[spec.name].address, spec.sized(**sizes), spec.dtype, stream
                )
                for spec in contract.outputs
            }
            self.cuda.wait_for_stream(stream, f"finish stage '{stage}'")
            return {name: fetch() for name, fetch in fetched.items()}

    @contextmanager
    def settled(self) -> Iterator[None]:
        """On an error, wait for both streams, so that no work remains on memory that will be reused."""
        try:
            yield
        except BaseException:
            for stream in (self.side, self.main):
                self._quietly(self.cuda.wait_for_stream, stream, "finish after an error")
            raise

    def close(self, graphs: Sequence[Any] = (), events: Sequence[Any] = ()) -> None:
        """Free everything. Errors are logged, not raised, because they would hide an earlier error."""
        for stream in (self.side, self.main):
            self._quietly(self.cuda.wait_for_stream, stream, "finish")
        for graph in graphs:
            self._quietly(self.cuda.free_graph, graph)
        for event in events:
            self._quietly(self.cuda.free_event, event)
        if self._cache is not None:
            self._cache.keep()
        self._contexts.clear()
        self._engines.clear()
        self.pool.close(self._quietly)
        self.staging.close(self._quietly)
        self._quietly(self.cuda.free, self._activations)
        for stream in (self.side, self.main):
            self._quietly(self.cuda.free_stream, stream)

    def _engine(self, stage: Stage) -> Any:
        if stage not in self._engines:
            engine = load_engine(self.library, stage, self._stored[stage].read())
            if self.library.is_rtx:  # others were proven when they were built
                prove_engine(self.library, engine, self._records[stage], _LOG.warning)
            self._engines[stage] = engine
        return self._engines[stage]

    def _quietly(self, do: Callable[..., None], *arguments: Any) -> None:
        try:
            do(*arguments)
        except RSRefSegError as error:
            _LOG.warning("%s", error)
