"""Reads a data set once and reports all faults that would affect a training run."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import read_image
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.progress import ProgressLine
from rsrefseg.engines.text import TEXT_LENGTH

from .formats import open_dataset
from .parallel import in_processes
from .phrase_length import phrase_counter
from .samples import Sample, group_by_image
from .shared_images import pixel_digest
from .verify import Problem, mask_problems

EXAMPLES = 5
# Splits that `train` reads, and the split that `eval` reads by default.
TRAINING_SPLITS = ("train", "val")
EVALUATION_SPLITS = ("test",)

Found = Iterator[tuple[Problem, str]]


class Finding(Record, frozen=True):
    """A kind of problem, its number of cases, the first cases, and a description."""

    problem: str
    count: int
    examples: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, problem: Problem, examples: Sequence[str]) -> "Finding":
        """Build a finding from all cases of a problem."""
        return cls(problem.name.lower(), len(examples), tuple(examples[:EXAMPLES]), problem.value)

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.examples) else ""
        return f"{self.count} {self.text}: {', '.join(self.examples)}{more}"


class SplitCount(Record, frozen=True):
    """Number of samples and images in a split."""

    samples: int
    images: int


class PhraseLengths(Record, frozen=True):
    """Length of the longest phrase, the limit, and the unit of both."""

    longest: int
    limit: int
    counted: str


class DatasetReport(Record, frozen=True):
    """Content of a data set and its problems.

    Attributes:
        root: folder or file of the data set.
        format: name of its format.
        splits: sizes of the splits by name.
        categories: number of samples of each class, most frequent first.
        phrase_lengths: lengths over all samples.
        faults: problems that affect training or scores, in the order of ``Problem``.
        notes: other findings.
    """

    root: Path
    format: str
    splits: dict[str, SplitCount]
    categories: dict[str, int]
    phrase_lengths: PhraseLengths
    faults: tuple[Finding, ...]
    notes: tuple[Finding, ...]

    @property
    def failure(self) -> str:
        """One line if there are faults, otherwise empty."""
        return f"'{self.root}' has {len(self.faults)} kind(s) of faults that spoil training" if self.faults else ""

    def render(self) -> str:
        """Return counts, faults and notes as lines of text."""
        lengths = self.phrase_lengths
        return "\n".join(
            [
                f"{self.root}: {self.format}, {len(self.categories)} classes",
                *(f"  {name}: {n.samples} expressions on {n.images} images" for name, n in self.splits.items()),
                f"  classes: {', '.join(f'{name} {count}' for name, count in self.categories.items())}",
                f"  longest phrase: {lengths.longest} of {lengths.limit} ({lengths.counted})",
                *(f"FAULT  {finding}" for finding in self.faults),
                *(f"note   {finding}" for finding in self.notes),
                f"{len(self.faults)} kind(s) of faults" if self.faults else "no faults",
            ]
        )


def check_dataset(
    path: Path | str,
    images: Path | None = None,
    splits: Sequence[str] = (),
    tokenizer: Path | None = None,
    resize_masks: bool = False,
    workers: int = 1,
) -> DatasetReport:
    """Read every image and mask of a data set once and report.

    Args:
        path: the data set.
        images: image folder, if it is not the one of the format.
        splits: splits to check, all of which must exist; by default all splits, and the splits that ``train`` reads
            (without a training split, those that ``eval`` reads) must exist.
        tokenizer: tokenizer that measures phrases (``phrase_counter``); by default, words are counted.
        resize_masks: whether ``train`` and ``eval`` will resize masks of another size than their image.
        workers: maximum number of processes.

    Raises:
        BadInputError: the data set cannot be opened. Faults of single samples are reported, not raised.
    """
    (count, counted), dataset = phrase_counter(tokenizer), open_dataset(path, images)
    samples = [sample for sample in dataset.samples if not splits or sample.split in splits]
    groups = group_by_image(samples)
    found: dict[Problem, list[str]] = {problem: [] for problem in Problem}
    groups_by_digest: dict[str, list[tuple[Sample, ...]]] = {}
    inspected = zip(groups, in_processes(_inspect, groups, workers), strict=True)
    with ProgressLine("checking") as progress:
        for done, (group, (digest, problems)) in enumerate(inspected, start=1):
            for problem, example in problems:
                resized = resize_masks and problem is Problem.SIZE_DIFFERENCE
                found[Problem.RESIZED_MASK if resized else problem].append(example)
            groups_by_digest.setdefault(digest, []).append(group)
            progress.update(done, len(groups))
    for problem, example in (*_shared_images(groups_by_digest), *_repetitions(samples)):
        found[problem].append(example)
    needed = splits or (TRAINING_SPLITS if TRAINING_SPLITS[0] in dataset.splits else EVALUATION_SPLITS)
    found[Problem.MISSING_SPLIT] += [f"'{name}'" for name in needed if name not in dataset.splits]
    longest = 0
    for sample in samples:
        try:
            length = count(sample.phrase)
        except BadInputError as error:
            found[Problem.UNUSABLE_PHRASE].append(f"sample '{sample.sample_id}': {error}")
            continue
        longest = max(longest, length)
        if length > TEXT_LENGTH:
            found[Problem.LONG_PHRASE].append(f"sample '{sample.sample_id}' ({length})")
    per_split = {name: [s for s in samples if s.split == name] for name in dict.fromkeys(s.split for s in samples)}
    kinds = [(problem, Finding.of(problem, examples)) for problem, examples in found.items() if examples]
    return DatasetReport(
        root=dataset.root,
        format=dataset.name,
        splits={name: SplitCount(len(part), len(group_by_image(part))) for name, part in per_split.items()},
        categories=dict(Counter(sample.category for sample in samples).most_common()),
        phrase_lengths=PhraseLengths(longest, TEXT_LENGTH, counted),
        faults=tuple(finding for problem, finding in kinds if problem.is_fault),
        notes=tuple(finding for problem, finding in kinds if not problem.is_fault),
    )


def _inspect(group: tuple[Sample, ...]) -> tuple[str, list[tuple[Problem, str]]]:
    """Read an image and the masks of its samples; return the digest of its pixels (or its path) and the problems."""
    path, size, digest = group[0].image_path, None, str(group[0].image_path)
    problems: list[tuple[Problem, str]] = []
    if not path.is_file():
        problems.append((Problem.MISSING_IMAGE, f"'{path}'"))
    else:
        try:
            image = read_image(path)
            size = (image.shape[0], image.shape[1])
            digest = pixel_digest(image)
        except BadInputError as error:
            problems.append((Problem.UNREADABLE_IMAGE, str(error)))
    for sample in group:
        problems += mask_problems(sample, size, decode=True)
    return digest, problems


def _shared_images(groups_by_digest: dict[str, list[tuple[Sample, ...]]]) -> Found:
    """Yield images that are in several splits, or that have several names in one split."""
    for groups in groups_by_digest.values():
        splits = dict.fromkeys(sample.split for group in groups for sample in group)
        copies = list(dict.fromkeys(f"'{group[0].image_path.name}'" for group in groups))
        names = " = ".join(copies[:EXAMPLES]) + (" = …" if len(copies) > EXAMPLES else "")
        if len(splits) > 1:
            yield Problem.SHARED_BETWEEN_SPLITS, f"{names} in {' and '.join(splits)}"
        elif len(groups) > 1:
            yield Problem.REPEATED_IMAGE, names


def _repetitions(samples: Sequence[Sample]) -> Found:
    """Yield repeated ids, and samples with the same image, phrase and split."""
    ids: set[str] = set()
    seen: set[tuple[str, Path, str]] = set()
    for sample in samples:
        key = (sample.split, sample.image_path, sample.phrase)
        if sample.sample_id in ids:
            yield Problem.REPEATED_ID, f"sample '{sample.sample_id}'"
        if key in seen:
            yield Problem.REPEATED_SAMPLE, f"sample '{sample.sample_id}'"
        ids.add(sample.sample_id)
        seen.add(key)
