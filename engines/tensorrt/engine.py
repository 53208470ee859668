"""Runs a bundle on TensorRT engines. Tensors stay on the GPU from pixels to mask logits."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..engine import IMAGE_STAGES, Arrays, Engine, Tensors, refuse_dynamic
from ..errors import BadInputError, BundleError, MissingPartError, RSRefSegError
from ..system.files import cache_folder
from .build import Compiler
from .cuda import Cuda
from .gpus import parse_gpus
from .library import Library, gpu_platform, open_rtx, open_tensorrt
from .memory import DeviceTensor
from .session import Session
from .store import StoredEngine, ensure_engines, find_engine, open_portable

ENGINES_VARIABLE = "RSREFSEG_ENGINES"
_PHRASE_STAGES = (Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
_CAPTURED_AT = 2  # TensorRT requires a run with the same shapes before a capture
_LOG = logging.getLogger(__name__)


class TensorRTEngine(Engine):
    """Runs every stage as a TensorRT engine on CUDA device 0.

    The constructor builds missing and stale engines, which takes minutes, and reports why. Thread-safe: calls run one
    at a time.

    Args:
        bundle: the bundle to run.
        build: whether to build engines; if False, a missing or stale engine is an error.

    Raises:
        BadInputError: the bundle has dynamic INT8 scales.
        MissingPartError: TensorRT, CUDA or a GPU is missing, or ``build`` is False and an engine is missing or stale.
        RSRefSegError: an engine cannot be built.
    """

    name = "tensorrt"

    def __init__(self, bundle: Bundle, build: bool = True) -> None:
        super().__init__(bundle)
        self._library, self._cuda = self._open_library(), Cuda()
        refuse_dynamic(bundle, self.name)
        self._session: Session | None = None
        self._image: DeviceTensor | None = None
        self._image_read: Any = None
        self._fixed: dict[str, DeviceTensor] = {}
        self._runners: dict[int, _PhraseRunner] = {}
        self._compiler = self._make_compiler()
        self._stored = self._find(build)

    def provider_of(self, stage: Stage) -> str:
        """Return TensorRT's version, the GPU, and the precision of the layers that multiply."""
        self.load(stage)
        return f"{self._library} on {self._cuda.gpu.name}, {self._stored[stage].record.computes_in}"

    def _encode_image(self, image: npt.NDArray[np.uint8]) -> Tensors:
        """Run both image encoders in parallel. Returns before they finish."""
        with self._lock, self._opened().settled():
            self.load(*IMAGE_STAGES)
            session, cuda = self._opened(), self._cuda
            if self._image is None:
                (spec,) = session.contracts[Stage.SIGLIP_VISION].inputs
                self._image = session.pool.tensor(spec.sized(images=1), spec.dtype, session.main)
                self._image_read = cuda.event()
            # SAM's encoder may still be reading the previous image.
            cuda.call("cudaStreamWaitEvent", session.main, self._image_read, 0)
            session.staging.upload("image", image, self._image.address, session.main)
            self._image.written(session.main)
            self._image.wait(session.side)
            features: Tensors = {}
            for stage in (Stage.SAM_ENCODER, Stage.SIGLIP_VISION):
                specs = session.contracts[stage].outputs
                outputs = session.tensors(specs, {"images": 1}, session.stream_of(stage))
                session.run_once(stage, {"images": 1}, {"image": self._image, **outputs})
                features |= outputs
            cuda.call("cudaEventRecord", self._image_read, session.side)
            return features

    def encode_text(self, input_ids: npt.NDArray[np.int64], token_mask: npt.NDArray[np.bool_]) -> list[Tensors]:
        """Run the text encoder on P phrases. Returns before it finishes."""
        feeds = {"input_ids": input_ids, "token_mask": token_mask}
        contract, sizes = self.contract(Stage.SIGLIP_TEXT), {"phrases": len(input_ids)}
        contract.check_inputs(feeds)
        with self._lock, self._opened().settled():
            self.load(Stage.SIGLIP_TEXT)
            session = self._opened()
            batch = session.tensors((*contract.inputs, *contract.outputs), sizes, session.main)
            for name, array in feeds.items():
                session.staging.upload(name, array, batch[name].address, session.main)
            session.run_once(Stage.SIGLIP_TEXT, sizes, batch)
            del feeds["input_ids"]
            names = [*feeds, *(spec.name for spec in contract.outputs)]
            rows = [{name: self._row(session, batch[name], row) for name in names} for row in range(len(input_ids))]
            for tensor in batch.values():
                tensor.written(session.main)  # the next user of this memory waits for the copies too
            return rows

    def _predict(self, image: Tensors, phrases: Sequence[Tensors]) -> npt.NDArray[np.float32]:
        """Run prompter and decoder, as one CUDA graph from the third call with a number of phrases on."""
        with self._lock, self._opened().settled():
            self.load(*_PHRASE_STAGES)
            session, count = self._opened(), len(phrases)
            if not self._fixed:
                contracts = [session.contracts[stage] for stage in _PHRASE_STAGES]
                specs = {spec.name: spec for contract in contracts for spec in (*contract.inputs, *contract.outputs)}
                most = {dim.name: dim.max for contract in contracts for dim in contract.dims}
                self._fixed = session.tensors(list(specs.values()), most, session.main)
            parts = [(self._fixed[name].address, tensor) for name, tensor in image.items()]
            for row, phrase in enumerate(phrases):
                parts += [(self._fixed[name].address + row * one.size_bytes, one) for name, one in phrase.items()]
            for address, tensor in parts:
                tensor.wait(session.main)
                self._cuda.copy(address, tensor.address, tensor.size_bytes, "DeviceToDevice", session.main)
            if count not in self._runners:
                self._runners[count] = _PhraseRunner(session, count, self._fixed)
            self._runners[count].run()
            (spec,) = session.contracts[Stage.SAM_DECODER].outputs
            logits = {spec.name: self._fixed[spec.name]}
            fetched = session.fetch(logits, session.main, **{spec.name: spec.sized(phrases=count)})
            return fetched[spec.name]

    def to_host(self, tensors: Tensors) -> Arrays:
        """Return copies of tensors in host memory."""
        with self._lock, self._opened().settled():
            return self._opened().fetch(tensors, self._opened().main)

    def close(self) -> None:
        """Free all engines and GPU memory. Existing features become unusable."""
        with self._lock:
            self._image = self._image_read = None
            self._fixed.clear()
            self._runners.clear()
            if self._session is not None:
                session, self._session = self._session, None
                session.close()
            for error in self._cuda.free():
                _LOG.warning("%s", error)
            super().close()

    def _open_library(self) -> Library:
        return open_tensorrt()

    def _make_compiler(self) -> Compiler:
        return Compiler(self._library, gpu_platform(self._library, self._cuda.gpu))

    def _find(self, build: bool) -> dict[Stage, StoredEngine]:
        """Return the current engine of every stage, building missing and stale ones."""
        found = {stage: find_engine(self.bundle, stage, self._compiler.platform, {}) for stage in Stage}
        lacking = [stage for stage in Stage if found[stage].reasons]
        if lacking and not build:
            reason = f"no TensorRT engine of {lacking[0]} for this machine ({found[lacking[0]].reasons[0]})"
            raise MissingPartError(f"{reason}: build it with `rsrefseg build`")
        if lacking:
            found |= ensure_engines(self._compiler, self.bundle, lacking, {}).stages
        return {stage: one.engine for stage, one in found.items() if one.engine is not None}

    def _opened(self) -> Session:
        if self._session is None:
            # Kernels fit one model of GPU, engines all of a compute capability.
            device = re.sub(r"[^A-Za-z0-9.]+", "_", f"{self._compiler.platform.file_name}-{self._cuda.gpu.name}")
            kernels = cache_folder() / "kernels" / f"{device}.cache"
            records = self.bundle.manifest.stages
            kept = kernels if self._library.is_rtx else None
            self._session = Session(self._library, self._cuda, self._stored, records, kept)
        return self._session

    def _load(self, stage: Stage) -> Any:
        self.bundle.graph_path(stage)
        try:
            return self._opened().load(stage)
        except BundleError:  # a changed engine file must be reported, not avoided by another backend
            raise
        except RSRefSegError as error:
            raise MissingPartError(str(error)) from error

    def _run(self, stage: Stage, model: Any, feeds: Mapping[str, Any]) -> Arrays:
        with self._lock:
            return self._opened().run(stage, feeds)

    def _row(self, session: Session, batch: DeviceTensor, row: int) -> DeviceTensor:
        """Copy the part of one phrase: a view would keep the whole batch alive."""
        kept = session.pool.tensor(batch.shape[1:], str(batch.dtype), session.main)
        source = batch.address + row * kept.size_bytes
        self._cuda.copy(kept.address, source, kept.size_bytes, "DeviceToDevice", session.main)
        kept.written(session.main)
        return kept


