"""Prompter and decoder for one number of phrases, on addresses that stay, so that CUDA can replay both as one graph."""

import logging
from collections.abc import Mapping
from typing import Any

from ..bundle.contracts import Stage
from ..errors import RSRefSegError
from .context import StageContext
from .memory import DeviceTensor
from .session import Session

PHRASE_STAGES = (Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
_CAPTURED_AT = 2  # TensorRT wants a run with the same shapes before it is captured
_LOG = logging.getLogger(__name__)


class PhraseRunner:
    """Runs both stages for ``count`` phrases; from the third time on as a CUDA graph.

    It has execution contexts of its own: a graph holds what its contexts were when it was captured, so that another
    number of phrases must not change them.

    Args:
        session: the loaded engines.
        count: number of phrases.
        tensors: inputs and outputs of both stages, large enough.
    """

    def __init__(self, session: Session, count: int, tensors: Mapping[str, DeviceTensor]) -> None:
        self._session, self._count = session, count
        self._contexts = []
        for stage in PHRASE_STAGES:
            context = StageContext(session.load(stage))
            contract = session.contracts[stage]
            names = [spec.name for spec in (*contract.inputs, *contract.outputs)]
            sizes = {dim.name: count for dim in contract.dims}
            context.bind(sizes, {name: tensors[name].address for name in names})
            self._contexts.append(context)
        self._uses = 0
        self.graph: Any = None

    def run(self) -> None:
        """Give one run of both to the main stream."""
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
        """Record both for the next time. Where that fails, they go on as before, only slower, and the log says so."""
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
