"""Finds the engines of a bundle that are current on this machine, and builds those that are missing or stale."""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..bundle.manifest import FileRecord
from ..errors import BadInputError, BundleError, MissingPartError
from ..system.progress import ProgressLine
from .build import Compiler
from .cuda import Cuda
from .library import Platform, gpu_platform, open_tensorrt
from .records import (
    BuildOptions,
    EngineRecord,
    Fingerprint,
    StoredEngine,
    bundle_path,
    engines_folder,
    store_engine,
    stored_engines,
)

_NO_ENGINE = "it has no engine yet"


class Found(Struct, frozen=True):
    """The result of the search for a stage's engine.

    Attributes:
        engine: the current engine; ``None`` if there is none.
        reasons: why there is none, one text each.
        options: options of the engine, or of the most similar stale one; the defaults if there is neither.
    """

    engine: StoredEngine | None
    reasons: tuple[str, ...] = ()
    options: BuildOptions = BuildOptions()


class StageBuild(NamedTuple):
    """The engine of a stage, and why it was built; no reasons if it was current."""

    engine: StoredEngine
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        record = self.engine.record
        return {
            "stage": record.fingerprint.parts["stage"],
            "built": bool(self.reasons),
            "reasons": list(self.reasons),
            "folder": str(self.engine.folder),
            "size_bytes": record.engine.size_bytes,
            "build_seconds": record.build_seconds,
            "computes_in": record.computes_in,
        }


class BuildReport(NamedTuple):
    """The report of ``rsrefseg build``; ``out`` is the folder that the engines were copied to, if one was named."""

    bundle: str
    platform: str
    stages: dict[Stage, StageBuild]
    out: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        stages = [build.to_dict() for build in self.stages.values()]
        return {"bundle": self.bundle, "platform": self.platform, "out": self.out, "stages": stages}

    def render(self) -> Any:
        """Return a table for the terminal."""
        from ..system.tables import Table

        columns = ("stage", "", "MiB", "s", "computes in")
        where = f", in {self.out}" if self.out else ""
        table = Table(f"{self.bundle} for {self.platform}{where}", columns, words=2, verdict=True)
        for stage, (engine, reasons) in self.stages.items():
            did, record = f"built: {'; '.join(reasons)}" if reasons else "current", engine.record
            size, seconds = f"{record.engine.size_bytes / 2**20:.1f}", f"{record.build_seconds:.1f}"
            table.add(stage, did, size, seconds, record.computes_in)
        return table.to_rich()


