"""Segments pictures by phrases: a picture is encoded once, then each phrase costs text, prompter and decoder only."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from .backends import Backend, select_backend
from .bundle.bundle import Bundle
from .bundle.contracts import Stage
from .engine import Engine, Tensors
from .images.images import check_picture, stretch, upsample_logits
from .text import TokenBatch, Tokenizer, check_phrases

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """What both image encoders make of one picture.

    Attributes:
        height, width: of the picture, px.
        features: the outputs of the two image stages by contract name, each with an image axis of 1, as the engine
            keeps them; ``to_host`` makes arrays of them.
    """

    height: int
    width: int
    features: Tensors


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The answer to one phrase.

    Attributes:
        phrase: as it was asked.
        mask_logits: (h, w) float32, the decoder's own grid.
        probability: (H, W) float32 in 0..1, at the picture's size.
        mask: (H, W) bool, where the probability is above 0.5.
        warnings: one line each, when the phrase was cut or holds unknown words.
    """

    phrase: str
    mask_logits: npt.NDArray[np.float32]
    probability: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    warnings: tuple[str, ...] = ()


class Segmenter:
    """Runs a bundle on pictures and phrases. A context manager that frees the engine.

    Args:
        bundle: the model.
        engine: runs its graphs.
        cached_phrases: how many phrases' text features to keep.
        cached_images: how many pictures' embeddings to keep, found again by the digest of their pixels. None by
            default: whoever asks twice can hold on to ``encode_image``'s result.
    """

    def __init__(self, bundle: Bundle, engine: Engine, *, cached_phrases: int = 128, cached_images: int = 0) -> None:
        self.bundle = bundle
        self.engine = engine
        self.backend_reason = f"{engine.name}, as given"
        self._texts: _Cache[Tensors] = _Cache(cached_phrases)
        self._images: _Cache[EncodedImage] = _Cache(cached_images)
        self._tokenizer: Tokenizer | None = None
        contract = bundle.manifest.stages[Stage.SAM_DECODER].contract
        self._max_phrases = next(dim.max for dim in contract.dims if dim.name == "phrases")

    @classmethod
    def open(
        cls,
        bundle_dir: Path | str | None = None,
        backend: str = Backend.AUTO,
        *,
        threads: int | None = None,
        cached_phrases: int = 128,
        cached_images: int = 0,
    ) -> "Segmenter":
        """Open a bundle on a backend.

        Args:
            bundle_dir: default is ``$RSREFSEG_BUNDLE`` or ``./bundle``.
            backend: one of ``Backend``.
            threads: CPU threads; default is the cores this process may use.
            cached_phrases: as for the constructor.
            cached_images: as for the constructor.

        Raises:
            BundleError: the bundle is missing, not whole or changed.
            BadInputError: no backend of that name.
            MissingPartError: the backend cannot run here.
        """
        bundle = Bundle.open(bundle_dir)
        engine, reason = select_backend(backend, bundle, threads)
        segmenter = cls(bundle, engine, cached_phrases=cached_phrases, cached_images=cached_images)
        segmenter.backend_reason = reason
        return segmenter

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = self.bundle.tokenizer()
        return self._tokenizer

    def encode_image(self, image: npt.NDArray[np.uint8]) -> EncodedImage:
        """Run both image encoders on a picture (H, W, 3) uint8 RGB.

        Raises:
            BadInputError: the array is no such picture.
            RSRefSegError: a stage cannot be loaded or run.
        """
        check_picture(image)
        if not self._images.size:
            return self._encode_image(image)
        return self._images.get(_digest(image), lambda: self._encode_image(image))

    def segment(self, image: npt.NDArray[np.uint8] | EncodedImage, phrases: Sequence[str]) -> list[Segmentation]:
        """Find what each phrase refers to. A phrase's answer does not depend on the others asked with it.

        Args:
            image: (H, W, 3) uint8 RGB, or what ``encode_image`` made of it.
            phrases: at least one text.

        Returns:
            One answer per phrase, in order. An answer takes 5 bytes per pixel of the picture.

        Raises:
            BadInputError: the array is no picture, or a phrase cannot be used; see ``encode``.
            RSRefSegError: a stage cannot be loaded or run.
        """
        check_phrases(phrases)
        tokens = [self.tokenizer.encode([phrase]) for phrase in phrases]
        encoded = image if isinstance(image, EncodedImage) else self.encode_image(image)
        answers: list[Segmentation] = []
        for start in range(0, len(phrases), self._max_phrases):
            part = slice(start, start + self._max_phrases)
            logits = self._logits(encoded, self._text_features(phrases[part], tokens[part]))
            for phrase, batch, grid in zip(phrases[part], tokens[part], logits, strict=True):
                answers.append(self._answer(encoded, phrase, batch, grid))
        return answers

    def close(self) -> None:
        """Free the engine and the caches."""
        self._texts.clear()
        self._images.clear()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _encode_image(self, image: npt.NDArray[np.uint8]) -> EncodedImage:
        square = stretch(image, self.bundle.manifest.geometry.image_size)[None]
        return EncodedImage(image.shape[0], image.shape[1], self.engine.encode_image(square))

    def _text_features(self, phrases: Sequence[str], tokens: Sequence[TokenBatch]) -> list[Tensors]:
        """Text features of some phrases; those not in the cache are encoded in one run."""
        known = {phrase: found for phrase in phrases if (found := self._texts.peek(phrase)) is not None}
        new = {phrase: batch for phrase, batch in zip(phrases, tokens, strict=True) if phrase not in known}
        if new:
            input_ids = np.concatenate([batch.input_ids for batch in new.values()])
            token_mask = np.concatenate([batch.token_mask for batch in new.values()])
            for phrase, features in zip(new, self.engine.encode_text(input_ids, token_mask), strict=True):
                known[phrase] = features
                self._texts.put(phrase, features)
        return [known[phrase] for phrase in phrases]

    def _logits(self, encoded: EncodedImage, texts: Sequence[Tensors]) -> npt.NDArray[np.float32]:
        """(P, 1, h, w) mask logits of P phrases."""
        return self.engine.answer(encoded.features, texts)

    def _answer(
        self, encoded: EncodedImage, phrase: str, tokens: TokenBatch, logits: npt.NDArray[np.float32]
    ) -> Segmentation:
        size = (encoded.height, encoded.width)
        upsampled = upsample_logits(logits[0], self.bundle.manifest.geometry.image_size, size)
        mask = upsampled > 0
        # The logistic function in place: a picture of 100 megapixels has no room for copies.
        np.negative(upsampled, out=upsampled)
        with np.errstate(over="ignore", under="ignore"):  # infinity's inverse is the right 0
            np.exp(upsampled, out=upsampled)
        upsampled += 1
        np.reciprocal(upsampled, out=upsampled)
        return Segmentation(phrase, logits[0], upsampled, mask, tokens.warnings)


class _Cache(Generic[_T]):
    """Keeps the values used last, up to a number of them. Safe among threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Any, _T] = OrderedDict()
        self._lock = threading.Lock()

    def peek(self, key: Any) -> _T | None:
        """The value, now the one used last; ``None`` when it is not there."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: Any, value: _T) -> None:
        """Keep a value, at the cost of the one used longest ago."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.size:
                self._values.popitem(last=False)

    def get(self, key: Any, make: Callable[[], _T]) -> _T:
        """The value, made if need be."""
        if (value := self.peek(key)) is None:
            value = make()
            self.put(key, value)
        return value

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()


def _digest(image: npt.NDArray[np.uint8]) -> bytes:
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()
