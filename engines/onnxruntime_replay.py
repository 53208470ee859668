"""Runs of a session that ONNX Runtime records on a GPU and replays: one launch for the graph, not one for every node.

The text encoder of preset b is 900 small kernels. An H200 computes them in 2.4 ms when they are replayed; launched one
by one they take 6 to 10 ms of the host's time (2026-11-27, onnxruntime-gpu 1.31).
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from engines.contracts import Dim, StageContract
from engines.engine import Arrays

GRAPH_ID = "gpu_graph_id"  # of a run, by ONNX Runtime's own key
NOT_RECORDED = "-1"
CUDA_OPTIONS = {"enable_cuda_graph": "1"}

_RECORDED_FROM = 3  # times that a shape is asked: to record one that comes once costs more than it saves
_MOST_RECORDINGS = 8

_Shapes = tuple[tuple[int, ...], ...]


class Replays:
    """The recordings of one session, one for each shape of what goes in: that is, for each number of phrases.

    A recording reads and writes the same memory each time, so nothing that it gives is left there. It must not contain
    products whose batches are broadcast: ONNX Runtime hands cuBLAS the addresses of their parts in host memory that it
    uses for other things after the recording. The two encoders of images have none or many, and keep their results;
    text encoder and decoder have none.

    Not safe among threads: while a run is recorded, no other may use the GPU.

    Args:
        session: made with :data:`CUDA_OPTIONS`. On another device its runs have memory of their own all the same.
        contract: of its stage.
        device: its memory, as ONNX Runtime names it.
        device_id: number of the device.

    Attributes:
        refusal: why no run is recorded any more; empty as long as they are.
    """

    def __init__(self, session: Any, contract: StageContract, device: str, device_id: int) -> None:
        self.refusal = ""
        self._session, self._contract = session, contract
        self._place = (device, device_id)
        self._asked: Counter[_Shapes] = Counter()
        self._recordings: dict[_Shapes, _Recording] = {}

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._recordings)

    def run(self, feeds: Mapping[str, Any]) -> Arrays | None:
        """Replay a run; ``None`` where it is not recorded and has to be run as usual.

        Args:
            feeds: by contract name, checked: arrays, or tensors with an ``OrtValue`` as their ``value``.

        Returns:
            The results in host memory.
        """
        shapes = tuple(tuple(feeds[spec.name].shape) for spec in self._contract.inputs)
        if self.refusal or (shapes not in self._recordings and not self._worth_recording(shapes)):
            return None
        try:
            if shapes not in self._recordings:
                number = len(self._recordings) + 1
                self._recordings[shapes] = _Recording(self._session, self._contract, feeds, self._place, number)
            return self._recordings[shapes].run(feeds)
        except Exception as error:  # ONNX Runtime's error classes share no base but Exception
            # What really fails, such as for want of memory, fails as well without a recording, and is told then.
            self.refusal = " ".join(str(error).split())[:200] or type(error).__name__
            self._recordings.clear()
            return None

    def _worth_recording(self, shapes: _Shapes) -> bool:
        self._asked[shapes] += 1
        return self._asked[shapes] >= _RECORDED_FROM and len(self._recordings) < _MOST_RECORDINGS


class _Recording:
    """A run with memory of its own for what goes in and out; the first :meth:`run` records it."""

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
            {
                spec.name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    spec.sized(**sizes), np.dtype(spec.dtype), *place
                )
                for spec in specs
            }
            for specs in (contract.inputs, contract.outputs)
        )
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Mapping[str, Any]) -> Arrays:
        for name, value in self._inputs.items():
            feed = feeds[name]
            value.update_inplace(np.ascontiguousarray(feed) if isinstance(feed, np.ndarray) else feed.value)
        self._session.run_with_iobinding(self._binding, self._options)
        # Host memory comes as it is and not as a copy.
        return {name: np.array(value.numpy()) for name, value in self._outputs.items()}
