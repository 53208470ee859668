"""The base class of all runtimes. A stage maps named arrays to named arrays."""

import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from .bundle.bundle import Bundle
from .bundle.contracts import Stage, StageContract
from .errors import BadInputError, BundleError

if TYPE_CHECKING:
    from typing import Self

Arrays = dict[str, npt.NDArray[Any]]
# By contract name: arrays, or tensors in the memory of a device that only their engine can read.
Tensors = dict[str, Any]

IMAGE_STAGES = (Stage.SIGLIP_VISION, Stage.SAM_ENCODER)


class Engine(ABC):
    """Runs the five graphs of one bundle. A context manager; stages load on first use, or by ``load``.

    ``run`` maps arrays to arrays, one stage at a time. ``encode_image``, ``encode_text`` and ``predict`` lead from
    pixels and token ids to mask logits; the tensors between them stay on the engine's device, where their computation
    may be unfinished. All methods check their arguments against the contracts. Thread-safe.

    A subclass implements ``_load``, ``_run`` and ``provider_of``. An engine that computes on a device also overrides
    ``to_host`` and the methods that it can run faster.

    Attributes:
        name: the backend's name, as in ``--backend``.
        bundle: the bundle to run.
        load_ms: time to load each stage, including the digests of its files, ms.
        loads_together: whether ``load`` loads stages in parallel, which is faster in total and slower per stage.
    """

    name: str
    loads_together: ClassVar[bool] = False

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.load_ms: dict[Stage, float] = {}
        self._models: dict[Stage, Any] = {}
        # Held while stages load and while the engine closes. Engines on a device hold it during every call.
        self._lock = threading.RLock()

    def contract(self, stage: Stage) -> StageContract:
        """Return the inputs and outputs of a stage."""
        return self.bundle.manifest.stages[stage].contract

    def load(self, *stages: Stage) -> None:
        """Load stages that are not loaded yet; all stages by default.

        Raises:
            RSRefSegError: a file differs from the bundle's record, or the runtime cannot load it.
        """
        with self._lock:
            missing = [stage for stage in dict.fromkeys(stages or Stage) if stage not in self._models]
            if self.loads_together and len(missing) > 1:
                with ThreadPoolExecutor(len(missing)) as pool:
                    list(pool.map(self._load_timed, missing))
            else:
                for stage in missing:
                    self._load_timed(stage)

    def run(self, stage: Stage, feeds: Mapping[str, Any]) -> Arrays:
        """Run one stage and return its outputs as arrays by contract name.

        Args:
            stage: the stage to run.
            feeds: the stage's inputs by contract name; other entries are ignored.

        Raises:
            BadInputError: the feeds do not fit the contract.
            RSRefSegError: loading or running failed.
        """
        return dict(self.run_resident(stage, feeds))

    def run_resident(self, stage: Stage, feeds: Mapping[str, Any]) -> Tensors:
        """Like ``run``, but leave the outputs on the engine's device; ``feeds`` may hold such tensors."""
        contract = self.contract(stage)
        inputs = {spec.name: feeds[spec.name] for spec in contract.inputs if spec.name in feeds}
        contract.check_inputs(inputs)
        return self._run(stage, self._loaded(stage), inputs)

    def encode_image(self, image: npt.NDArray[np.uint8]) -> Tensors:
        """Run both image encoders.

        Args:
            image: (1, 3, S, S) uint8 RGB, stretched to the network's side S.

        Returns:
            The outputs of both encoders by contract name.

        Raises:
            BadInputError: the array has another shape or type.
            RSRefSegError: loading or running failed.
        """
        self.contract(Stage.SIGLIP_VISION).check_inputs({"image": image})
        if len(image) != 1:
            raise BadInputError(f"one image is encoded at a time, got an array of shape {list(image.shape)}")
        self.load(*IMAGE_STAGES)
        return self._encode_image(image)

    def encode_text(self, input_ids: npt.NDArray[np.int64], token_mask: npt.NDArray[np.bool_]) -> list[Tensors]:
        """Run the text encoder on P phrases.

        Args:
            input_ids: (P, L) int64, from ``Tokenizer``.
            token_mask: (P, L) bool, from ``Tokenizer``.

        Returns:
            Features and token mask of each phrase; ``predict`` accepts any combination of them.

        Raises:
            BadInputError: the arrays do not fit the contract.
            RSRefSegError: loading or running failed.
        """
        tokens = {"input_ids": input_ids, "token_mask": token_mask}
        if self.bundle.manifest.stages[Stage.SIGLIP_TEXT].is_dynamic and len(input_ids) > 1:
            self.contract(Stage.SIGLIP_TEXT).check_inputs(tokens)
            # Its scales follow from all phrases of a run, so one run would let a phrase change the others' masks.
            pairs = zip(input_ids, token_mask, strict=True)
            return [features for ids, mask in pairs for features in self.encode_text(ids[None], mask[None])]
        features = {"token_mask": token_mask, **self.run(Stage.SIGLIP_TEXT, tokens)}
        # Copies: a view would keep the whole batch alive.
        return [{name: array[row].copy() for name, array in features.items()} for row in range(len(input_ids))]

    def predict(self, image: Tensors, phrases: Sequence[Tensors]) -> npt.NDArray[np.float32]:
        """Run prompter and decoder for P phrases on one image.

        Args:
            image: the result of ``encode_image``.
            phrases: P entries from results of ``encode_text``.

        Returns:
            (P, 1, h, w) float32 mask logits.

        Raises:
            BadInputError: no phrases, or more than the contract allows.
            RSRefSegError: loading or running failed.
        """
        (dim,) = self.contract(Stage.SAM_DECODER).dims
        if not dim.min <= len(phrases) <= dim.max:
            raise BadInputError(f"{len(phrases)} phrases in one call: {dim.min} to {dim.max} are allowed")
        return self._predict(image, phrases)

    def to_host(self, tensors: Tensors) -> Arrays:
        """Return tensors of this engine as arrays in host memory."""
        return dict(tensors)

    def precision_of(self, stage: Stage) -> str:
        """Return the precision of a stage, one of ``COARSENESS``. May load the stage."""
        return self.bundle.manifest.stages[stage].precision

    @abstractmethod
    def provider_of(self, stage: Stage) -> str:
        """Return the runtime's name of the provider or device that runs a stage. May load the stage."""

    def close(self) -> None:
        """Free all loaded stages, once none is loading. A stage loads again on its next use."""
        with self._lock:
            self._models.clear()
            self.load_ms.clear()

    @abstractmethod
    def _load(self, stage: Stage) -> Any:
        """Load a stage and return the model for ``_run``. Calls for one stage never overlap."""

    @abstractmethod
    def _run(self, stage: Stage, model: Any, feeds: Mapping[str, Any]) -> Tensors:
        """Run a loaded stage on feeds that fit its contract."""

    def _encode_image(self, image: npt.NDArray[np.uint8]) -> Tensors:
        features: Tensors = {}
        for stage in IMAGE_STAGES:
            features |= self._run(stage, self._loaded(stage), {"image": image})
        return features

    def _predict(self, image: Tensors, phrases: Sequence[Tensors]) -> npt.NDArray[np.float32]:
        text = {name: np.stack([phrase[name] for phrase in phrases]) for name in phrases[0]}
        prompts = self.run_resident(Stage.ATTN_PROMPTER, image | text)
        logits: npt.NDArray[np.float32] = self.run_resident(Stage.SAM_DECODER, image | prompts)["mask_logits"]
        return logits

    def _loaded(self, stage: Stage) -> Any:
        """Return the model of a stage, loading it if needed. It stays usable if the engine is closed meanwhile."""
        if (model := self._models.get(stage)) is not None:
            return model
        with self._lock:
            self.load(stage)
            return self._models[stage]

    def _load_timed(self, stage: Stage) -> None:
        start = time.perf_counter()
        self._models[stage] = self._load(stage)
        self.load_ms[stage] = (time.perf_counter() - start) * 1e3

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def refuse_dynamic(bundle: Bundle, runtime: str) -> None:
    """Check that no graph of a bundle takes its INT8 scales from each input, which runs on CPUs only.

    Raises:
        BadInputError: a graph does.
    """
    if stage := next((name for name, record in bundle.manifest.stages.items() if record.is_dynamic), None):
        raise BadInputError(
            f"{runtime} cannot run stage '{stage}', whose INT8 scales are dynamic, for CPUs: export the bundle with"
            " --target tensorrt --fp16 --int8 --data, or use --backend onnxruntime"
        )


def check_signature(file: str, contract: StageContract, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Check that the tensor names and types of a graph match its contract.

    Args:
        file: file name of the graph, for the message.
        contract: contract of the graph's stage.
        inputs, outputs: numpy dtype names of the graph's tensors by tensor name.

    Raises:
        BundleError: they differ; the message names both.
    """
    for kind, found, specs in (("inputs", inputs, contract.inputs), ("outputs", outputs, contract.outputs)):
        wanted = {spec.name: spec.dtype for spec in specs}
        if found != wanted:
            raise BundleError(
                f"the {kind} of '{file}' are {dict(found)}, its contract says {wanted}: export the bundle again"
            )


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line of at most 300 characters; only CUDA's part if it has one."""
    text = " ".join(str(error).split())
    by_cuda = re.search(r"CU\w+ failure \d+: [^;]*[^; ]", text)
    return (by_cuda[0] if by_cuda else text)[:300]
