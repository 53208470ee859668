"""A whole data set of made scenes in the RRSIS-D layout."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError

from ..data.parallel import in_processes
from ..data.rrsisd_writer import WrittenScene, write_rrsisd
from .domain import Domain
from .scene import Scene, render_scene

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class SynthSummary:
    """What was written: images and expressions per split, and expressions per class."""

    root: Path
    domain: Domain
    size: int
    images: dict[str, int]
    expressions: dict[str, int]
    categories: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self) | {"root": str(self.root)}

    def render(self) -> str:
        """What was written, in two lines."""
        splits = ", ".join(f"{name} {self.expressions[name]} on {self.images[name]} images" for name in self.images)
        classes = ", ".join(f"{name} {count}" for name, count in self.categories.items())
        return f"{self.root}: domain {self.domain}, expressions: {splits}\n{len(self.categories)} classes: {classes}"


def synthesize(
    out: Path,
    *,
    domain: Domain,
    train: int,
    val: int,
    test: int,
    size: int = 256,
    seed: int = 0,
    max_referrals: int = 6,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
) -> SynthSummary:
    """Render scenes and write them as an RRSIS-D folder, whole or not at all.

    The same arguments give the same bytes, whatever the number of workers. No seed is used for two scenes, and a
    longer split begins with the scenes of a shorter one. ``train``, ``val`` and ``test`` count images, not expressions;
    ``progress`` is called with (scenes done, scenes in all); ``overwrite`` replaces an RRSIS-D folder that is there.

    Raises:
        BadInputError: A value out of range, or a folder that already holds something.
    """
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
    categories: dict[str, int] = {}
    draw = partial(_draw, domain=domain, size=size, max_referrals=max_referrals)

    def scenes() -> Iterator[WrittenScene]:
        drawn = in_processes(draw, jobs, workers, jobs_per_process=1)
        for done, (split, scene) in enumerate(drawn, start=1):
            expressions[split] += len(scene.referrals)
            for referral in scene.referrals:
                categories[referral.category] = categories.get(referral.category, 0) + 1
            yield split, scene.image, scene.referrals
            if progress is not None:
                progress(done, len(jobs))

    write_rrsisd(out, scenes(), overwrite)
    return SynthSummary(out, domain, size, counts, expressions, dict(sorted(categories.items())))


def _draw(job: tuple[str, int], *, domain: Domain, size: int, max_referrals: int) -> tuple[str, Scene]:
    split, seed = job
    return split, render_scene(seed, domain, size, max_referrals)
