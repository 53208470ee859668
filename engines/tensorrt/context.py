"""An execution context of a loaded engine, which uses activation memory of the caller."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..bundle.contracts import Dim, StageContract
from .errors import TrtCalls
from .library import Library
from .runtime_cache import RuntimeCache

if TYPE_CHECKING:
    import tensorrt as trt

_AGAIN = "start again; if the error persists, build again with `rsrefseg build --force`"


class Place(NamedTuple):
    """Where a stage runs: its stream, and activation memory for the stages of the stream, one after the other."""

    stream: Any
    address: int
    size_bytes: int


class StageContext:
    """An execution context of a stage. A CUDA graph captured from it stays valid until shapes or addresses change.

    Args:
        library: the kind of TensorRT.
        contract: contract of the stage.
        engine: the loaded engine.
        place: where the stage runs.
        cache: kernels that TensorRT-RTX compiled before; None for TensorRT 10 and 11.

    Raises:
        RSRefSegError: TensorRT cannot create the context.
    """

    def __init__(
        self,
        library: Library,
        contract: StageContract,
        engine: "trt.ICudaEngine",
        place: Place,
        cache: RuntimeCache | None,
    ) -> None:
        if not TYPE_CHECKING:
            trt = library.module
        self._contract, self._stream = contract, place.stream
        self._calls = TrtCalls(contract.stage, library.log)
        how: Any = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if cache is not None:
            how = cache.configured(engine, how)
        self._context: trt.IExecutionContext = self._calls.require(
            lambda: engine.create_execution_context(how), "create an execution context", _AGAIN
        )
        if self._context.active_optimization_profile != 0:
            self._calls.require_true(
                lambda: self._context.set_optimization_profile_async(0, int(place.stream)),
                "select its optimisation profile",
                _AGAIN,
            )
        self._calls.run(
            lambda: self._context.set_device_memory(place.address, place.size_bytes),
            "use its activation memory",
            _AGAIN,
        )

    def bind(self, sizes: Mapping[str, int], addresses: Mapping[str, int]) -> None:
        """Set the shapes of the inputs and the addresses of all tensors.

        Args:
            sizes: sizes of the contract's varying dimensions, by name.
            addresses: GPU addresses by tensor name.

        Raises:
            RSRefSegError: TensorRT rejects a shape or an address, or infers another shape than the contract.
        """
        contract, context = self._contract, self._context
        for spec in contract.inputs:
            shape = spec.sized(**sizes)
            set_shape = partial(context.set_input_shape, spec.name, shape)
            self._calls.require_true(set_shape, f"accept '{spec.name}' as {list(shape)}", _AGAIN)
        missing = self._calls.require(context.infer_shapes, "infer the shapes of its tensors", _AGAIN)
        if missing:
            raise self._calls.failure(f"infer shapes without {', '.join(missing)}", _AGAIN)
        for spec in contract.outputs:
            shape = tuple(context.get_tensor_shape(spec.name)[:])
            if shape != spec.sized(**sizes):
                what = f"return '{spec.name}' as {list(spec.sized(**sizes))}, it returns {list(shape)}"
                raise self._calls.failure(what, "export the bundle again")
        for spec in (*contract.inputs, *contract.outputs):
            set_address = partial(context.set_tensor_address, spec.name, addresses[spec.name])
            self._calls.require_true(set_address, f"accept an address for '{spec.name}'", _AGAIN)

    def enqueue(self) -> None:
        """Enqueue one run on the stage's stream.

        Raises:
            RSRefSegError: TensorRT cannot enqueue the run.
        """
        stream = int(self._stream)
        self._calls.require_true(lambda: self._context.execute_async_v3(stream), "run", _AGAIN)


def sizes_of(contract: StageContract, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the sizes of a contract's varying dimensions, from the shapes of its inputs."""
    return {
        want.name: size
        for spec in contract.inputs
        for want, size in zip(spec.shape, shapes[spec.name], strict=True)
        if isinstance(want, Dim)
    }