class RtxEngine(TensorRTEngine):
    """Runs every stage as an engine of TensorRT-RTX on CUDA device 0.

    ``$RSREFSEG_ENGINES`` names a folder from ``rsrefseg build --runtime tensorrt-rtx``. Without it, the constructor
    builds missing and stale engines for this GPU. The first run on a GPU compiles the engines' kernels, which takes
    seconds, and keeps them in the user's cache folder.

    Args:
        bundle: the bundle to run.

    Raises:
        BadInputError: the bundle has dynamic INT8 scales.
        MissingPartError: TensorRT-RTX, CUDA or a GPU is missing, or the named folder is for another GPU or version.
        BundleError: the named folder is of another bundle.
        RSRefSegError: an engine cannot be built.
    """

    name = "tensorrt-rtx"

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)

    def _open_library(self) -> Library:
        return open_rtx()

    def _make_compiler(self) -> Compiler:
        gpu = f"sm{self._cuda.gpu.compute_capability.replace('.', '')}"
        try:
            return Compiler.for_gpus(self._library, parse_gpus(gpu))
        except BadInputError as error:
            raise MissingPartError(f"TensorRT-RTX does not run on this GPU ({gpu}): use --backend tensorrt") from error

    def _find(self, build: bool) -> dict[Stage, StoredEngine]:
        folder = os.environ.get(ENGINES_VARIABLE)
        if not folder:
            return super()._find(build)
        return open_portable(Path(folder), self.bundle, self._library.version, self._compiler.gpus[0])


