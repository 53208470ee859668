"""One face for every runtime: give a stage its named arrays, get its named arrays back."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from .bundle.bundle import Bundle
from .bundle.contracts import Stage
from .errors import BadInputError

Arrays = dict[str, npt.NDArray[Any]]
# By contract name, in whatever an engine keeps tensors in: arrays, or memory of a device that only it can read.
Tensors = dict[str, Any]

IMAGE_STAGES = (Stage.SIGLIP_VISION, Stage.SAM_ENCODER)


def check_one_image(image: npt.NDArray[np.uint8]) -> None:
    """Refuse several images where one is encoded at a time.

    Raises:
        BadInputError: ``image`` has another first axis than 1.
    """
    if image.shape[:1] != (1,):
        raise BadInputError(f"one image is encoded at a time, got an array of shape {list(image.shape)}")


class Engine(ABC):
    """Runs the five graphs of one bundle. A context manager; stages load when first used, or by ``load``.

    ``run`` takes and gives arrays, one stage at a time. ``encode_image``, ``encode_text`` and
    ``answer`` are the way from pixels and words to masks: what they hand to each other stays where the engine
    computes, and need not be complete before it is used.

    Subclasses implement ``_load``, ``_run``, ``provider_of`` and, where there is something to free, ``close``. Those
    that compute on a device override the three, and ``to_host``, as well.

    Attributes:
        name: the backend's name, as ``--backend`` takes it.
        bundle: the bundle it runs.
        load_ms: milliseconds that loading each stage took, checks of its files included; those that load at the same
            time take longer each.
        loads_together: whether ``load`` loads all stages at the same time: on a CPU, where digests and most of what
            a runtime does with weights take one thread, and no core should wait for the last of them. Preset b on 2
            cores of a Zen 3 (2026-11-27), medians of 8: 5.9 s instead of 6.2 in pairs on ONNX Runtime, 9.0 instead of
            10.0 on OpenVINO.
    """

    name: str
    loads_together: ClassVar[bool] = False

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.load_ms: dict[Stage, float] = {}
        self._loading = threading.RLock()

    def load(self, *stages: Stage) -> None:
        """Load stages that are not loaded yet; all of them when none is named. Threads wait for each other.

        Raises:
            RSRefSegError: a file is not what the bundle says, or the runtime cannot take it.
        """
        wanted = stages or tuple(Stage)
        if all(stage in self.load_ms for stage in wanted):
            return
        with self._loading:
            missing = [stage for stage in dict.fromkeys(wanted) if stage not in self.load_ms]
            if self.loads_together and len(missing) > 1:
                with ThreadPoolExecutor(len(missing)) as pool:
                    list(pool.map(self._load_timed, missing))
            else:
                for stage in missing:
                    self._load_timed(stage)

    def _load_timed(self, stage: Stage) -> None:
        start = time.perf_counter()
        self._load(stage)
        self.load_ms[stage] = (time.perf_counter() - start) * 1e3

    def run(self, stage: Stage, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run one stage on arrays by contract name; gives its outputs by contract name.

        Raises:
            BadInputError: the feeds do not fit the contract.
            RSRefSegError: loading or running failed.
        """
        contract = self.bundle.manifest.stages[stage].contract
        contract.check_inputs(feeds)
        self.load(stage)
        results = self._run(stage, feeds)
        contract.check_outputs(results)
        return results

    def encode_image(self, image: npt.NDArray[np.uint8]) -> Tensors:
        """Run both image encoders on one picture.

        Args:
            image: (1, 3, S, S) uint8, stretched to the network's side S.

        Returns:
            What both give, by contract name.

        Raises:
            RSRefSegError: loading or running failed.
        """
        check_one_image(image)
        return {name: array for stage in IMAGE_STAGES for name, array in self.run(stage, {"image": image}).items()}

    def encode_text(self, input_ids: npt.NDArray[np.int64], token_mask: npt.NDArray[np.bool_]) -> list[Tensors]:
        """Run the text encoder on P phrases.

        Args:
            input_ids: (P, L) int64.
            token_mask: (P, L) bool.

        Returns:
            One for each phrase, to be kept and combined with others at will: features and token mask.

        Raises:
            RSRefSegError: loading or running failed.
        """
        tokens = {"input_ids": input_ids, "token_mask": token_mask}
        features = {"token_mask": token_mask, **self.run(Stage.SIGLIP_TEXT, tokens)}
        # Copies: a view would keep the whole batch alive.
        return [{name: array[row].copy() for name, array in features.items()} for row in range(len(input_ids))]

    def answer(self, image: Tensors, phrases: Sequence[Tensors]) -> npt.NDArray[np.float32]:
        """Run prompter and decoder for P phrases on one picture.

        Args:
            image: of ``encode_image``.
            phrases: of ``encode_text``, at most as many as the contract allows.

        Returns:
            (P, 1, h, w) mask logits.

        Raises:
            RSRefSegError: loading or running failed.
        """
        text = {name: np.stack([phrase[name] for phrase in phrases]) for name in phrases[0]}
        prompts = self.run_resident(Stage.ATTN_PROMPTER, image | text)
        logits: npt.NDArray[np.float32] = self.run_resident(Stage.SAM_DECODER, image | prompts)["mask_logits"]
        return logits

    def run_resident(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """Run one stage to its end on those of the tensors that its contract names.

        Args:
            stage: which.
            tensors: by contract name, arrays or what this method gave before; may hold more.

        Returns:
            Its outputs where the engine computed them, if it can leave them there.

        Raises:
            BadInputError: the tensors do not fit the contract.
            RSRefSegError: loading or running failed.
        """
        contract = self.bundle.manifest.stages[stage].contract
        return dict(self.run(stage, {spec.name: tensors[spec.name] for spec in contract.inputs}))

    def to_host(self, tensors: Tensors) -> Arrays:
        """Copies, or the same, of what ``encode_image`` or ``encode_text`` gave, as arrays."""
        return dict(tensors)

    def precision_of(self, stage: Stage) -> str:
        """What a stage computes in, and is judged by: the graph's ``fp32`` or ``fp16``, or ``bf16``. May load it."""
        return self.bundle.manifest.stages[stage].precision

    @abstractmethod
    def provider_of(self, stage: Stage) -> str:
        """What really runs a stage, in the runtime's own words. Loads it if need be."""

    @abstractmethod
    def _load(self, stage: Stage) -> None:
        """Build what ``_run`` needs for a stage."""

    @abstractmethod
    def _run(self, stage: Stage, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run a loaded stage on feeds that fit its contract."""

    def close(self) -> None:
        """Free what was loaded. Stages load again when used again."""
        self.load_ms.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
