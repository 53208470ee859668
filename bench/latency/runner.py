"""Interface of the runners of a benchmark: segment phrases in an image, or run the five stages one by one."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.engine import IMAGE_STAGES, Tensors, one_line
from rsrefseg.engines.errors import RSRefSegError
from rsrefseg.engines.images.images import stretch, upsample_logits
from rsrefseg.engines.system.cores import usable_cores
from rsrefseg.engines.text import Tokenizer

PHRASE_STAGES = (Stage.SIGLIP_TEXT, Stage.ATTN_PROMPTER, Stage.SAM_DECODER)


class Prediction(NamedTuple):
    """Results for P phrases: mask_logits (P, h, w) float32 on the decoder's grid, masks (P, H, W) bool."""

    mask_logits: npt.NDArray[np.float32]
    masks: npt.NDArray[np.bool_]


class Runner(ABC):
    """Runs one model in one runtime.

    The constructor imports the runtime and checks that it can run here, ``open`` verifies the model's files, and
    ``load`` prepares all stages.

    Attributes:
        name: name for ``--backends``.
        bundle: bundle with the model and the contracts of its stages.
        device: ``cpu``, ``cuda`` or ``intel-gpu``.
        threads: number of CPU threads, equal for all runners.
        providers: name of the device or provider of each stage; set by ``load``.
        precisions: precision of the products of each stage (``COARSENESS``); set by ``load``.
    """

    name: str
    device: str = "cpu"

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.preprocessing = bundle.manifest.preprocessing
        self.threads = usable_cores()
        self.providers: dict[Stage, str] = {}
        self.precisions: dict[Stage, str] = {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the bundle."""
        return self.bundle.tokenizer()

    @abstractmethod
    def open(self) -> None:
        """Find the model's files and verify their digests.

        Raises:
            RSRefSegError: files are missing or differ from the bundle's model.
        """

    @abstractmethod
    def load(self) -> None:
        """Read the weights and prepare all stages."""

    @abstractmethod
    def run(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """Run one stage and wait for it; ``tensors`` has at least its inputs, as arrays or outputs of ``run``."""

    @abstractmethod
    def close(self) -> None:
        """Free all resources."""

    def to_host(self, tensor: Any) -> npt.NDArray[Any]:
        """Return an output of ``run`` as an array."""
        return np.asarray(tensor)

    def stretch(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resize an image, (H, W, 3) uint8, to the network's input (1, 3, S, S)."""
        way = self.preprocessing
        return stretch(image, way.image_size, way.resize, way.keep_aspect)[None]

    def encode(self, image: npt.NDArray[np.uint8]) -> Any:
        """Resize and encode an image, (H, W, 3) uint8; return its features for ``predict``."""
        square = {"image": self.stretch(image)}
        return {name: tensor for stage in IMAGE_STAGES for name, tensor in self.run(stage, square).items()}

    def predict(self, features: Any, phrases: Sequence[str], size: tuple[int, int]) -> Prediction:
        """Segment P phrases in an encoded image of ``size`` (H, W)."""
        tokens = self.tokenizer.encode(phrases)
        tensors = features | {"input_ids": tokens.input_ids, "token_mask": tokens.token_mask}
        for stage in PHRASE_STAGES:
            tensors |= self.run(stage, tensors)
        return self.finish(tensors["mask_logits"], size)

    def finish(self, mask_logits: Any, size: tuple[int, int]) -> Prediction:
        """Upsample mask logits (P, 1, h, w) from ``run`` to masks of ``size`` (H, W)."""
        logits = self.to_host(mask_logits)[:, 0]
        side, keep_aspect = self.preprocessing.image_size, self.preprocessing.keep_aspect
        masks = [upsample_logits(grid, side, size, keep_aspect=keep_aspect) > 0 for grid in logits]
        return Prediction(logits, np.stack(masks))

    @contextlib.contextmanager
    def reporting(self, part: str) -> Iterator[None]:
        """Convert errors of libraries, whose only common base class is ``Exception``, to RSRefSegError.

        Raises:
            RSRefSegError: a library failed; the message has the runner, the failed part and the cause.
        """
        try:
            yield
        except (RSRefSegError, AssertionError):
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {one_line(error)}"
            hint = f"leave {self.name} out of --backends to measure the others"
            raise RSRefSegError(f"{self.name}: {part} failed ({cause}): {hint}") from error
