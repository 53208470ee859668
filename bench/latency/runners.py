"""Who is measured: PyTorch, graphs exported without care, and every backend of the engines, behind one face."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.backends import Backend, select_backend
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.engine import IMAGE_STAGES, Engine, one_line
from rsrefseg.engines.errors import BadInputError, MissingPartError, RSRefSegError
from rsrefseg.engines.images.images import stretch, upsample_logits
from rsrefseg.engines.segmenter import EncodedImage, Segmenter
from rsrefseg.engines.system.cores import usable_cores
from rsrefseg.engines.text import Tokenizer

TORCH = "torch"

PHRASE_STAGES = (Stage.SIGLIP_TEXT, Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
Tensors = dict[str, Any]
_FOR_DEVELOPERS = " Set TORCHDYNAMO_VERBOSE"  # how PyTorch's compiler ends what it has to say
_DEVICES: Mapping[str, str] = {
    Backend.ONNXRUNTIME_CUDA: "cuda",
    Backend.TENSORRT: "cuda",
    Backend.OPENVINO_GPU: "intel-gpu",
}


class Answer(NamedTuple):
    """What P phrases get: mask_logits (P, h, w) float32, the decoder's grid; masks (P, H, W) bool, a picture's size."""

    mask_logits: npt.NDArray[np.float32]
    masks: npt.NDArray[np.bool_]


class Contender(ABC):
    """Answers phrases about pictures by one model, and runs its five stages one by one.

    Opening one imports its runtime and checks that it can run here; ``load`` brings the weights in. Pictures are
    asked the way its users go, ``encode`` and ``ask``, with the host's work in it; ``run`` is for timing a
    stage alone.

    Attributes:
        name: as ``--backends`` takes it.
        bundle: the model, and the contracts of its stages.
    """

    name: str

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._tokenizer: Tokenizer | None = None

    @property
    def threads(self) -> int:
        """CPU threads it computes with: as many for everybody."""
        return usable_cores()

    @property
    def device(self) -> str:
        """Where it computes, as ``measure_peaks`` names it: ``cpu``, ``cuda`` or ``intel-gpu``."""
        return "cpu"

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's."""
        if self._tokenizer is None:
            self._tokenizer = self.bundle.tokenizer()
        return self._tokenizer

    @property
    def image_size(self) -> int:
        """Side of the networks' input, px."""
        return self.bundle.manifest.geometry.image_size

    @abstractmethod
    def load(self) -> None:
        """Load all stages."""

    @abstractmethod
    def providers(self) -> dict[str, str]:
        """What really runs each stage, once loaded."""

    @abstractmethod
    def precision(self, stage: Stage) -> str:
        """What a stage multiplies in, once loaded: ``fp32``, ``fp16`` or ``bf16``."""

    @abstractmethod
    def run(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """Run a stage to its end on those of the tensors that its contract names: host arrays or its own."""

    @abstractmethod
    def to_host(self, tensor: Any) -> npt.NDArray[Any]:
        """One of its own tensors as an array."""

    @abstractmethod
    def close(self) -> None:
        """Free what was loaded."""

    def encode(self, picture: npt.NDArray[np.uint8]) -> Any:
        """Stretch and encode a picture (H, W, 3); gives what ``ask`` wants of it, perhaps before it is complete."""
        tensors: Tensors = {"image": stretch(picture, self.image_size)[None]}
        return {name: made for stage in IMAGE_STAGES for name, made in self.run(stage, tensors).items()}

    def ask(self, features: Any, phrases: Sequence[str], size: tuple[int, int]) -> Answer:
        """Ask P phrases of an encoded picture; masks come at ``size`` (H, W)."""
        tokens = self.tokenizer.encode(phrases)
        tensors = features | {"input_ids": tokens.input_ids, "token_mask": tokens.token_mask}
        for stage in PHRASE_STAGES:
            tensors |= self.run(stage, tensors)
        return self.finish(tensors["mask_logits"], size)

    def finish(self, mask_logits: Any, size: tuple[int, int]) -> Answer:
        """Bring the decoder's logits (P, 1, h, w), in its own tensors, to masks at ``size`` (H, W)."""
        logits = self.to_host(mask_logits)[:, 0]
        return Answer(logits, np.stack([upsample_logits(grid, self.image_size, size) > 0 for grid in logits]))


class EngineContender(Contender):
    """A backend of the engines, asked through ``Segmenter``; no phrase is found in its cache."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.bundle)
        self.name = engine.name
        self.engine = engine
        self._segmenter = Segmenter(engine.bundle, engine, cached_phrases=0)

    @property
    def device(self) -> str:
        """By the backend."""
        return _DEVICES.get(self.name, "cpu")

    def load(self) -> None:
        """Check the files' digests and build all sessions."""
        self.engine.load()

    def providers(self) -> dict[str, str]:
        """In the runtime's own words."""
        return {stage.value: self.engine.provider_of(stage) for stage in Stage}

    def precision(self, stage: Stage) -> str:
        """As the engine tells."""
        return self.engine.precision_of(stage)

    def encode(self, picture: npt.NDArray[np.uint8]) -> EncodedImage:
        """Both encoders, as ``rsrefseg infer`` runs them."""
        return self._segmenter.encode_image(picture)

    def ask(self, features: EncodedImage, phrases: Sequence[str], size: tuple[int, int]) -> Answer:
        """The phrases, as ``rsrefseg infer`` asks them."""
        encoded = EncodedImage(size[0], size[1], features.features)
        answers = self._segmenter.segment(encoded, phrases)
        return Answer(np.stack([one.mask_logits for one in answers]), np.stack([one.mask for one in answers]))

    def run(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """Run a stage, with the checks every user of an engine pays for; TensorRT's copies to the host included."""
        return self.engine.run_resident(stage, tensors)

    def to_host(self, tensor: Any) -> npt.NDArray[Any]:
        """By the engine, where it is not there already."""
        return tensor if isinstance(tensor, np.ndarray) else self.engine.to_host({"tensor": tensor})["tensor"]

    def close(self) -> None:
        """Free the engine."""
        self._segmenter.close()


@contextlib.contextmanager
def failures_told(name: str, part: str, way_out: str = "") -> Iterator[None]:
    """Turn what a library raises into one line; its error classes share no base but ``Exception``.

    Args:
        name: of the contender.
        part: what it does meanwhile.
        way_out: what helps, unless the error tells of something else.

    Raises:
        RSRefSegError: naming the contender and the part of it that failed.
    """
    try:
        yield
    except (RSRefSegError, AssertionError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {one_line(error).partition(_FOR_DEVELOPERS)[0]}".removesuffix(": ")
        way_out = _way_out(name, error, said) or way_out
        raise RSRefSegError(f"{name}: {part} failed ({said})" + (f": {way_out}" if way_out else "")) from error


def _way_out(name: str, error: Exception, said: str) -> str:
    if isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said:
        return f"close other programs, or leave {name} out of --backends"
    if isinstance(error, ImportError):
        return "install the extra with `pip install 'rsrefseg[train]'`"
    return "install one, such as g++" if "No working C++ compiler" in said else ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A contender that could not be measured, and why."""

    name: str
    reason: str


def contender_names() -> tuple[str, ...]:
    """Everything that ``--backends`` takes."""
    return (*_others(), *Backend)


def open_contender(name: str, bundle: Bundle, run: Path | None) -> Contender:
    """Open one by name.

    Raises:
        BadInputError: nobody has that name, or no run for PyTorch.
        MissingPartError: it cannot run here.
    """
    if (make := _others().get(name)) is not None:
        return make(bundle, run)
    return EngineContender(select_backend(name, bundle).engine)


def open_contenders(names: list[str], bundle: Bundle, run: Path | None) -> tuple[list[Contender], list[LeftOut]]:
    """Open all that were asked for, each once.

    PyTorch is left out where it or the run is missing, as on an edge device, unless nothing else was asked for or the
    run was named. A backend asked for by name is never left out.

    Raises:
        BadInputError: no name at all, an unknown one, or as told above.
        MissingPartError: a backend cannot run here.
    """
    wanted = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not wanted:
        raise BadInputError("no contender named: give --backends, e.g. torch,onnxruntime")
    if unknown := [name for name in wanted if name not in contender_names()]:
        raise BadInputError(f"unknown contender '{unknown[0]}': known are {', '.join(contender_names())}")
    opened: dict[str, Contender] = {}
    left_out = []
    for name in wanted:
        try:
            contender = open_contender(name, bundle, run)
        except (MissingPartError, BadInputError) as error:
            if name != TORCH or wanted == [TORCH] or run is not None:
                raise
            left_out.append(LeftOut(name, str(error)))
        else:
            opened.setdefault(contender.name, contender)
    return list(opened.values()), left_out


def _others() -> dict[str, Callable[[Bundle, Path | None], Contender]]:
    """Contenders that are no backends, by name: what there was before this project, to be compared with."""
    from .naive_export import NAIVE, NaiveContender
    from .torch_runners import FLAVOURS, TorchContender

    def torch_maker(name: str) -> Callable[[Bundle, Path | None], Contender]:
        return lambda bundle, run: TorchContender(bundle, run, name)

    return {name: torch_maker(name) for name in FLAVOURS} | {NAIVE: NaiveContender}