def parse_stages(text: str | None) -> tuple[Stage, ...]:
    """Parse a comma-separated list of stages; without a list, return all stages.

    Raises:
        BadInputError: a stage is unknown.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if unknown := [name for name in names if name not in list(Stage)]:
        raise BadInputError(f"unknown stage '{unknown[0]}': known are {', '.join(Stage)}")
    return tuple(stage for stage in Stage if not names or stage in names)


def build_bundle(
    path: Path | None,
    stages: str | None = None,
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    force: bool = False,
) -> BuildReport:
    """Build the missing and stale engines of a bundle.

    Args:
        path: folder of the bundle; by default ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        stages: comma-separated stages; by default all.
        workspace_mib: see ``BuildOptions``; by default that of the previous engine.
        optimization_level: see ``BuildOptions``; by default that of the previous engine.
        force: build current engines again as well.

    Raises:
        BadInputError: a stage is unknown, or an option is out of range.
        BundleError: the bundle is incomplete, or TensorRT cannot parse a graph.
        MissingPartError: TensorRT, CUDA, a GPU or a cache folder is missing.
        RSRefSegError: TensorRT cannot build an engine, or the engine cannot be written.
    """
    chosen = parse_stages(stages)
    given = {"workspace_mib": workspace_mib, "optimization_level": optimization_level}
    requested = {name: value for name, value in given.items() if value is not None}
    BuildOptions(**requested)
    bundle = Bundle.open(path)
    library = open_tensorrt()
    compiler = Compiler(library, gpu_platform(library, Cuda().gpu))
    built = ensure_engines(compiler, bundle, chosen, requested, force)
    return BuildReport(str(bundle.root), str(compiler.platform), built)


def find_engine(bundle: Bundle, stage: Stage, platform: Platform, requested: dict[str, int] | None = None) -> Found:
    """Find the newest engine of a stage that was built from this graph for this platform.

    Args:
        bundle: the bundle.
        stage: the stage.
        platform: platform of this machine.
        requested: options that the engine must have; by default any.
    """
    stale: list[Found] = []
    for stored in stored_engines():
        found = stored.record.fingerprint
        wanted = Fingerprint.of(bundle, stage, platform, replace(found.options, **(requested or {})))
        if found == wanted:
            return Found(stored, options=found.options)
        if stored.record.precedes(wanted, bundle):
            stale.append(Found(None, tuple(found.differences(wanted)), found.options))
    return min(stale, key=lambda one: len(one.reasons), default=Found(None, (_NO_ENGINE,)))


def ensure_engines(
    compiler: Compiler,
    bundle: Bundle,
    stages: Sequence[Stage],
    requested: dict[str, int] | None = None,
    force: bool = False,
) -> dict[Stage, StageBuild]:
    """Build missing and stale engines, and report why; current engines stay unchanged.

    Raises:
        RSRefSegError: see ``build_bundle``. Engines that were built before the error stay.
    """
    done = {}
    if note := bundle.manifest.note_for("tensorrt"):
        ProgressLine("building").say(note)
    with _alone(compiler.platform, ProgressLine("building").say):
        for stage in stages:
            found = find_engine(bundle, stage, compiler.platform, requested)
            engine, reasons = found.engine, found.reasons
            if engine is not None and force:
                engine, reasons = None, ("requested with --force",)
            if engine is not None:
                try:
                    engine.read()
                except BundleError as error:
                    engine, reasons = None, (str(error).partition(": ")[0],)
            if engine is None:
                engine = _build(compiler, bundle, stage, replace(found.options, **(requested or {})), reasons)
            done[stage] = StageBuild(engine, reasons)
    return done


def _build(
    compiler: Compiler, bundle: Bundle, stage: Stage, options: BuildOptions, reasons: tuple[str, ...]
) -> StoredEngine:
    with ProgressLine(f"building {stage}") as progress:
        progress.say(f"building {stage}: {'; '.join(reasons)}")
        start = time.perf_counter()
        built = compiler.build(bundle, stage, options, progress)
        seconds = time.perf_counter() - start
        progress.say(f"built {stage} in {seconds:.1f} s")
    record = EngineRecord(
        fingerprint=Fingerprint.of(bundle, stage, compiler.platform, options),
        bundle=bundle_path(bundle),
        engine=FileRecord(f"{stage}.engine", hashlib.sha256(built.data).hexdigest(), len(built.data)),
        computes_in=built.computes_in,
        activation_bytes=built.activation_bytes,
        built_at=datetime.now(timezone.utc).isoformat(timespec="microseconds"),  # noqa: UP017 - Python 3.10
        build_seconds=round(seconds, 3),
    )
    stored = store_engine(record, built.data, built.layers)
    for other in stored_engines():  # engines are large, so superseded ones are removed
        before = other.record
        if other.folder != stored.folder and before.precedes(record.fingerprint, bundle) and before.same_gpu(record):
            shutil.rmtree(other.folder, ignore_errors=True)
    return stored


@contextlib.contextmanager
def _alone(platform: Platform, say: Callable[[str], None]) -> Iterator[None]:
    """Allow one build for a platform at a time: parallel builds would distort each other's timings."""
    import fcntl

    path = engines_folder() / f".{platform.file_name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        hint = "set XDG_CACHE_HOME to a folder that can be written"
        raise MissingPartError(f"cannot write '{path.parent}' ({error.strerror or error}): {hint}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build for this GPU is running: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            say(f"the file system of '{path.parent}' has no locks: run no other build meanwhile")
        yield
    finally:
        os.close(descriptor)
