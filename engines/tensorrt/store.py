"""Which engine of a bundle may be used here and now, and the building of those that are missing or stale."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..errors import BadInputError, BundleError, MissingPartError
from ..system.files import unwritable
from ..system.progress import ProgressLine
from .build import BuildOptions, build_engine
from .library import Library, Platform
from .records import (
    ENGINES_FOLDER,
    Fingerprint,
    StoredEngine,
    clear_leftovers,
    engine_name,
    store_engine,
    stored_engines,
)
from .secret import machine_secret

_NO_ENGINE = "it has no engine yet"
_MAX_OPSET = 20  # of TensorRT 10.3, and with it of the table that exported graphs are held against
_LOCK_NAME = ".build.lock"
_GPU_PARTS = ("GPU", "compute capability", "multiprocessors")


@dataclass(frozen=True, slots=True)
class Found:
    """What a bundle has for a stage.

    Attributes:
        engine: one that may be used now; ``None`` where there is none.
        reasons: why there is none, one text each.
        options: those of the engine, or of the stale one nearest to it; ``None`` where there was never one.
    """

    engine: StoredEngine | None
    reasons: tuple[str, ...] = ()
    options: BuildOptions | None = None


@dataclass(frozen=True, slots=True)
class StageBuild:
    """What ``build`` did for a stage.

    Attributes:
        stage: which.
        reasons: why it was built; empty where the engine that was there is current.
        folder: of the engine.
        size_bytes: of the engine.
        build_seconds: how long building took, then or now.
        precision: what the inspector showed of its heavy layers.
    """

    stage: Stage
    reasons: tuple[str, ...]
    folder: Path
    size_bytes: int
    build_seconds: float
    precision: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "stage": str(self.stage),
            "built": bool(self.reasons),
            "reasons": list(self.reasons),
            "folder": str(self.folder),
            "size_bytes": self.size_bytes,
            "build_seconds": self.build_seconds,
            "heavy_layers": self.precision,
        }


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What ``rsrefseg build`` did."""

    bundle: str
    platform: str
    stages: tuple[StageBuild, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "bundle": self.bundle,
            "platform": self.platform,
            "stages": [stage.as_dict() for stage in self.stages],
        }

    def render(self) -> Any:
        """A table for a person."""
        from rich.table import Table

        table = Table(title=f"{self.bundle} for {self.platform}", title_justify="left")
        for column, justify in {"stage": "left", "": "left", "MiB": "right", "s": "right"}.items():
            table.add_column(column, justify="right" if justify == "right" else "left")
        table.add_column("layers that multiply")
        for row in self.stages:
            did = f"built: {'; '.join(row.reasons)}" if row.reasons else "current"
            size = f"{row.size_bytes / 2**20:.1f}"
            table.add_row(str(row.stage), did, size, f"{row.build_seconds:.1f}", row.precision)
        return table


