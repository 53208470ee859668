"""Runs the work list of a batch on a Ray cluster: a pool of actors, each with its own segmenter."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MissingPartError, RSRefSegError
from .job import Cluster, Job, Result, Work
from .segmenter import Segmenter
from .worklist import Item

if TYPE_CHECKING:
    from types import ModuleType

_MOST_BLOCKS = 10_000  # of images; a block whose actor died runs again
_RETRIES = 2  # of an image whose actor died: it may be the image that kills it


class Worker:
    """An actor: opens the bundle with its first image and keeps it."""

    def __init__(self, job: Job, threads: int | None, folder: str) -> None:
        os.chdir(folder)  # names of images may be relative
        self._job, self._threads = job, threads
        self._segmenter: Segmenter | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """Segment an image; return its result, or an error that concerns every image, as JSON."""
        work = (int(row["number"]), Item(row["image"], row["place"]))
        try:
            if self._segmenter is None:
                self._segmenter = self._job.open(self._threads)
            return {"result": json.dumps(self._job.run(self._segmenter, nullcontext(), work), default=str)}
        except RSRefSegError as error:
            return {"result": json.dumps({"error": str(error), "node": os.uname().nodename})}


def run_on_ray(job: Job, work: Sequence[Work], cluster: Cluster) -> Iterator[Result]:
    """Yield the results as they come. Ray replaces an actor that died and runs its images again.

    Bundle, images and results must have the same paths on all nodes.

    Raises:
        MissingPartError: the cluster cannot be reached, or a node cannot run the bundle.
        NotInstalledError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    own = not ray.is_initialized()
    if own:
        _connect(ray, cluster.address)
    try:
        resources = ray.cluster_resources()
        gpus = cluster.gpus if cluster.gpus is not None else float(resources.get("GPU", 0) >= 1)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpus and not any(node.get("GPU", 0) >= gpus for node in nodes):
            raise MissingPartError(f"no node of the cluster has {gpus:g} GPUs: give a smaller --gpus")
        by_gpu = int(resources.get("GPU", 0) // gpus) if gpus else len(nodes)
        actors = cluster.actors or max(1, by_gpu)
        threads = None if gpus else max(1, int(resources.get("CPU", 1)) // actors)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = [{"number": number, "image": item.image, "place": item.place} for number, item in work]
        pool = ray.data.ActorPoolStrategy(size=min(actors, len(rows)))
        results = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map(
            Worker,
            fn_constructor_args=(job, threads, str(Path.cwd())),
            compute=pool,
            num_cpus=1,
            num_gpus=gpus,
            max_task_retries=_RETRIES,
        )
        for row in results.iter_rows():
            yield _result_of(json.loads(row["result"]))
    except ray.exceptions.RayError as error:
        raise RSRefSegError(f"Ray failed: {_first_line(error)}; continue with --resume") from error
    finally:
        if own:
            ray.shutdown()


def _connect(ray: "ModuleType", address: str) -> None:
    local = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        hint = "use local to start Ray on this machine, or the address of `ray start --head`"
        raise MissingPartError(f"no Ray at '{address}' ({_first_line(error)}): {hint}") from error


def _result_of(document: Any) -> Result:
    if isinstance(document, dict):
        raise MissingPartError(f"the node '{document['node']}' cannot run the bundle: {document['error']}")
    return Result(*document)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
