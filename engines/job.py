"""The work of a batch on one image: segment it, write its results, and return its rows of the table."""

import json
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from .errors import BundleError, MissingPartError
from .images.names import is_remote, shown_name, without_secrets
from .images.rasters import files_of
from .infer import InferOptions, result_stem, segment_source
from .records import Record
from .results.results import result_path, write_results
from .results.table import Row, failed_rows, rows_of
from .segmenter import Segmenter
from .system.files import sha256_file
from .worklist import Item

Work = tuple[int, Item]  # with the position in the work list


class Cluster(Record, frozen=True):
    """A Ray cluster to run on.

    Attributes:
        address: ``local`` starts Ray on this machine; ``auto`` or an address joins a cluster.
        actors: processes that segment; by default one for each GPU, or without GPUs one for each node.
        gpus: GPUs of each, may be a fraction; by default 1 if the cluster has any.
    """

    address: str
    actors: int | None = None
    gpus: float | None = None


class Result(NamedTuple):
    """The result of one image: its rows of the table, and what went wrong, if anything.

    Attributes:
        number: position in the work list.
        rows: rows of the table.
        error: one line; empty if the results are written.
        backend: the backend that ran, and why it was selected.
    """

    number: int
    rows: list[Row]
    error: str
    backend: str


class Job(Record, frozen=True):
    """What is done with each image; may be sent to other machines.

    Attributes:
        bundle: folder of the bundle.
        bundle_sha256: its digest.
        phrases: one or more phrases.
        options: options of every image.
        out: folder of the results.
    """

    bundle: Path
    bundle_sha256: str
    phrases: tuple[str, ...]
    options: InferOptions
    out: Path

    def open(self, threads: int | None = None) -> Segmenter:
        """Open the bundle; see ``Segmenter.open``."""
        return Segmenter.open(
            self.bundle,
            self.options.backend,
            threads=threads,
            cached_phrases=len(self.phrases),
            threshold=self.options.threshold,
            absent_below=self.options.absent_below,
        )

    def run(self, segmenter: Segmenter, turn: AbstractContextManager[object], work: Work) -> Result:
        """Segment an image and write its results, or report why that failed.

        Raises:
            MissingPartError: the backend cannot run on this machine, whatever the image.
            BundleError: the bundle was changed.
        """
        number, item = work
        started = time.perf_counter()
        folder, error = self.out / item.place, ""
        try:
            found = segment_source(segmenter, item.image, self.phrases, self.options, turn)
            stem, rle = result_stem(item.image), self.options.rle
            maps = self.options.maps
            *_, path = write_results(folder, stem, *found[:2], item.image, found.provenance, rle, maps)
            rows = self._rows(item, path, json.loads(path.read_bytes()), time.perf_counter() - started)
        except (MissingPartError, BundleError):
            raise
        except Exception as problem:  # decoders and drivers raise almost anything; the batch continues
            text = " ".join(str(problem).split()) or f"{shown_name(item.image)}: {type(problem).__name__}"
            error = without_secrets(text)
            rows = failed_rows(shown_name(item.image), self.phrases, error, round(time.perf_counter() - started, 3))
        return Result(number, rows, error, segmenter.backend_reason)

    def finished(self, item: Item, seconds: dict[tuple[str, str], float]) -> list[Row] | None:
        """Return the rows of an image whose results an earlier run wrote; ``None`` if they are missing or differ.

        They differ if the bundle, the phrases, an option or the image changed.

        Args:
            item: the image.
            seconds: see ``seconds_of``.
        """
        path = result_path(self.out / item.place, result_stem(item.image), item.image)
        try:
            document = json.loads(path.read_bytes())
            made = document["provenance"]
            same = made["bundle_sha256"] == self.bundle_sha256 and made["options"] == self.options.to_dict()
            names = {document["overlay_file"], *(result["mask_file"] for result in document["results"])}
            if made["raster"] is not None:
                names.add(f"{path.stem}.geojson")
            if not same or [result["phrase"] for result in document["results"]] != list(self.phrases):
                return None
            oldest = min(path.with_name(name).stat().st_mtime for name in names)
            if not is_remote(item.image):
                files = files_of(item.image)
                is_newer = any(_changed(file) > oldest for file in files)
                # Of a VRT, only its own digest is recorded.
                if is_newer and (len(files) > 1 or sha256_file(files[0]) != made["source_sha256"]):
                    return None
            known = [seconds.get((shown_name(item.image), phrase)) for phrase in self.phrases]
            return self._rows(item, path, document, known[0])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _rows(self, item: Item, path: Path, document: dict[str, Any], seconds: float | None) -> list[Row]:
        shown = seconds if seconds is None else round(seconds, 3)
        return rows_of(shown_name(item.image), document, path.relative_to(self.out), shown)


def _changed(file: Path) -> float:
    """Return when a file was last written, copied or moved, seconds since the epoch."""
    found = file.stat()
    return max(found.st_mtime, found.st_ctime)