class _PhraseRunner:
    """Runs prompter and decoder for ``count`` phrases on fixed tensors, from the third run on as one CUDA graph.

    Each has its own execution contexts: a graph contains the state of its contexts at the time of capture, which
    another number of phrases must not change.
    """

    def __init__(self, session: Session, count: int, tensors: Mapping[str, DeviceTensor]) -> None:
        self._session, self._count = session, count
        self._contexts = {stage: session.context(stage) for stage in _PHRASE_STAGES}
        for stage, context in self._contexts.items():
            sizes = {dim.name: count for dim in session.contracts[stage].dims}
            session.bind(stage, context, sizes, tensors)
        self._uses = 0
        self._graph: Any = None

    def run(self) -> None:
        """Enqueue one run of both stages on the main stream."""
        self._uses += 1
        if self._graph is not None:
            self._session.cuda.call("cudaGraphLaunch", self._graph, self._session.main)
            return
        self._enqueue()
        if self._uses == _CAPTURED_AT:
            try:
                self._graph = self._session.cuda.capture(self._session.main, self._enqueue)
            except RSRefSegError as error:
                _LOG.warning("prompter and decoder run without a CUDA graph for %d phrases: %s", self._count, error)

    def _enqueue(self) -> None:
        for stage, context in self._contexts.items():
            self._session.enqueue(stage, context)
