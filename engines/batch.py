"""``rsrefseg infer`` on many images: the bundle is loaded once, bad images are reported and skipped."""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .bundle.bundle import Bundle
from .errors import BadInputError
from .images.names import shown_name
from .infer import InferOptions, InferReport, infer_image
from .job import Cluster, Job, Result, Work
from .records import Record
from .results.table import Table, seconds_of
from .system.progress import ProgressLine
from .text import check_phrases
from .worklist import is_batch, split_arguments, work_list

_AT_ONCE = 2  # one image is read or written while the other one is segmented


class BatchReport(Record, frozen=True):
    """The result of ``rsrefseg infer`` on many images.

    Attributes:
        images: number of images in the work list or its shard.
        resumed: how many of them an earlier run had finished.
        failed: name and error of each image that could not be segmented.
        table: path of the table.
        out: folder of the results.
        backend: the backend that ran, and why it was selected; empty if nothing was left to do.
        wall_s: duration of the batch, seconds.
        notes: notes on the bundle, one line each.
    """

    images: int
    resumed: int
    failed: tuple[tuple[str, str], ...]
    table: Path
    out: Path
    backend: str
    wall_s: float
    notes: tuple[str, ...] = ()

    @property
    def failure(self) -> str:
        """One line if an image failed, else empty."""
        return f"{len(self.failed)} of {self.images} images failed: see '{self.table}'" if self.failed else ""

    def render(self) -> str:
        """Return the report as text."""
        done = self.images - self.resumed - len(self.failed)
        lines = [f"{done} images segmented in {self.wall_s:.1f} s, {self.resumed} done before"]
        lines += [f"  failed: {error}" for _, error in self.failed]
        lines += [f"  results in {self.out}", f"  {self.table}", *(f"note: {note}" for note in self.notes)]
        return "\n".join([*lines, f"ran on {self.backend}"] if self.backend else lines)


def infer_images(
    arguments: Sequence[str],
    *,
    bundle: Path | None,
    out: Path,
    resume: bool = False,
    shard: str | None = None,
    ray: str | None = None,
    actors: int | None = None,
    gpus: float | None = None,
    **options: Any,
) -> InferReport | BatchReport:
    """Segment an image with ``infer_image``, or a batch with ``infer_batch``.

    Args:
        arguments: images and phrases; see ``split_arguments``.
        bundle: the bundle's folder.
        out: folder of the results.
        resume: see ``infer_batch`` and, for one image, ``infer_image``.
        shard: see ``infer_batch``. It or ``ray`` makes an image a batch of one.
        ray, actors, gpus: see ``Cluster``.
        options: fields of ``InferOptions``.

    Raises:
        RSRefSegError: see ``infer_image`` and ``infer_batch``.
    """
    images, phrases = split_arguments(arguments)
    if ray is None and (actors is not None or gpus is not None):
        raise BadInputError("--actors and --gpus are for Ray: add --ray, or leave them out")
    if not (shard or ray or is_batch(images)):
        return infer_image(images[0], phrases, bundle=bundle, out=out, resume=resume, **options)
    cluster = Cluster(ray, actors, gpus) if ray is not None else None
    if options.pop("vector", None) is not None:
        raise BadInputError("--vector names the file of one image: leave it out, each image has its own GeoJSON")
    return infer_batch(images, phrases, bundle, out, InferOptions(**options), resume, shard, cluster)


def infer_batch(
    images: Sequence[str],
    phrases: Sequence[str],
    bundle: Path | None,
    out: Path,
    options: InferOptions,
    resume: bool = False,
    shard: str | None = None,
    cluster: Cluster | None = None,
) -> BatchReport:
    """Segment the region of each phrase in each image; write a folder of results for each, and a table.

    Args:
        images: see ``work_list``.
        phrases: one or more phrases.
        bundle: the bundle's folder; by default ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        out: folder of the results. The table is ``results.csv`` in it, that of a shard ``results-K-of-N.csv``.
        options: options of every image.
        resume: keep the results that an earlier run finished with the same bundle, phrases and options.
        shard: ``K/N`` for the K-th of N parts of the work list.
        cluster: where to run; this process by default.

    Raises:
        BadInputError: a list, a phrase or the shard cannot be used, no image is found, or no backend has that name.
        BundleError: the bundle is missing, incomplete or changed.
        MissingPartError: the backend cannot run on this machine.
        RSRefSegError: the table cannot be written.
    """
    started = time.perf_counter()
    options.check()
    opened = Bundle.open(bundle)
    check_phrases(phrases)
    tokenizer = opened.tokenizer()
    for phrase in phrases:
        tokenizer.encode([phrase])  # refuses a phrase before any image is read
    job = Job(opened.root.resolve(), opened.digest, tuple(phrases), options, out.resolve())
    items = work_list(images, out, shard)
    name = f"results-{shard.replace('/', '-of-')}.csv" if shard else "results.csv"
    seconds = seconds_of(out / name) if resume else {}
    found = {number: job.finished(item, seconds) if resume else None for number, item in enumerate(items)}
    table = Table(out / name, {number: rows for number, rows in found.items() if rows is not None})
    work = [(number, item) for number, item in enumerate(items) if found[number] is None]
    failed, backend = [], ""
    with ProgressLine("images") as progress:
        for done, result in enumerate(_run(job, work, cluster), len(items) - len(work) + 1):
            table.add(result.number, result.rows)
            backend = result.backend
            if result.error:
                failed.append((shown_name(items[result.number].image), result.error))
                progress.say(f"skipped: {result.error}")
            progress.update(done, len(items))
    table.write()
    return BatchReport(
        images=len(items),
        resumed=len(items) - len(work),
        failed=tuple(failed),
        table=table.path,
        out=out,
        backend=backend,
        wall_s=round(time.perf_counter() - started, 3),
        notes=opened.manifest.notes,
    )


def _run(job: Job, work: Sequence[Work], cluster: Cluster | None) -> Iterator[Result]:
    if not work:
        return iter(())
    if cluster is None:
        return _run_here(job, work)
    from .cluster import run_on_ray

    return run_on_ray(job, work, cluster)


def _run_here(job: Job, work: Sequence[Work]) -> Iterator[Result]:
    """Yield the results in the order of the work list. The segmenter runs one image at a time."""
    turn, waiting = threading.Lock(), deque[Future[Result]]()
    with job.open() as segmenter, ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for one in work:
                waiting.append(pool.submit(job.run, segmenter, turn, one))
                if len(waiting) == _AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
