"""Segments images by phrases. An image is encoded once; a phrase then runs text encoder, prompter and decoder only."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .backends import Backend, select_backend
from .bundle.bundle import Bundle
from .bundle.contracts import Stage
from .engine import Engine, Tensors
from .errors import BadInputError
from .images.images import stretch
from .images.scene import Scene
from .segmentation import MaskRule, Segmentation
from .text import TokenBatch, Tokenizer, check_phrases

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """The outputs of both image encoders for one image.

    Attributes:
        height: height of the image, px.
        width: width of the image, px.
        features: outputs of the two image stages by contract name, each with an image axis of 1, on the engine's
            device; ``Engine.to_host`` converts them to arrays.
        valid: (H, W) bool, False in pixels that hold no data; ``None`` if all do.
    """

    height: int
    width: int
    features: Tensors
    valid: npt.NDArray[np.bool_] | None = None


class Segmenter:
    """Runs a bundle on images and phrases. A context manager that frees the engine. Thread-safe.

    Args:
        bundle: the bundle to run.
        engine: the engine that runs its graphs.
        cached_phrases: number of phrases whose text features are kept.
        threshold: a pixel is in the mask if its probability is above this.
        absent_below: a mask is empty if the phrase's presence score is below this.

    Raises:
        BadInputError: a value is out of range, or ``absent_below`` needs presence scores that the bundle lacks.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        *,
        cached_phrases: int = 128,
        threshold: float = 0.5,
        absent_below: float = 0.0,
    ) -> None:
        if cached_phrases < 0:
            raise BadInputError(f"cached_phrases is {cached_phrases}: give 0 or more")
        self.bundle = bundle
        self.engine = engine
        self.rule = MaskRule(threshold, absent_below, bundle.manifest.presence)
        self.backend_reason = f"{engine.name}, as given"
        self._texts: OrderedDict[str, Tensors] = OrderedDict()  # least recently used first
        self._cached_phrases = cached_phrases
        self._lock = threading.Lock()
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def open(
        cls,
        bundle_dir: Path | str | None = None,
        backend: str = Backend.AUTO,
        *,
        threads: int | None = None,
        cached_phrases: int = 128,
        threshold: float = 0.5,
        absent_below: float = 0.0,
    ) -> "Segmenter":
        """Open a bundle on a backend.

        Args:
            bundle_dir: the bundle's folder; by default ``$RSREFSEG_BUNDLE`` or ``./bundle``.
            backend: a value of ``Backend``.
            threads: number of CPU threads; by default the cores this process may use.
            cached_phrases: number of phrases whose text features are kept.
            threshold: a pixel is in the mask if its probability is above this.
            absent_below: a mask is empty if the phrase's presence score is below this.

        Raises:
            BundleError: the bundle is missing, incomplete or changed.
            BadInputError: no backend has that name, or see ``Segmenter``.
            MissingPartError: the backend cannot run on this machine.
        """
        bundle = Bundle.open(bundle_dir)
        MaskRule(threshold, absent_below, bundle.manifest.presence)  # before the engine is loaded
        engine, reason = select_backend(backend, bundle, threads)
        segmenter = cls(bundle, engine, cached_phrases=cached_phrases, threshold=threshold, absent_below=absent_below)
        segmenter.backend_reason = reason
        return segmenter

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = self.bundle.tokenizer()
        return self._tokenizer

    def encode_image(self, image: npt.NDArray[np.uint8] | Scene) -> EncodedImage:
        """Run both image encoders on an image (H, W, 3) uint8 RGB, or on a scene.

        Raises:
            BadInputError: the array has another shape or type.
            RSRefSegError: a stage cannot be loaded or run.
        """
        pixels, valid = (image.image, image.valid) if isinstance(image, Scene) else (image, None)
        preprocessing = self.bundle.manifest.preprocessing
        square = stretch(pixels, preprocessing.image_size, preprocessing.resize, preprocessing.keep_aspect)[None]
        return EncodedImage(pixels.shape[0], pixels.shape[1], self.engine.encode_image(square), valid)

    def segment(
        self, image: npt.NDArray[np.uint8] | Scene | EncodedImage, phrases: Sequence[str]
    ) -> list[Segmentation]:
        """Segment the region that each phrase refers to. The result of a phrase does not depend on the others.

        Args:
            image: (H, W, 3) uint8 RGB, a scene, or the result of ``encode_image``. The pixels of a scene that hold no
                data are never part of a mask.
            phrases: one or more phrases.

        Returns:
            One result per phrase, in the order of the phrases.

        Raises:
            BadInputError: the array has another shape or type, or a phrase cannot be used.
            RSRefSegError: a stage cannot be loaded or run.
        """
        check_phrases(phrases)
        tokens = [self.tokenizer.encode([phrase]) for phrase in phrases]
        encoded = image if isinstance(image, EncodedImage) else self.encode_image(image)
        size, preprocessing = (encoded.height, encoded.width), self.bundle.manifest.preprocessing
        side, keep_aspect = preprocessing.image_size, preprocessing.keep_aspect
        (dim,) = self.engine.contract(Stage.SAM_DECODER).dims
        found: list[Segmentation] = []
        for start in range(0, len(phrases), dim.max):
            part = slice(start, start + dim.max)
            logits = self.engine.predict(encoded.features, self._text_features(phrases[part], tokens[part]))
            for phrase, batch, grid in zip(phrases[part], tokens[part], logits, strict=True):
                notes, valid, judged = batch.warnings, encoded.valid, self.rule.judge(grid[0], size, keep_aspect)
                found.append(Segmentation(phrase, grid[0], size, side, notes, valid, *judged, keep_aspect))
        return found

    def close(self) -> None:
        """Free the engine and the cached text features."""
        with self._lock:
            self._texts.clear()
        self.engine.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _text_features(self, phrases: Sequence[str], tokens: Sequence[TokenBatch]) -> list[Tensors]:
        """Return the text features of phrases; phrases that are not in the cache are encoded in one run."""
        with self._lock:
            known = {phrase: self._texts[phrase] for phrase in phrases if phrase in self._texts}
        new = {phrase: batch for phrase, batch in zip(phrases, tokens, strict=True) if phrase not in known}
        if new:
            input_ids = np.concatenate([batch.input_ids for batch in new.values()])
            token_mask = np.concatenate([batch.token_mask for batch in new.values()])
            known |= zip(new, self.engine.encode_text(input_ids, token_mask), strict=True)
        with self._lock:
            self._texts.update(known)
            for phrase in phrases:
                self._texts.move_to_end(phrase)
            while len(self._texts) > self._cached_phrases:
                self._texts.popitem(last=False)
        return [known[phrase] for phrase in phrases]
