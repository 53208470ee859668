"""Reads a whole data set once and says what would spoil a training run, before the run."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError

from .parallel import in_processes
from .phrase_length import PhraseLengths, PhraseRule
from .samples import Dataset, Sample, group_by_image, open_dataset

EXAMPLES = 5

Progress = Callable[[int, int], None]


class Problem(StrEnum):
    """What can be wrong with a data set; a fault spoils training or its figures, the rest is worth knowing."""

    MISSING_IMAGE = "missing images"
    UNREADABLE_IMAGE = "unreadable images"
    MISSING_MASK = "missing masks"
    BROKEN_MASK = "broken masks"
    SHARED_BETWEEN_SPLITS = "images that stand in more than one split"
    REPEATED_ID = "sample ids used more than once"
    EMPTY_PHRASE = "empty phrases"
    SIZE_DIFFERENCE = "masks of another size than their image (train and eval need --resize-masks)"
    EMPTY_MASK = "empty masks"
    NO_TARGET = "expressions that refer to nothing, as annotated (their masks are empty)"
    LONG_PHRASE = "phrases longer than the model reads (their end is cut off)"
    REPEATED_SAMPLE = "samples that repeat an image and phrase of their split"
    REPEATED_IMAGE = "images whose pixels equal another's of their split"

    @property
    def is_fault(self) -> bool:
        """Whether it spoils training or the figures taken on the data."""
        return self in _FAULTS


_FAULTS = frozenset(
    {
        Problem.MISSING_IMAGE,
        Problem.UNREADABLE_IMAGE,
        Problem.MISSING_MASK,
        Problem.BROKEN_MASK,
        Problem.SHARED_BETWEEN_SPLITS,
        Problem.REPEATED_ID,
        Problem.EMPTY_PHRASE,
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of problem, how often it was met, and its first cases."""

    problem: Problem
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.examples) else ""
        return f"{self.count} {self.problem.value}: {', '.join(self.examples)}{more}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "problem": self.problem.name.lower(),
            "text": self.problem.value,
            "count": self.count,
            "examples": list(self.examples),
        }


@dataclass(frozen=True, slots=True)
class SplitCount:
    """How much one split holds."""

    samples: int
    images: int


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What a data set holds and what is wrong with it.

    Attributes:
        root: the folder or file that was read.
        format: the format it was recognised as.
        splits: samples and images of each split.
        categories: samples of each class, most frequent first.
        phrases: how the length of phrases was counted; None where it was not.
        findings: every kind of problem met.
    """

    root: Path
    format: str
    splits: dict[str, SplitCount]
    categories: dict[str, int]
    phrases: PhraseLengths | None
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """Findings that spoil training or the figures taken on the data."""
        return tuple(finding for finding in self.findings if finding.problem.is_fault)

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Findings worth knowing."""
        return tuple(finding for finding in self.findings if not finding.problem.is_fault)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "root": str(self.root),
            "format": self.format,
            "splits": {name: {"samples": split.samples, "images": split.images} for name, split in self.splits.items()},
            "categories": dict(self.categories),
            "phrase_lengths": None if self.phrases is None else self.phrases.as_dict(),
            "faults": [finding.as_dict() for finding in self.faults],
            "notes": [finding.as_dict() for finding in self.notes],
        }

    def render(self) -> str:
        """Counts, then faults, then notes, a line each."""
        lines = [f"{self.root}: {self.format}, {len(self.categories)} classes"]
        lines += [
            f"  {name}: {split.samples} expressions on {split.images} images" for name, split in self.splits.items()
        ]
        lines.append(f"  classes: {', '.join(f'{name} {count}' for name, count in self.categories.items())}")
        if self.phrases is not None:
            lines.append(f"  {self.phrases}")
        lines += [f"FAULT  {finding}" for finding in self.faults]
        lines += [f"note   {finding}" for finding in self.notes]
        return "\n".join([*lines, "no faults" if not self.faults else f"{len(self.faults)} kinds of faults"])


def check_dataset(
    path: Path | str,
    workers: int = 1,
    progress: Progress | None = None,
    phrase_rule: PhraseRule | None = None,
    images: Path | None = None,
) -> DatasetReport:
    """Read every image and mask of a data set once and report.

    Args:
        path: the data set.
        workers: processes at most.
        progress: called with (images done, images in all) after each image.
        phrase_rule: what makes a phrase longer than the model reads; without it that is not checked.
        images: folder of the images where it is not the format's own.

    Raises:
        BadInputError: the data set cannot be opened at all. What is wrong with single samples is reported, not raised.
    """
    dataset = open_dataset(path, images)
    groups = group_by_image(dataset.samples)
    findings = _Findings()
    images_by_digest: dict[str, list[tuple[Sample, ...]]] = {}
    looks = in_processes(_look, groups, workers)
    for done, (group, seen) in enumerate(zip(groups, looks, strict=True), start=1):
        for problem, example in seen.problems:
            findings.add(problem, example)
        # What cannot be read has no pixels to compare; its path still tells whether splits share it.
        images_by_digest.setdefault(seen.digest or str(group[0].image_path), []).append(group)
        if progress is not None:
            progress(done, len(groups))
    for same_image in images_by_digest.values():
        _compare_splits(same_image, findings)
    longest = _look_at_phrases(dataset, phrase_rule, findings)
    return DatasetReport(
        root=dataset.root,
        format=dataset.name,
        splits={name: _split_count(dataset.split(name)) for name in dataset.splits},
        categories=dict(Counter(sample.category for sample in dataset.samples).most_common()),
        phrases=None if phrase_rule is None else PhraseLengths(longest, phrase_rule.limit, phrase_rule.unit),
        findings=findings.as_tuple(),
    )


