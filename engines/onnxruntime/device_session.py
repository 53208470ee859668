"""A session whose tensors stay on a device, and whose repeated runs ONNX Runtime records as CUDA graphs and replays.

A replay is one launch for the whole graph instead of one for every node. It removes the host's overhead for many small
kernels, and cuDNN keeps its plan for each number of phrases.
"""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle.contracts import Dim, StageContract, TensorSpec
from ..engine import Tensors, one_line
from .engine import TYPES
from .library import package

RECORDING_OPTIONS = {"enable_cuda_graph": "1"}  # of the CUDA provider
_GRAPH_ID, _NOT_RECORDED = "gpu_graph_id", "-1"  # a run option of ONNX Runtime
_RECORDED_FROM = 3  # runs of a shape: recording a shape that occurs once costs more than it saves
_MOST_RECORDINGS = 8

_Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class BoundTensor:
    """A tensor in the memory of a device: its ``OrtValue``, numpy dtype name and shape."""

    value: Any
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, value: Any) -> "BoundTensor":
        """Describe an ``OrtValue``."""
        return cls(value, TYPES.get(value.data_type(), value.data_type()), tuple(value.shape()))


class PendingTensor:
    """A tensor for one image that a worker thread computes: its numpy dtype name and shape.

    Args:
        results: the outputs of its stage.
        spec: its contract.
    """

    def __init__(self, results: Future[Tensors], spec: TensorSpec) -> None:
        self.dtype, self.shape = spec.dtype, spec.sized(images=1)
        self._results, self._name = results, spec.name

    def bound(self) -> BoundTensor:
        """Wait for the tensor and return it; raise the error of its stage."""
        tensor: BoundTensor = self._results.result()[self._name]
        return tensor


class DeviceSession:
    """Runs a session on arrays and tensors of its device.

    Each recording belongs to the shapes of its inputs, that is, to a number of phrases. It reads and writes the same
    memory in every run, so its results are copied. A recorded graph must not contain products whose batches are
    broadcast: ONNX Runtime passes cuBLAS addresses in host memory that it reuses after the recording.

    Not thread-safe. Nothing else may use the GPU while a run is recorded.

    Args:
        session: the ``InferenceSession``, created with ``RECORDING_OPTIONS`` if it is recorded on CUDA.
        contract: contract of its stage.
        place: the device's name in ONNX Runtime, and its index.
        to_host: whether ``run`` returns arrays.
        records: whether repeated runs are recorded.
        refusal: why runs are not recorded, for reports.

    Attributes:
        refusal: why runs are no longer recorded; empty while they are.
        recordings: recordings by the shapes of their inputs.
    """

    def __init__(
        self, session: Any, contract: StageContract, place: tuple[str, int], to_host: bool, records: bool, refusal: str
    ) -> None:
        self.session = session
        self.refusal = refusal
        self.recordings: dict[_Shapes, _Recording] = {}
        self._contract, self._place, self._to_host = contract, place, to_host
        self._records = records and not refusal
        self._seen: Counter[_Shapes] = Counter()

    def may_record(self, feeds: Mapping[str, Any]) -> bool:
        """Return whether the next run with feeds of these shapes may be recorded."""
        return self._records and self._shapes(feeds) not in self.recordings

    def run(self, feeds: Mapping[str, Any]) -> Tensors:
        """Run on feeds that fit the contract: arrays or ``BoundTensor``. ONNX Runtime's errors pass through."""
        if self._records:
            try:
                if (recording := self._recording(feeds)) is not None:
                    return recording.run(feeds, self._to_host)
            except Exception as error:  # ONNX Runtime's error classes share no base but Exception
                # A failure that recording did not cause, such as too little memory, also fails the run below.
                self.refusal = one_line(error) or type(error).__name__
                self._records = False
                self.recordings.clear()
        options = package().RunOptions()
        options.add_run_config_entry(_GRAPH_ID, _NOT_RECORDED)
        binding = self.session.io_binding()
        for name, tensor in feeds.items():
            if isinstance(tensor, BoundTensor):
                binding.bind_ortvalue_input(name, tensor.value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(tensor))
        for spec in self._contract.outputs:
            # Without a buffer every run allocates its own results, so that callers can keep them.
            binding.bind_output(spec.name, *(("cpu", 0) if self._to_host else self._place))
        binding.synchronize_inputs()
        self.session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()
        values = zip(self._contract.outputs, binding.get_outputs(), strict=True)
        return {spec.name: value.numpy() if self._to_host else BoundTensor.of(value) for spec, value in values}

    def _recording(self, feeds: Mapping[str, Any]) -> "_Recording | None":
        """Return the recording for feeds of these shapes, or ``None`` until there were enough runs."""
        shapes = self._shapes(feeds)
        if shapes not in self.recordings:
            self._seen[shapes] += 1
            if self._seen[shapes] < _RECORDED_FROM or len(self.recordings) == _MOST_RECORDINGS:
                return None
            number = len(self.recordings) + 1
            self.recordings[shapes] = _Recording(self.session, self._contract, feeds, self._place, number)
        return self.recordings[shapes]

    def _shapes(self, feeds: Mapping[str, Any]) -> _Shapes:
        return tuple(tuple(feeds[spec.name].shape) for spec in self._contract.inputs)


class _Recording:
    """A run with fixed memory for its inputs and outputs; the first ``run`` records it, later ones replay it."""

    def __init__(
        self, session: Any, contract: StageContract, feeds: Mapping[str, Any], place: tuple[str, int], number: int
    ) -> None:
        shapes = [(spec.shape, feeds[spec.name].shape) for spec in contract.inputs]
        pairs = [pair for shape, found in shapes for pair in zip(shape, found, strict=True)]
        sizes = {dim.name: size for dim, size in pairs if isinstance(dim, Dim)}
        self._session, self._place = session, place
        self._binding = session.io_binding()
        self._options = package().RunOptions()
        self._options.add_run_config_entry(_GRAPH_ID, str(number))
        self._inputs, self._outputs = (
            {spec.name: _empty(spec.sized(**sizes), spec.dtype, place) for spec in specs}
            for specs in (contract.inputs, contract.outputs)
        )
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Mapping[str, Any], to_host: bool) -> Tensors:
        """Run on copies of the feeds and return copies of the results."""
        for name, value in self._inputs.items():
            feed = feeds[name]
            value.update_inplace(np.ascontiguousarray(feed) if isinstance(feed, np.ndarray) else feed.value)
        self._session.run_with_iobinding(self._binding, self._options)
        if to_host:
            # On a CPU ``numpy`` returns a view of the recording's memory.
            return {name: np.array(value.numpy()) for name, value in self._outputs.items()}
        copies: Tensors = {}
        for name, value in self._outputs.items():
            copies[name] = BoundTensor.of(_empty(value.shape(), TYPES[value.data_type()], self._place))
            copies[name].value.update_inplace(value)
        return copies


def _empty(shape: tuple[int, ...], dtype: str, place: tuple[str, int]) -> Any:
    """Return an uninitialised ``OrtValue`` on the device."""
    return package().OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype), *place)