def parse_stages(text: str | None) -> tuple[Stage, ...]:
    """The stages of a comma-separated list; all of them where there is none.

    Raises:
        BadInputError: one is unknown.
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
    """Build the engines of a bundle that are missing or stale.

    Args:
        path: the bundle; default is ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        stages: comma-separated; all by default.
        workspace_mib: as for ``BuildOptions``; default is what the engine before was built with.
        optimization_level: the same.
        force: build anew what is current as well.

    Raises:
        BundleError: the bundle is not whole, or TensorRT cannot parse a graph.
        MissingPartError: TensorRT, CUDA or a GPU is missing.
        RSRefSegError: TensorRT cannot build an engine, or it cannot be written.
    """
    chosen = parse_stages(stages)
    given = {"workspace_mib": workspace_mib, "optimization_level": optimization_level}
    asked = {name: value for name, value in given.items() if value is not None}
    BuildOptions(**asked)
    bundle = Bundle.open(path)
    library = Library()
    built = ensure_engines(library, bundle, chosen, asked, force)
    return BuildReport(str(bundle.root), str(library.platform), tuple(built))


def find_engine(bundle: Bundle, stage: Stage, platform: Platform, asked: dict[str, int] | None = None) -> Found:
    """The engine of a stage that was built here, from this graph, for this platform; the newest of several.

    Args:
        bundle: where to look.
        stage: which.
        platform: this machine's.
        asked: options it must have; any will do where there are none.

    Raises:
        MissingPartError: the stage's graph is of an opset that TensorRT does not read.
    """
    if (opset := bundle.manifest.stages[stage].opset) > _MAX_OPSET:
        raise MissingPartError(
            f"TensorRT does not read opset {opset} of '{stage}': export the bundle again without --opset {opset}"
        )
    stale: list[StoredEngine] = []
    current: list[StoredEngine] = []
    refused: list[str] = []
    for stored in stored_engines(bundle):
        if not isinstance(stored, StoredEngine):
            if (stored.folder / engine_name(stage)).exists():
                refused.append(f"'{stored.folder}' is not used: {stored.reason}")
        elif stored.record.stage is stage:
            wanted = _wanted(bundle, stage, platform, _options(stored, asked))
            (current if stored.record.fingerprint == wanted else stale).append(stored)
    if current:
        newest = max(current, key=lambda stored: stored.record.built_at)
        return Found(newest, options=_options(newest, None))
    if not stale:
        return Found(None, tuple(refused) or (_NO_ENGINE,))

    def differences(stored: StoredEngine) -> list[str]:
        wanted = _wanted(bundle, stage, platform, _options(stored, asked))
        return stored.record.fingerprint.differences(wanted)

    nearest = min(reversed(stale), key=lambda stored: len(differences(stored)))
    return Found(None, (*differences(nearest), *refused), _options(nearest, None))


def ensure_engines(
    library: Library,
    bundle: Bundle,
    stages: Sequence[Stage],
    asked: dict[str, int] | None = None,
    force: bool = False,
) -> list[StageBuild]:
    """Build the engines that are missing or stale and say why; those that are current stay as they are.

    Raises:
        RSRefSegError: as for ``build_bundle``. Engines that were done before stay.
    """
    done: list[StageBuild] = []
    machine_secret()  # before the long part
    with _alone(bundle, ProgressLine("building").say):
        clear_leftovers(bundle)
        for stage in stages:
            found = find_engine(bundle, stage, library.platform, asked)
            engine, reasons = found.engine, found.reasons
            if engine is not None and force:
                engine, reasons = None, ("asked for with --force",)
            if engine is not None:
                try:
                    engine.read()
                except BundleError as error:
                    engine, reasons = None, (str(error).partition(": ")[0],)
            if engine is None:
                engine = _build(library, bundle, stage, _merged(found.options, asked), reasons)
            else:
                reasons = ()
            done.append(_row(stage, reasons, engine))
    return done


def _build(
    library: Library, bundle: Bundle, stage: Stage, options: BuildOptions, reasons: tuple[str, ...]
) -> StoredEngine:
    with ProgressLine(f"building {stage}") as progress:
        progress.say(f"building {stage}: {'; '.join(reasons)}")
        start = time.perf_counter()
        built = build_engine(library, bundle, stage, options, progress)
        seconds = time.perf_counter() - start
        progress.say(f"built {stage} in {seconds:.1f} s")
    stored = store_engine(
        bundle,
        built.data,
        built.layers,
        {
            "fingerprint": _wanted(bundle, stage, library.platform, options),
            "precision": built.precision,
            "activation_bytes": built.activation_bytes,
            "built_at": datetime.now(timezone.utc).isoformat(timespec="microseconds"),  # noqa: UP017 - Python 3.10
            "build_seconds": round(seconds, 3),
        },
    )
    _remove_superseded(bundle, stored)
    return stored


def _remove_superseded(bundle: Bundle, newest: StoredEngine) -> None:
    """Remove engines of the same stage that this user built before for the same GPU; engines are large."""
    parts = newest.record.fingerprint.parts
    for stored in stored_engines(bundle):
        if not isinstance(stored, StoredEngine) or stored.folder == newest.folder:
            continue
        theirs = stored.record.fingerprint.parts
        if all(theirs.get(name) == parts.get(name) for name in ("stage", *_GPU_PARTS)):
            shutil.rmtree(stored.folder, ignore_errors=True)


def _wanted(bundle: Bundle, stage: Stage, platform: Platform, options: BuildOptions) -> Fingerprint:
    return Fingerprint.of(bundle, stage, platform.parts(), options.parts())


def _options(stored: StoredEngine, asked: dict[str, int] | None) -> BuildOptions:
    """The options of an engine, with those that are asked for in their place."""
    return _merged(BuildOptions.from_parts(stored.record.fingerprint.options), asked)


def _merged(before: BuildOptions | None, asked: dict[str, int] | None) -> BuildOptions:
    kept = {} if before is None else {name: getattr(before, name) for name in BuildOptions.__slots__}
    return BuildOptions(**(kept | (asked or {})))


def _row(stage: Stage, reasons: tuple[str, ...], engine: StoredEngine) -> StageBuild:
    record = engine.record
    size = next(file.size_bytes for file in record.files if file.name == engine_name(stage))
    return StageBuild(stage, reasons, engine.folder, size, record.build_seconds, record.precision)


@contextlib.contextmanager
def _alone(bundle: Bundle, say: Callable[[str], None]) -> Iterator[None]:
    """One build of a bundle at a time: two at once would spoil each other's timings and build everything twice."""
    import fcntl

    folder = bundle.root / ENGINES_FOLDER
    path = folder / _LOCK_NAME
    try:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another build of '{bundle.root}' is at work: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            say(f"'{folder}' lies on a file system without locks: let no other build of it run meanwhile")
        yield
    finally:
        os.close(descriptor)
