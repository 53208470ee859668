"""Scenarios of a benchmark: end-to-end requests of a user, and the five stages one by one."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import ReferenceSample
from rsrefseg.engines.errors import BadInputError

# Spans on the host, timed separately from the stages.
STRETCH, TOKENIZE, UPSAMPLE = "host_stretch", "host_tokenize", "host_upsample"
TOTAL = "total"


@dataclass(frozen=True)
class Scenario:
    """A timed request, from a decoded image and phrases to masks of the image's size.

    Attributes:
        name: name in reports.
        title: title of its table.
        new_image: whether the image is encoded first.
        phrases: number of phrases in the batch. Their text is always encoded.
        by_stage: whether each stage is run to its end and timed. This slows runtimes that overlap stages down, so the
            sum of the spans is not meaningful.
    """

    name: str
    title: str
    new_image: bool
    phrases: int
    by_stage: bool = False

    @property
    def spans(self) -> tuple[str, ...]:
        """Names of the timed spans, in order."""
        stages = tuple(stage.value for stage in Stage)
        return (STRETCH, TOKENIZE, *stages, UPSAMPLE) if self.by_stage else (TOTAL,)


FIRST_PHRASE = Scenario("first_phrase", "First phrase: a new image and a new phrase", True, 1)
NEXT_PHRASE = Scenario("next_phrase", "Next phrase: the image is encoded, the phrase is new", False, 1)
STAGES = Scenario("stages", "Stages one by one: one image, one phrase", True, 1, by_stage=True)
# In running order: a scenario with a new image comes before those that reuse its features.
SCENARIOS = (
    FIRST_PHRASE,
    NEXT_PHRASE,
    Scenario("next_8_phrases", "Next 8 phrases: the image is encoded, 8 new phrases in one batch", False, 8),
    Scenario("next_32_phrases", "Next 32 phrases: the image is encoded, 32 new phrases in one batch", False, 32),
    Scenario("first_8_phrases", "First 8 phrases: a new image and 8 phrases in one batch", True, 8),
    STAGES,
)
# Enough phrases that consecutive scenarios use different ones.
_PHRASES = 2 * max(scenario.phrases for scenario in SCENARIOS)


def parse_scenarios(names: str) -> tuple[Scenario, ...]:
    """Parse a comma-separated list of scenarios, in running order; an empty list selects all.

    ``FIRST_PHRASE`` is always included, because other scenarios are compared with it.

    Raises:
        BadInputError: no scenario has such a name.
    """
    known = [scenario.name for scenario in SCENARIOS]
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    if unknown := sorted(wanted.difference(known)):
        raise BadInputError(f"unknown scenario '{unknown[0]}': known are {', '.join(known)}")
    return tuple(one for one in SCENARIOS if not wanted or one.name in wanted or one is FIRST_PHRASE)


@dataclass(frozen=True, eq=False)
class Workload:
    """Input of runners: an image, (H, W, 3) uint8, and more different phrases than any scenario uses."""

    image: npt.NDArray[np.uint8]
    phrases: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.image.shape[0], self.image.shape[1]

    def some_phrases(self, first: int, count: int) -> list[str]:
        """Return ``count`` phrases, starting at number ``first``, cyclically."""
        return [self.phrases[(first + index) % len(self.phrases)] for index in range(count)]


def workload_of(samples: Sequence[ReferenceSample]) -> Workload:
    """Build a workload from a bundle's reference samples.

    The stored image has the network's size. It is resized to its original size, so that the work on the host takes as
    long as for a user's image.
    """
    import cv2

    height, width = samples[0].original_size
    image = np.asarray(cv2.resize(stored_image(samples[0]), (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return Workload(image, different_phrases([phrase for one in samples for phrase in one.phrases], _PHRASES))


def stored_image(sample: ReferenceSample) -> npt.NDArray[np.uint8]:
    """Return a sample's image at the network's size, (S, S, 3) uint8."""
    return np.ascontiguousarray(sample.tensors["image"][0].transpose(1, 2, 0))


def different_phrases(known: Sequence[str], count: int) -> tuple[str, ...]:
    """Return ``count`` different phrases, because engines encode repeated phrases of a request only once.

    The result starts with the known phrases, followed by permutations of their words and by their concatenations.
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
