"""Runs prompter and decoder for one number of phrases on fixed addresses, so that CUDA replays both as one graph."""

import logging
from collections.abc import Mapping
from typing import Any

from ..bundle.contracts import Stage
from ..errors import RSRefSegError
from .memory import DeviceTensor
from .session import Session

PHRASE_STAGES = (Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
_CAPTURED_AT = 2  # TensorRT requires a run with the same shapes before a capture
_LOG = logging.getLogger(__name__)


class PhraseRunner:
    """Runs both stages for ``count`` phrases, from the third run on as a CUDA graph.

    Each runner has its own execution contexts: a graph contains the state of its contexts at the time of capture, which
    another number of phrases must not change.

    Args:
        session: the loaded engines.
        count: number of phrases.
        tensors: inputs and outputs of both stages by name, large enough for ``count`` phrases.
    """

    def __init__(self, session: Session, count: int, tensors: Mapping[str, DeviceTensor]) -> None:
        self._session, self._count = session, count
        self._contexts = []
        for stage in PHRASE_STAGES:
            context = session.context(stage)
            contract = session.contracts[stage]
            names = [spec.name for spec in (*contract.inputs, *contract.outputs)]
            sizes = {dim.name: count for dim in contract.dims}
            context.bind(sizes, {name: tensors[name].address for name in names})
            self._contexts.append(context)
        self._uses = 0
        self.graph: Any = None

    def run(self) -> None:
        """Enqueue one run of both stages on the main stream."""
        self._uses += 1
        if self.graph is not None:
            self._session.cuda.launch(self.graph, self._session.main)
            return
        self._enqueue()
        if self._uses == _CAPTURED_AT:
            self._capture()

    def _enqueue(self) -> None:
        for context in self._contexts:
            context.enqueue()

    def _capture(self) -> None:
        """Capture both stages for later runs. If that fails, later runs use no graph, and a warning is logged."""
        cuda, stream = self._session.cuda, self._session.main
        try:
            cuda.begin_capture(stream)
            try:
                self._enqueue()
            except BaseException:
                cuda.abandon_capture(stream)
                raise
            self.graph = cuda.end_capture(stream)
        except RSRefSegError as error:
            _LOG.warning("prompter and decoder run without a CUDA graph for %d phrases: %s", self._count, error)
