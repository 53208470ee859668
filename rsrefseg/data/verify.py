"""Finds problems of samples: ``train`` and ``eval`` stop at the first kind, ``data check`` reports all."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import read_image
from rsrefseg.engines.text import MAX_PHRASE_CHARACTERS, clean_phrase

from .samples import Dataset, Sample, group_by_image, size_in_header


class Problem(StrEnum):
    """Problems of a data set; faults affect training or scores, the others are notes."""

    MISSING_SPLIT = "missing splits"
    MISSING_IMAGE = "missing images (complete the download)"
    UNREADABLE_IMAGE = "unreadable images"
    MISSING_MASK = "missing masks (complete the download)"
    BROKEN_MASK = "broken masks"
    SIZE_DIFFERENCE = "masks of another size than their image (--resize-masks resizes them)"
    UNUSABLE_PHRASE = f"phrases that are blank, longer than {MAX_PHRASE_CHARACTERS} characters, or without a known word"
    SHARED_BETWEEN_SPLITS = "images that are in more than one split"
    REPEATED_ID = "sample ids used more than once"
    RESIZED_MASK = "masks of another size than their image, which are resized"
    EMPTY_MASK = "empty masks"
    NO_TARGET = "expressions that refer to nothing, as annotated (their masks are empty)"
    LONG_PHRASE = "phrases longer than the model reads (their end is cut off)"
    REPEATED_SAMPLE = "samples that repeat an image and phrase of their split"
    REPEATED_IMAGE = "images whose pixels equal another's of their split"

    @property
    def is_fault(self) -> bool:
        """Whether the problem affects training or scores."""
        return list(Problem).index(self) <= list(Problem).index(Problem.REPEATED_ID)


def mask_problems(
    sample: Sample, image_size: tuple[int, ...] | None, decode: bool = False
) -> Iterator[tuple[Problem, str]]:
    """Yield the problems of a sample's mask that the annotation or the file header shows.

    ``image_size`` is the height and width of the image, or None to skip the comparison. ``decode`` also reads the
    mask's pixels.
    """
    name = f"sample '{sample.sample_id}'"
    if isinstance(sample.mask_source, Path) and not sample.mask_source.is_file():
        yield Problem.MISSING_MASK, f"'{sample.mask_source}'"
        return
    try:
        size = sample.mask_size
        empty = decode and not sample.mask().any()
    except BadInputError as error:
        yield Problem.BROKEN_MASK, str(error)
        return
    if image_size is not None and size != image_size:
        yield Problem.SIZE_DIFFERENCE, sample.size_difference(size, image_size)
    if empty:
        yield Problem.EMPTY_MASK if sample.has_target else Problem.NO_TARGET, name


def verify_samples(dataset: Dataset, splits: Sequence[str], resize_masks: bool = False) -> list[tuple[Sample, ...]]:
    """Return the samples of each split after a check of annotations and file headers.

    With ``resize_masks``, masks may have another size than their image.

    Raises:
        BadInputError: a split does not exist, or samples cannot be used; the message has their number and the first.
    """
    chosen = [dataset.split(split) for split in splits]
    found: dict[Problem, list[str]] = {}
    for group in group_by_image(chain(*chosen)):
        path = group[0].image_path
        if not path.is_file():
            found.setdefault(Problem.MISSING_IMAGE, []).append(f"'{path}'")
            continue
        size = size_in_header(path) or read_image(path).shape[:2]
        for sample in group:
            problems = list(mask_problems(sample, None if resize_masks else size))
            try:
                clean_phrase(sample.phrase)
            except BadInputError as error:
                problems.append((Problem.UNUSABLE_PHRASE, f"sample '{sample.sample_id}': {error}"))
            for problem, example in problems:
                found.setdefault(problem, []).append(example)
    for problem in Problem:
        if examples := found.get(problem):
            raise BadInputError(f"'{dataset.root}' has {len(examples)} {problem.value}, the first is {examples[0]}")
    return chosen
