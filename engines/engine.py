"""The base class of all runtimes: a stage takes arrays by name and gives arrays by name."""

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
    """Runs the five graphs of one bundle. A context manager; stages load when first used, or by ``load``.

    ``run`` takes and gives arrays, one stage at a time. ``encode_image``, ``encode_text`` and ``answer`` go from pixels
    and words to mask logits; what they pass to each other stays where the engine computes and may still be being
    computed. All check their arguments against the contracts. Safe among threads.

    A subclass implements ``_load``, ``_run`` and ``provider_of``. An engine that computes on a device overrides
    ``to_host`` and what it can do better as well.

    Attributes:
        name: the backend's name, as ``--backend`` takes it.
        bundle: the bundle it runs.
        load_ms: milliseconds that each stage took to load, including the digests of its files.
        loads_together: whether ``load`` loads stages in parallel; a stage then takes longer, all of them less.
    """

    name: str
    loads_together: ClassVar[bool] = False

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.load_ms: dict[Stage, float] = {}
        self._models: dict[Stage, Any] = {}
        # Held while stages load and while the engine closes. Engines of a device hold it for every call.
        self._lock = threading.RLock()

    def contract(self, stage: Stage) -> StageContract:
        """Inputs and outputs of a stage."""
        return self.bundle.manifest.stages[stage].contract

    def load(self, *stages: Stage) -> None:
        """Load stages that are not loaded yet; all of them when none is named.

        Raises:
            RSRefSegError: a file is not what the bundle says, or the runtime cannot load it.
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
        """Run one stage; gives its outputs as arrays by contract name.

        Args:
            stage: which.
            feeds: its inputs by contract name; other entries are ignored.

        Raises:
            BadInputError: the feeds do not fit the contract.
            RSRefSegError: loading or running failed.
        """
        return dict(self.run_resident(stage, feeds))

    def run_resident(self, stage: Stage, feeds: Mapping[str, Any]) -> Tensors:
        """Like ``run``, but leaves the outputs where the engine computed them; takes such tensors as well as arrays."""
        contract = self.contract(stage)
        inputs = {spec.name: feeds[spec.name] for spec in contract.inputs if spec.name in feeds}
        contract.check_inputs(inputs)
        return self._run(stage, self._loaded(stage), inputs)

    def encode_image(self, image: npt.NDArray[np.uint8]) -> Tensors:
        """Run both image encoders.

        Args:
            image: (1, 3, S, S) uint8, stretched to the network's side S.

        Returns:
            The outputs of both by contract name.

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
            input_ids: (P, L) int64.
            token_mask: (P, L) bool.

        Returns:
            Features and token mask of each phrase; ``answer`` takes any combination of them.

        Raises:
            RSRefSegError: loading or running failed.
        """
        tokens = {"input_ids": input_ids, "token_mask": token_mask}
        features = {"token_mask": token_mask, **self.run(Stage.SIGLIP_TEXT, tokens)}
        # Copies: a view would keep the whole batch alive.
        return [{name: array[row].copy() for name, array in features.items()} for row in range(len(input_ids))]

    def answer(self, image: Tensors, phrases: Sequence[Tensors]) -> npt.NDArray[np.float32]:
        """Run prompter and decoder for P phrases on one image.

        Args:
            image: from ``encode_image``.
            phrases: from ``encode_text``.

        Returns:
            (P, 1, h, w) mask logits.

        Raises:
            BadInputError: no phrases, or more than the contract allows.
            RSRefSegError: loading or running failed.
        """
        (dim,) = self.contract(Stage.SAM_DECODER).dims
        if not dim.min <= len(phrases) <= dim.max:
            raise BadInputError(f"{len(phrases)} phrases at once: {dim.min} to {dim.max} are possible")
        return self._answer(image, phrases)

    def to_host(self, tensors: Tensors) -> Arrays:
        """Tensors that this engine gave, as arrays."""
        return dict(tensors)

    def precision_of(self, stage: Stage) -> str:
        """The precision a stage computes in: its graph's ``fp32`` or ``fp16``, or ``bf16``. May load the stage."""
        return self.bundle.manifest.stages[stage].precision

    @abstractmethod
    def provider_of(self, stage: Stage) -> str:
        """What runs a stage, in the runtime's own words. May load the stage."""

    def close(self) -> None:
        """Free what was loaded, once no stage is loading. Stages load again when used again."""
        with self._lock:
            self._models.clear()
            self.load_ms.clear()

    @abstractmethod
    def _load(self, stage: Stage) -> Any:
        """Load a stage: gives the model that ``_run`` takes. Called once at a time for each stage."""

    @abstractmethod
    def _run(self, stage: Stage, model: Any, feeds: Mapping[str, Any]) -> Tensors:
        """Run a loaded stage on feeds that fit its contract."""

    def _encode_image(self, image: npt.NDArray[np.uint8]) -> Tensors:
        features: Tensors = {}
        for stage in IMAGE_STAGES:
            features |= self._run(stage, self._loaded(stage), {"image": image})
        return features

    def _answer(self, image: Tensors, phrases: Sequence[Tensors]) -> npt.NDArray[np.float32]:
        text = {name: np.stack([phrase[name] for phrase in phrases]) for name in phrases[0]}
        prompts = self.run_resident(Stage.ATTN_PROMPTER, image | text)
        logits: npt.NDArray[np.float32] = self.run_resident(Stage.SAM_DECODER, image | prompts)["mask_logits"]
        return logits

    def _loaded(self, stage: Stage) -> Any:
        """The model of a stage, loaded if need be. The caller can use it even if the engine is closed meanwhile."""
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


def check_signature(file: str, contract: StageContract, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Refuse a graph whose names and types differ from its contract.

    Args:
        file: the graph's name, for the message.
        contract: of its stage.
        inputs, outputs: the numpy dtype names of the graph's tensors by tensor name.

    Raises:
        BundleError: naming both.
    """
    for kind, found, specs in (("inputs", inputs, contract.inputs), ("outputs", outputs, contract.outputs)):
        wanted = {spec.name: spec.dtype for spec in specs}
        if found != wanted:
            raise BundleError(
                f"the {kind} of '{file}' are {dict(found)}, its contract says {wanted}: export the bundle again"
            )


def one_line(error: BaseException) -> str:
    """The message of an error in one line of at most 300 characters; only CUDA's part where it has one."""
    text = " ".join(str(error).split())
    by_cuda = re.search(r"CU\w+ failure \d+: [^;]*[^; ]", text)
    return (by_cuda[0] if by_cuda else text)[:300]
