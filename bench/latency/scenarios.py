"""What is timed: the situations a user waits in, end to end, and the stages one by one."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.engine import IMAGE_STAGES
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import stretch
from rsrefseg.engines.text import Tokenizer

from .runners import PHRASE_STAGES, Answer, Contender, Tensors

# Host work, counted apart from the stages.
STRETCH, TOKENIZE, UPSAMPLE = "host_stretch", "host_tokenize", "host_upsample"
TOTAL = "total"

_COMMON_PHRASES = ("the large building in the centre", "the road on the left", "the ship", "the vehicle")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A situation a user waits in, from a decoded picture and phrases to masks at the picture's size.

    Attributes:
        name: in reports.
        fresh_image: whether the picture is new, or was encoded before.
        phrases: how many are asked at once. Their text is always encoded anew.
        by_stage: whether the stages are run one after the other and each is timed to its end. Runtimes that overlap
            stages or keep tensors on a device are slower that way: only the spans mean something, not their sum.
    """

    name: str
    fresh_image: bool
    phrases: int
    by_stage: bool = False

    @property
    def spans(self) -> tuple[str, ...]:
        """What is timed."""
        stages = tuple(stage.value for stage in Stage)
        return (STRETCH, TOKENIZE, *stages, UPSAMPLE) if self.by_stage else (TOTAL,)


FIRST_PHRASE = Scenario("first_phrase", fresh_image=True, phrases=1)
NEXT_PHRASE = Scenario("next_phrase", fresh_image=False, phrases=1)
STAGES = Scenario("stages", fresh_image=True, phrases=1, by_stage=True)
# In the order they are run in: what needs an encoded picture comes after what encodes one.
SCENARIOS = (
    FIRST_PHRASE,
    NEXT_PHRASE,
    Scenario("next_8_phrases", fresh_image=False, phrases=8),
    Scenario("next_32_phrases", fresh_image=False, phrases=32),
    Scenario("first_8_phrases", fresh_image=True, phrases=8),
    STAGES,
)


# So many that a scenario never asks what the one before it asked.
_PHRASES = 2 * max(scenario.phrases for scenario in SCENARIOS)


def parse_scenarios(names: str) -> tuple[Scenario, ...]:
    """The scenarios of a comma-separated list, in running order; all where it is empty.

    ``FIRST_PHRASE`` is always among them: the others are told as shares of it.

    Raises:
        BadInputError: nothing has such a name.
    """
    known = {scenario.name: scenario for scenario in SCENARIOS}
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    if unknown := sorted(wanted - known.keys()):
        raise BadInputError(f"unknown scenario '{unknown[0]}': known are {', '.join(known)}")
    if not wanted:
        return SCENARIOS
    return tuple(scenario for scenario in SCENARIOS if scenario.name in wanted or scenario is FIRST_PHRASE)


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What contenders are asked: a picture (H, W, 3) uint8 and phrases, more different ones than a scenario asks."""

    picture: npt.NDArray[np.uint8]
    phrases: tuple[str, ...]
    tokenizer: Tokenizer
    image_size: int

    @property
    def size(self) -> tuple[int, int]:
        """The picture's height and width, px."""
        return self.picture.shape[0], self.picture.shape[1]

    def some_phrases(self, first: int, count: int) -> list[str]:
        """``count`` phrases from number ``first`` on, again from the start where they end."""
        return [self.phrases[(first + index) % len(self.phrases)] for index in range(count)]


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """One timed pass.

    Attributes:
        spans_ms: milliseconds by span.
        features: the contender's own tensors of the picture, for passes that find it encoded.
        answer: what came of it.
    """

    spans_ms: dict[str, float]
    features: Any
    answer: Answer


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
        return Question(noise, different_phrases(_known_phrases(tokenizer), _PHRASES), tokenizer, image_size)
    import cv2

    samples = load_reference(bundle)
    sample = samples[0]
    height, width = sample.original_size
    stretched = np.ascontiguousarray(sample.tensors["image"][0].transpose(1, 2, 0))
    picture = np.asarray(cv2.resize(stretched, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    phrases = different_phrases([phrase for one in samples for phrase in one.phrases], _PHRASES)
    return Question(picture, phrases, tokenizer, image_size)


def different_phrases(known: Sequence[str], count: int) -> tuple[str, ...]:
    """``count`` phrases of which no two are the same, since an engine encodes a text once however often it is asked.

    First the known ones, then their words in other orders, which have as many tokens, then several of them in a row.
    """
    orders = itertools.zip_longest(*(itertools.permutations(phrase.split()) for phrase in known))
    reordered = (" ".join(words) for row in orders for words in row if words is not None)
    in_rows = (" ".join(row) for length in itertools.count(2) for row in itertools.product(known, repeat=length))
    found: dict[str, None] = {}
    for phrase in itertools.chain(known, reordered, in_rows):
        if len(found) == count:
            break
        found[phrase] = None
    return tuple(found)


def timed_pass(contender: Contender, scenario: Scenario, question: Question, number: int, features: Any) -> Pass:
    """Answer once, by the clock.

    Args:
        contender: loaded.
        scenario: what is new and how much is asked.
        question: picture and phrases.
        number: of the pass; decides which phrases are asked.
        features: of the picture, from an earlier pass that was no pass by stage; unused where the picture is fresh.
    """
    phrases = question.some_phrases(number, scenario.phrases)
    if scenario.by_stage:
        return _pass_by_stage(contender, question, phrases)
    start = time.perf_counter()
    if scenario.fresh_image:
        features = contender.encode(question.picture)
    answer = contender.ask(features, phrases, question.size)
    return Pass({TOTAL: (time.perf_counter() - start) * 1e3}, features, answer)


def _pass_by_stage(contender: Contender, question: Question, phrases: Sequence[str]) -> Pass:
    spans: dict[str, float] = {}
    square = _timed(spans, STRETCH, lambda: stretch(question.picture, question.image_size)[None])
    features: Tensors = {}
    for stage in IMAGE_STAGES:
        features |= _timed_stage(spans, contender, stage, {"image": square})
    tokens = _timed(spans, TOKENIZE, lambda: question.tokenizer.encode(phrases))
    tensors: Tensors = features | {"input_ids": tokens.input_ids, "token_mask": tokens.token_mask}
    for stage in PHRASE_STAGES:
        tensors |= _timed_stage(spans, contender, stage, tensors)
    answer = _timed(spans, UPSAMPLE, lambda: contender.finish(tensors["mask_logits"], question.size))
    return Pass(spans, features, answer)


def _timed_stage(spans: dict[str, float], contender: Contender, stage: Stage, tensors: Tensors) -> Tensors:
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
