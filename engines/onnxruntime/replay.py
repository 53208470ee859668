"""Runs of a session that ONNX Runtime records on a GPU and replays: one launch for the graph, not one for every node.

The text encoder of preset b is 900 small kernels. An H200 computes them in 2.4 ms when they are replayed; launched one
by one they take 6 to 10 ms of the host's time (2026-11-27, onnxruntime-gpu 1.31). A convolution whose number of images
changes is planned anew each time, which takes cuDNN 25 ms for those of the prompter; a recording keeps its plan.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..bundle.contracts import Dim, StageContract, TensorSpec
from .engine import one_line

GRAPH_ID = "gpu_graph_id"  # of a run, by ONNX Runtime's own key
NOT_RECORDED = "-1"
CUDA_OPTIONS = {"enable_cuda_graph": "1"}

_RECORDED_FROM = 3  # times that a shape is asked: to record one that comes once costs more than it saves
_MOST_RECORDINGS = 8

_Shapes = tuple[tuple[int, ...], ...]


class Replays:
    """The recordings of one session, one for each shape of what goes in: that is, for each number of phrases.

    A recording reads and writes the same memory each time, so what it gives is copied. It must not contain products
    whose batches are broadcast: ONNX Runtime hands cuBLAS the addresses of their parts in host memory that it uses for
    other things after the recording. SAM's encoder has such products, no other stage has.

    Not safe among threads: while a run is recorded, no other may use the GPU.

    Args:
        session: made with ``CUDA_OPTIONS``. On another device its runs have memory of their own all the same.
        contract: of its stage.
        device: its memory, as ONNX Runtime names it.
        device_id: number of the device.
        to_host: whether results are wanted in host memory.

    Attributes:
        refusal: why no run is recorded any more; empty as long as they are.
    """

    def __init__(self, session: Any, contract: StageContract, device: str, device_id: int, to_host: bool) -> None:
        self.refusal = ""
        self.to_host = to_host
        self._session, self._contract = session, contract
        self._place = (device, device_id)
        self._asked: Counter[_Shapes] = Counter()
        self._recordings: dict[_Shapes, _Recording] = {}

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._recordings)

    def is_settled(self, feeds: Mapping[str, Any]) -> bool:
        """Whether a run of such shapes is recorded, or none is any more: the next one will not be recorded."""
        return bool(self.refusal) or self._shapes(feeds) in self._recordings

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any] | None:
        """Replay a run; ``None`` where it is not recorded and has to be run as usual.

        Args:
            feeds: by contract name, checked: arrays, or tensors with an ``OrtValue`` as their ``value``.

        Returns:
            The results, as arrays or as ``OrtValue``.
        """
        shapes = self._shapes(feeds)
        if self.refusal or (shapes not in self._recordings and not self._worth_recording(shapes)):
            return None
        try:
            if shapes not in self._recordings:
                number = len(self._recordings) + 1
                self._recordings[shapes] = _Recording(self._session, self._contract, feeds, self._place, number)
            return {spec.name: self._kept(spec, value) for spec, value in self._recordings[shapes].run(feeds)}
        except Exception as error:  # ONNX Runtime's error classes share no base but Exception
            # What really fails, such as for want of memory, fails as well without a recording, and is told then.
            self.refusal = one_line(error) or type(error).__name__
            self._recordings.clear()
            return None

    def _shapes(self, feeds: Mapping[str, Any]) -> _Shapes:
        return tuple(tuple(feeds[spec.name].shape) for spec in self._contract.inputs)

    def _worth_recording(self, shapes: _Shapes) -> bool:
        self._asked[shapes] += 1
        return self._asked[shapes] >= _RECORDED_FROM and len(self._recordings) < _MOST_RECORDINGS

    def _kept(self, spec: TensorSpec, value: Any) -> Any:
        """A copy."""
        if self.to_host:
            return np.array(value.numpy())  # host memory would come as it is
        kept = _room(value.shape(), spec.dtype, self._place)
        kept.update_inplace(value)
        return kept


class _Recording:
    """A run with memory of its own for what goes in and out; the first ``run`` records it."""

    def __init__(
        self, session: Any, contract: StageContract, feeds: Mapping[str, Any], place: tuple[str, int], number: int
    ) -> None:
        import onnxruntime

        sizes = {
            dim.name: size
            for spec in contract.inputs
            for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
            if isinstance(dim, Dim)
        }
        self._session = session
        self._binding = session.io_binding()
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry(GRAPH_ID, str(number))
        self._inputs, self._outputs = (
            [(spec, _room(spec.sized(**sizes), spec.dtype, place)) for spec in specs]
            for specs in (contract.inputs, contract.outputs)
        )
        for spec, value in self._inputs:
            self._binding.bind_ortvalue_input(spec.name, value)
        for spec, value in self._outputs:
            self._binding.bind_ortvalue_output(spec.name, value)

    def run(self, feeds: Mapping[str, Any]) -> Iterable[tuple[TensorSpec, Any]]:
        """The results, which the next run overwrites."""
        for spec, value in self._inputs:
            feed = feeds[spec.name]
            value.update_inplace(np.ascontiguousarray(feed) if isinstance(feed, np.ndarray) else feed.value)
        self._session.run_with_iobinding(self._binding, self._options)
        return self._outputs


def _room(shape: tuple[int, ...], dtype: str, place: tuple[str, int]) -> Any:
    """An ``OrtValue`` on the device, of any content."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype), *place)