class _Findings:
    """Counts problems and keeps the first few cases of each."""

    def __init__(self) -> None:
        self._counts: Counter[Problem] = Counter()
        self._examples: dict[Problem, list[str]] = {}

    def add(self, problem: Problem, example: str) -> None:
        self._counts[problem] += 1
        examples = self._examples.setdefault(problem, [])
        if len(examples) < EXAMPLES:
            examples.append(example)

    def as_tuple(self) -> tuple[Finding, ...]:
        """In the order of ``Problem``: the same data gives the same report."""
        return tuple(
            Finding(problem, self._counts[problem], tuple(self._examples[problem]))
            for problem in Problem
            if self._counts[problem]
        )


@dataclass(slots=True)
class _Look:
    """What one image and its masks showed."""

    digest: str | None = None
    problems: list[tuple[Problem, str]] = field(default_factory=list)


def _look(group: tuple[Sample, ...]) -> _Look:
    """Read one image and the masks of its samples."""
    from rsrefseg.engines.images.images import read_image

    look = _Look()
    path = group[0].image_path
    size: tuple[int, int] | None = None
    if not path.is_file():
        look.problems.append((Problem.MISSING_IMAGE, f"'{path}'"))
    else:
        try:
            image = read_image(path)
            size = (image.shape[0], image.shape[1])
            # Pixels, not file bytes: a copy that was written anew without loss is the same image.
            look.digest = sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        except BadInputError as error:
            look.problems.append((Problem.UNREADABLE_IMAGE, str(error)))
    for sample in group:
        look.problems.extend(_mask_problems(sample, size))
    return look


def _mask_problems(sample: Sample, image_size: tuple[int, int] | None) -> Iterator[tuple[Problem, str]]:
    file = sample.mask_source.file
    if file is not None and not file.is_file():
        yield Problem.MISSING_MASK, f"'{file}'"
        return
    try:
        mask = sample.mask()
    except BadInputError as error:
        yield Problem.BROKEN_MASK, str(error)
        return
    if image_size is not None and mask.shape != image_size:
        mask_height, mask_width = mask.shape
        height, width = image_size
        yield (
            Problem.SIZE_DIFFERENCE,
            f"sample '{sample.sample_id}' ({mask_height}x{mask_width}, image {height}x{width})",
        )
    if not mask.any():
        problem = Problem.EMPTY_MASK if sample.mask_source.has_target else Problem.NO_TARGET
        yield problem, f"sample '{sample.sample_id}'"


def _compare_splits(same_image: list[tuple[Sample, ...]], findings: _Findings) -> None:
    """Report one picture that stands in several splits, or under several names in one."""
    splits = dict.fromkeys(sample.split for group in same_image for sample in group)
    names = " = ".join(dict.fromkeys(f"'{group[0].image_path.name}'" for group in same_image))
    if len(splits) > 1:
        findings.add(Problem.SHARED_BETWEEN_SPLITS, f"{names} in {' and '.join(splits)}")
    elif len(same_image) > 1:
        findings.add(Problem.REPEATED_IMAGE, names)


def _look_at_phrases(dataset: Dataset, rule: PhraseRule | None, findings: _Findings) -> int:
    """Report what is wrong with phrases and ids; gives the length of the longest phrase."""
    longest = 0
    ids: set[str] = set()
    seen: set[tuple[str, Path, str]] = set()
    for sample in dataset.samples:
        name = f"sample '{sample.sample_id}'"
        key = (sample.split, sample.image_path, sample.phrase)
        if sample.sample_id in ids:
            findings.add(Problem.REPEATED_ID, name)
        if not sample.phrase.strip():
            findings.add(Problem.EMPTY_PHRASE, name)
        elif rule is not None:
            length = rule.count(sample.phrase)
            longest = max(longest, length)
            if length > rule.limit:
                findings.add(Problem.LONG_PHRASE, f"{name} ({length})")
        if key in seen:
            findings.add(Problem.REPEATED_SAMPLE, name)
        ids.add(sample.sample_id)
        seen.add(key)
    return longest


def _split_count(samples: tuple[Sample, ...]) -> SplitCount:
    return SplitCount(samples=len(samples), images=len({sample.image_path for sample in samples}))
