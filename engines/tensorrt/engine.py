"""Runs a bundle on TensorRT engines built on this machine. Tensors stay on the GPU from pixels to mask logits."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..engine import IMAGE_STAGES, Arrays, Engine, Tensors
from ..errors import BundleError, MissingPartError, RSRefSegError
from .build import Compiler
from .cuda import Cuda
from .library import Library, gpu_platform, open_tensorrt
from .memory import DeviceTensor
from .phrases import PHRASE_STAGES, PhraseRunner
from .records import StoredEngine
from .runtime_cache import RuntimeCache
from .session import Session
from .store import ensure_engines, find_engine

# Each has two execution contexts and a CUDA graph; few different numbers of phrases occur.
_MOST_RUNNERS = 8


class TensorRTEngine(Engine):
    """Runs every stage as a TensorRT engine on CUDA device 0.

    The constructor builds missing and stale engines, which takes minutes, and reports why. Thread-safe: calls run one
    at a time.

    Args:
        bundle: the bundle to run.
        build: whether to build engines; if False, a missing or stale engine is an error.

    Raises:
        MissingPartError: TensorRT, CUDA or a GPU is missing, or ``build`` is False and an engine is missing or stale.
        RSRefSegError: an engine cannot be built.
    """

    name = "tensorrt"

    def __init__(self, bundle: Bundle, build: bool = True) -> None:
        super().__init__(bundle)
        self._library, self._cuda = self._open_library(), Cuda()
        self._session: Session | None = None
        self._image: DeviceTensor | None = None
        self._image_read: Any = None
        self._image_written: Any = None
        self._fixed: dict[str, DeviceTensor] = {}
        self._runners: OrderedDict[int, PhraseRunner] = OrderedDict()
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
            sizes = {"images": 1}
            if self._image is None:
                inputs = session.contracts[Stage.SIGLIP_VISION].inputs
                self._image = session.tensors(inputs, sizes, session.main)["image"]
                self._image_written, self._image_read = cuda.make_event(), cuda.make_event()
            # SAM's encoder may still be reading the previous image.
            cuda.wait_in_stream(session.main, self._image_read)
            session.staging.upload("image", image, self._image.address, session.main)
            cuda.record(self._image_written, session.main)
            cuda.wait_in_stream(session.side, self._image_written)
            features: Tensors = {}
            for stage in (Stage.SAM_ENCODER, Stage.SIGLIP_VISION):
                outputs = session.tensors(session.contracts[stage].outputs, sizes, session.stream_of(stage))
                session.enqueue(stage, sizes, {"image": self._image, **outputs})
                features |= outputs
            cuda.record(self._image_read, session.side)
            return features

    def encode_text(self, input_ids: npt.NDArray[np.int64], token_mask: npt.NDArray[np.bool_]) -> list[Tensors]:
        """Run the text encoder on P phrases. Returns before it finishes."""
        feeds = {"input_ids": input_ids, "token_mask": token_mask}
        self.bundle.manifest.stages[Stage.SIGLIP_TEXT].contract.check_inputs(feeds)
        self.load(Stage.SIGLIP_TEXT)
        with self._lock, self._opened().settled():
            session, count = self._opened(), len(input_ids)
            sizes = {"phrases": count}
            contract = session.contracts[Stage.SIGLIP_TEXT]
            batch = session.tensors((*contract.inputs, *contract.outputs), sizes, session.main)
            for name, array in feeds.items():
                session.staging.upload(name, array, batch[name].address, session.main)
            session.enqueue(Stage.SIGLIP_TEXT, sizes, batch)
            kept = {name: tensor for name, tensor in batch.items() if name != "input_ids"}
            rows = [{name: self._row(session, tensor, row) for name, tensor in kept.items()} for row in range(count)]
            for tensor in batch.values():
                tensor.written(session.main)  # the next user of this memory waits for the copies too
            return rows

    def _predict(self, image: Tensors, phrases: Sequence[Tensors]) -> npt.NDArray[np.float32]:
        """Run prompter and decoder, as one CUDA graph from the third call with a number of phrases on."""
        with self._lock, self._opened().settled():
            self.load(*PHRASE_STAGES)
            session, count = self._opened(), len(phrases)
            self._gather(session, image, phrases)
            self._runner(session, count).run()
            (spec,) = session.contracts[Stage.SAM_DECODER].outputs
            shape = spec.sized(phrases=count)
            fetch = session.staging.download(spec.name, self._fixed[spec.name].address, shape, spec.dtype, session.main)
            self._cuda.wait_for_stream(session.main, "finish the encoders, prompter and decoder")
            return fetch()

    def to_host(self, tensors: Tensors) -> Arrays:
        """Return copies of tensors in host memory."""
        with self._lock, self._opened().settled():
            session, cuda = self._opened(), self._cuda
            fetched = {}
            for name, tensor in tensors.items():
                cuda.wait_in_stream(session.main, tensor.ready)
                fetched[name] = session.staging.download(
                    f"kept {name}", tensor.address, tensor.shape, str(tensor.dtype), session.main
                )
            cuda.wait_for_stream(session.main, "finish the encoders")
            return {name: fetch() for name, fetch in fetched.items()}

    def close(self) -> None:
        """Free all engines and GPU memory. Existing features become unusable."""
        with self._lock:
            if self._session is not None:
                session, self._session = self._session, None
                graphs = [runner.graph for runner in self._runners.values() if runner.graph is not None]
                self._runners.clear()
                self._fixed.clear()
                self._image = None
                events = [event for event in (self._image_read, self._image_written) if event is not None]
                self._image_read = self._image_written = None
                session.close(graphs, events)
            super().close()

    def _open_library(self) -> Library:
        return open_tensorrt()

    def _compiler(self) -> Compiler:
        return Compiler(self._library, gpu_platform(self._library, self._cuda.gpu))

    def _find(self, build: bool) -> dict[Stage, StoredEngine]:
        """Return the current engine of every stage, building missing and stale ones."""
        compiler = self._compiler()
        found = {stage: find_engine(self.bundle, stage, compiler.platform) for stage in Stage}
        engines = {stage: one.engine for stage, one in found.items() if one.engine is not None}
        lacking = [stage for stage in Stage if stage not in engines]
        if lacking and not build:
            reason = f"no TensorRT engine of {lacking[0]} for this machine ({found[lacking[0]].reasons[0]})"
            raise MissingPartError(f"{reason}: build it with `rsrefseg build`")
        if lacking:
            built = ensure_engines(compiler, self.bundle, lacking)
            engines |= {stage: one.engine for stage, one in built.items()}
        return engines

    def _opened(self) -> Session:
        if self._session is None:
            records, cache = self.bundle.manifest.stages, self._runtime_cache()
            self._session = Session(self._library, self._cuda, self._stored, records, cache)
        return self._session

    def _runtime_cache(self) -> RuntimeCache | None:
        return None

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
        size = kept.size_bytes
        self._cuda.copy_over(kept.address, batch.address + row * size, size, session.main)
        kept.written(session.main)
        return kept

    def _gather(self, session: Session, image: Tensors, phrases: Sequence[Tensors]) -> None:
        """Copy the features of image and phrases to the addresses that prompter and decoder read from."""
        cuda, stream = self._cuda, session.main
        if not self._fixed:
            contracts = [session.contracts[stage] for stage in PHRASE_STAGES]
            specs = {spec.name: spec for contract in contracts for spec in (*contract.inputs, *contract.outputs)}
            most = {dim.name: dim.max for contract in contracts for dim in contract.dims}
            self._fixed = session.tensors(list(specs.values()), most, session.main)
        parts = [(self._fixed[name].address, tensor) for name, tensor in image.items()]
        for row, phrase in enumerate(phrases):
            parts += [(self._fixed[name].address + row * tensor.size_bytes, tensor) for name, tensor in phrase.items()]
        for address, tensor in parts:
            cuda.wait_in_stream(stream, tensor.ready)
            cuda.copy_over(address, tensor.address, tensor.size_bytes, stream)

    def _runner(self, session: Session, count: int) -> PhraseRunner:
        runner = self._runners.pop(count, None) or PhraseRunner(session, count, self._fixed)
        self._runners[count] = runner
        if len(self._runners) > _MOST_RUNNERS:
            _, oldest = self._runners.popitem(last=False)
            if oldest.graph is not None:
                self._cuda.free_graph(oldest.graph)
        return runner
