"""``rsrefseg data synth``: writes a data set of rendered scenes in the RRSIS-D layout."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.progress import ProgressLine

from ..data.parallel import in_processes
from ..data.rrsisd_writer import WrittenScene, write_rrsisd
from .domain import Domain
from .scene import Scene, render_scene

_SPLITS = ("train", "val", "test")


class SynthSummary(Record, frozen=True):
    """Number of images and expressions per split, and of expressions per class."""

    root: Path
    domain: Domain
    size: int
    images: dict[str, int]
    expressions: dict[str, int]
    categories: dict[str, int]

    def render(self) -> str:
        """Return the summary as two lines of text."""
        splits = ", ".join(f"{name} {self.expressions[name]} on {self.images[name]} images" for name in self.images)
        classes = ", ".join(f"{name} {count}" for name, count in self.categories.items())
        return f"{self.root}: domain {self.domain}, expressions: {splits}\n{len(self.categories)} classes: {classes}"


def synthesize(
    out: Path,
    *,
    domain: str,
    train: int,
    val: int,
    test: int,
    size: int = 256,
    seed: int = 0,
    max_referrals: int = 6,
    absent: int = 0,
    workers: int = 1,
    overwrite: bool = False,
) -> SynthSummary:
    """Render scenes and write them as an RRSIS-D folder, atomically.

    Equal arguments produce equal bytes for any number of workers. Every scene has another seed, and a longer split
    begins with the scenes of a shorter one. ``domain`` is one of ``Domain``; ``train``, ``val`` and ``test`` are
    numbers of images, not of expressions; ``absent`` is the number of phrases without a target in each image;
    ``overwrite`` replaces an existing RRSIS-D folder.

    Raises:
        BadInputError: a value is out of range, or the folder is not empty and may not be replaced.
    """
    if domain not in tuple(Domain):
        raise BadInputError(f"unknown domain '{domain}': choose one of {', '.join(Domain)}")
    counts = dict(zip(_SPLITS, (train, val, test), strict=True))
    if min(counts.values()) < 0 or sum(counts.values()) == 0 or seed < 0 or workers < 1:
        raise BadInputError(
            f"scene counts {tuple(counts.values())}, seed {seed}, workers {workers}: counts and seed must not be "
            "negative, and at least one scene and one worker are needed"
        )
    jobs = [
        (split, (seed * len(_SPLITS) + order) << 32 | index)
        for order, split in enumerate(_SPLITS)
        for index in range(counts[split])
    ]
    expressions = dict.fromkeys(_SPLITS, 0)
    categories = Counter[str]()
    draw = partial(_draw, domain=Domain(domain), size=size, max_referrals=max_referrals, absent=absent)

    def scenes() -> Iterator[WrittenScene]:
        drawn = in_processes(draw, jobs, workers, jobs_per_process=1)
        with ProgressLine("rendering scenes") as progress:
            for done, (split, scene) in enumerate(drawn, start=1):
                expressions[split] += len(scene.referrals)
                categories.update(referral.category for referral in scene.referrals)
                yield split, scene.image, scene.referrals
                progress.update(done, len(jobs))

    write_rrsisd(out, scenes(), overwrite)
    return SynthSummary(out, Domain(domain), size, counts, expressions, dict(sorted(categories.items())))


def _draw(job: tuple[str, int], *, domain: Domain, size: int, max_referrals: int, absent: int) -> tuple[str, Scene]:
    split, seed = job
    return split, render_scene(seed, domain, size, max_referrals, absent)
