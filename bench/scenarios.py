"""What is timed: one pass from a picture and phrases to masks, in named spans."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from bench.contenders import Contender, Tensors
from engines.bundle import Bundle
from engines.contracts import Stage
from engines.errors import BadInputError
from engines.images import stretch, upsample_logits
from engines.reference import load_reference
from engines.text import Tokenizer

# Host work, counted apart from the stages.
STRETCH, TOKENIZE, UPSAMPLE = "host_stretch", "host_tokenize", "host_upsample"
TOTAL = "total"

_IMAGE_STAGES = (Stage.SIGLIP_VISION, Stage.SAM_ENCODER)
_PHRASE_STAGES = (Stage.SIGLIP_TEXT, Stage.ATTN_PROMPTER, Stage.SAM_DECODER)
_COMMON_PHRASES = ("the large building in the centre", "the road on the left", "the ship", "the vehicle")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A situation a user waits in.

    Attributes:
        name: in reports.
        fresh_image: whether the picture is new, or was encoded before.
        phrases: how many are asked at once. Their text is always new.
    """

    name: str
    fresh_image: bool
    phrases: int

    @property
    def spans(self) -> tuple[str, ...]:
        """What is timed, in order, the total last."""
        image = (STRETCH, *_IMAGE_STAGES) if self.fresh_image else ()
        return (*image, TOKENIZE, *_PHRASE_STAGES, UPSAMPLE, TOTAL)


FIRST_PHRASE = Scenario("first_phrase", fresh_image=True, phrases=1)
NEXT_PHRASE = Scenario("next_phrase", fresh_image=False, phrases=1)
SCENARIOS = (FIRST_PHRASE, NEXT_PHRASE)


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What contenders are asked: a picture (H, W, 3) uint8 and phrases to take turns with."""

    picture: npt.NDArray[np.uint8]
    phrases: tuple[str, ...]
    tokenizer: Tokenizer
    image_size: int

    def some_phrases(self, first: int, count: int) -> list[str]:
        """``count`` phrases from number ``first`` on, again from the start where they end."""
        return [self.phrases[(first + index) % len(self.phrases)] for index in range(count)]


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One timed pass.

    Attributes:
        spans_ms: milliseconds by span, the total included.
        features: the contender's own tensors of the picture, for passes that find it encoded.
        masks: (P, H, W) bool.
    """

    spans_ms: dict[str, float]
    features: Tensors
    masks: npt.NDArray[np.bool_]


def question_for(bundle: Bundle) -> Question:
    """A real picture and real phrases out of the bundle's reference samples; noise where it has none.

    The stored picture is the stretched one: it is brought back to its original size, so that the host's part is as long
    as it really is.

    Raises:
        BadInputError: the bundle has no reference and its tokenizer knows no common word.
    """
    tokenizer, image_size = bundle.tokenizer(), bundle.manifest.geometry.image_size
    if bundle.manifest.reference is None:
        noise = np.random.default_rng(0).integers(0, 256, (image_size, image_size, 3), np.uint8)
        return Question(noise, _known_phrases(tokenizer), tokenizer, image_size)
    import cv2

    sample = load_reference(bundle)[0]
    height, width = sample.original_size
    stretched = np.ascontiguousarray(sample.tensors["image"][0].transpose(1, 2, 0))
    picture = np.asarray(cv2.resize(stretched, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return Question(picture, sample.phrases, tokenizer, image_size)


def timed_pass(contender: Contender, scenario: Scenario, question: Question, number: int, features: Tensors) -> Pass:
    """Answer once, by the clock.

    Args:
        contender: loaded.
        scenario: what is new and how much is asked.
        question: picture and phrases.
        number: of the pass; decides which phrases are asked.
        features: of the picture, from an earlier pass; unused where the scenario's picture is fresh.
    """
    phrases = question.some_phrases(number, scenario.phrases)
    spans: dict[str, float] = {}
    size = (question.picture.shape[0], question.picture.shape[1])
    start = time.perf_counter()
    if scenario.fresh_image:
        square = _timed(spans, STRETCH, lambda: stretch(question.picture, question.image_size)[None])
        features = {}
        for stage in _IMAGE_STAGES:
            features |= _timed_stage(spans, contender, stage, {"image": square})
    tokens = _timed(spans, TOKENIZE, lambda: question.tokenizer.encode(phrases))
    tensors: Tensors = features | {"input_ids": tokens.input_ids, "token_mask": tokens.token_mask}
    for stage in _PHRASE_STAGES:
        tensors |= _timed_stage(spans, contender, stage, tensors)
    masks = _timed(spans, UPSAMPLE, lambda: _masks(contender, tensors, question.image_size, size))
    spans[TOTAL] = (time.perf_counter() - start) * 1e3
    return Pass(spans, features, masks)


def _masks(contender: Contender, tensors: Tensors, image_size: int, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    logits = contender.to_host(tensors["mask_logits"])
    return np.stack([upsample_logits(grid, image_size, size) > 0 for grid in logits[:, 0]])


def _timed_stage(spans: dict[str, float], contender: Contender, stage: Stage, tensors: dict[str, Any]) -> Tensors:
    return _timed(spans, stage.value, lambda: contender.run(stage, tensors))


def _timed(spans: dict[str, float], name: str, work: Callable[[], _T]) -> _T:
    start = time.perf_counter()
    result = work()
    spans[name] = (time.perf_counter() - start) * 1e3
    return result


def _known_phrases(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Those common phrases that a tokenizer made for another data set can read."""
    known = []
    for phrase in _COMMON_PHRASES:
        try:
            tokenizer.encode([phrase])
        except BadInputError:
            continue
        known.append(phrase)
    if not known:
        raise BadInputError("the bundle has no reference samples and its tokenizer knows no common word to ask with")
    return tuple(known)
