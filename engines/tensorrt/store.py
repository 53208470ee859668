"""The engines of a bundle for one platform, in a folder with a record: current ones are used, others built again.

An engine file is native code: loading it can run it. Engines are therefore never part of a bundle. They lie in the
user's cache folder, or in a folder that the user names. An engine is loaded only if its record fits bundle and
platform, and its bytes match the digest in the record.
"""

import fcntl
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..bundle.manifest import FileRecord
from ..errors import BadInputError, BundleError, MissingPartError
from ..system.files import atomic_directory, atomic_write_bytes, cache_folder
from ..system.progress import ProgressLine
from .build import BuildOptions, Compiler
from .library import RTX, Platform, open_rtx

RECORD_NAME = "record.json"
_DIGEST_CHARACTERS = 16
# Increase it with any change to the build that is not an option, such as a builder flag.
_RECIPE = "1"
_VERSIONS = ("TensorRT", RTX, "driver")  # of a platform; engines for others are replaced


class EngineRecord(Struct, frozen=True):
    """The record of a built engine.

    Attributes:
        parts: everything the engine depends on, as named texts: graph, contract, precision, platform, options.
        options: the options of its build.
        engine: file of the engine.
        computes_in: see ``BuiltEngine``.
        activation_bytes: GPU memory one run needs besides weights, inputs and outputs; 0 if not known before loading.
        build_seconds: duration of the build.
    """

    parts: dict[str, str]
    options: BuildOptions
    engine: FileRecord
    computes_in: str
    activation_bytes: int
    build_seconds: float


class StoredEngine(NamedTuple):
    """An engine on disk: its folder, its record, and the fix if its file is missing or changed."""

    folder: Path
    record: EngineRecord
    hint: str = "build it again with `rsrefseg build`"

    def read(self) -> bytes:
        """Return the bytes of the engine, after verifying their digest.

        Raises:
            BundleError: the file is missing or changed; the message names it.
        """
        path = self.folder / self.record.engine.name
        try:
            data = path.read_bytes()
        except OSError as error:
            problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            raise BundleError(f"'{path}' {problem}: {self.hint}") from error
        if hashlib.sha256(data).hexdigest() != self.record.engine.sha256:
            raise BundleError(f"'{path}' was changed after it was built: {self.hint}")
        return data


class StageBuild(NamedTuple):
    """The engine of a stage, if there is one, and why it is or was not current; no reasons if it is."""

    engine: StoredEngine | None
    reasons: tuple[str, ...]


class BuildReport(NamedTuple):
    """The report of ``rsrefseg build``; ``out`` is the folder that the engines were copied to, if one was named."""

    bundle: str
    platform: str
    stages: dict[Stage, StageBuild]
    out: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        stages = []
        for stage, (engine, reasons) in self.stages.items():
            assert engine is not None
            stages.append(
                {
                    "stage": str(stage),
                    "built": bool(reasons),
                    "reasons": list(reasons),
                    "folder": str(engine.folder),
                    "size_bytes": engine.record.engine.size_bytes,
                    "build_seconds": engine.record.build_seconds,
                    "computes_in": engine.record.computes_in,
                }
            )
        return self._asdict() | {"stages": stages}

    def render(self) -> Any:
        """Return a table for the terminal."""
        from ..system.tables import Table

        where = f", in {self.out}" if self.out else ""
        columns = ("stage", "", "MiB", "s", "computes in")
        table = Table(f"{self.bundle} for {self.platform}{where}", columns, words=2, verdict=True)
        for one in self.to_dict()["stages"]:
            did = f"built: {'; '.join(one['reasons'])}" if one["built"] else "current"
            size, seconds = f"{one['size_bytes'] / 2**20:.1f}", f"{one['build_seconds']:.1f}"
            table.add(one["stage"], did, size, seconds, one["computes_in"])
        return table.to_rich()


def find_engine(bundle: Bundle, stage: Stage, platform: Platform, requested: Mapping[str, int]) -> StageBuild:
    """Find the engine of a stage in the user's cache folder, with the reasons why it is not current.

    Args:
        bundle: the bundle.
        stage: the stage.
        platform: platform of this machine.
        requested: options that the engine must have; those that are not named may have any value.
    """
    folder = _folder(bundle, platform)
    if (record := _records(folder).get(stage)) is None:
        return StageBuild(None, ("it has no engine yet",))
    path = folder / record.engine.name
    if not path.is_file() or path.stat().st_size != record.engine.size_bytes:
        return StageBuild(StoredEngine(folder, record), ("its engine file is missing or incomplete",))
    wanted = _parts(bundle, stage, platform, replace(record.options, **requested))
    return StageBuild(StoredEngine(folder, record), _differences(record.parts, wanted))


def ensure_engines(
    compiler: Compiler, bundle: Bundle, stages: Sequence[Stage], requested: Mapping[str, int], force: bool = False
) -> BuildReport:
    """Build missing and stale engines in the user's cache folder, and report why; current engines stay unchanged.

    Args:
        compiler: builds the engines.
        bundle: the bundle.
        stages: the stages to build.
        requested: fields of ``BuildOptions``; by default those of the previous engine.
        force: build current engines again as well.

    Raises:
        MissingPartError: there is no cache folder that can be written.
        RSRefSegError: TensorRT cannot parse a graph or build an engine. Engines that were built before the error stay.
    """
    folder, done = _folder(bundle, compiler.platform), {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "set XDG_CACHE_HOME to a folder that can be written"
        raise MissingPartError(f"cannot write '{folder}' ({error.strerror or error}): {hint}") from error
    if note := bundle.manifest.note_for("tensorrt"):
        ProgressLine("building").say(note)
    for stage in stages:
        engine, reasons = find_engine(bundle, stage, compiler.platform, requested)
        if engine is not None and not reasons:
            try:
                engine.read()
                reasons = ("requested with --force",) if force else ()
            except BundleError as error:
                reasons = (str(error).partition(": ")[0],)
        if reasons:
            options = replace(engine.record.options if engine else BuildOptions(), **requested)
            engine = _build(compiler, bundle, stage, options, reasons)
        done[stage] = StageBuild(engine, reasons)
    return BuildReport(str(bundle.root), str(compiler.platform), done)


def build_portable(bundle: Bundle, gpus: tuple[str, ...], out: Path, force: bool = False) -> BuildReport:
    """Build the engines of all stages for named GPU classes with TensorRT-RTX, without a GPU.

    Engines that this user built before are copied, so that the same build gives the same bytes.

    Args:
        bundle: the bundle.
        gpus: compute capabilities such as ``sm86``; every engine serves them all.
        out: folder to make; an older folder of engines is replaced.
        force: build current engines again as well.

    Raises:
        MissingPartError: TensorRT-RTX is not installed.
        RSRefSegError: a graph does not parse or build, or the folder cannot be written.
    """
    with atomic_directory(out, replaces=RECORD_NAME) as folder:
        report = ensure_engines(Compiler.for_gpus(open_rtx(), gpus), bundle, tuple(Stage), {}, force)
        engines = {stage: one.engine for stage, one in report.stages.items() if one.engine is not None}
        records = {}
        for stage, engine in engines.items():
            file = replace(engine.record.engine, name=f"{stage}.engine")
            (folder / file.name).write_bytes(engine.read())
            records[stage] = replace(engine.record, engine=file, build_seconds=0.0)
        _write_records(folder, records)
    return report._replace(out=str(out))


def open_portable(folder: Path, bundle: Bundle, version: str, gpu: str) -> dict[Stage, StoredEngine]:
    """Return the engines in a folder, after checking that they were built from a bundle and run on this machine.

    Args:
        folder: the folder.
        bundle: the bundle to run.
        version: version of TensorRT-RTX here.
        gpu: compute capability of the GPU, such as ``sm86``.

    Raises:
        MissingPartError: the folder holds no record, or its engines are for another version or other GPUs.
        BundleError: its engines were built from other graphs; the message names the stage.
    """
    hint, records = f"build it with `rsrefseg build --runtime tensorrt-rtx --gpus ... --out {folder}`", _records(folder)
    for stage in Stage:
        if stage not in records:
            raise MissingPartError(f"'{folder}' holds no engine of '{stage}' (or no readable {RECORD_NAME}): {hint}")
        found, options = records[stage].parts, records[stage].options
        platform = Platform("", {name: found.get(name, "") for name in (RTX, "GPUs")})
        if different := _differences(found, _parts(bundle, stage, platform, options)):
            problem = f"is of another bundle than '{bundle.root}' ('{stage}': {different[0]})"
            raise BundleError(f"'{folder}' {problem}: {hint}")
        if found[RTX] != version:
            raise MissingPartError(f"'{folder}' is of {RTX} {found[RTX]}, this is {version}: install that, or {hint}")
        if gpu not in found["GPUs"].split(", "):
            raise MissingPartError(f"'{folder}' is for {found['GPUs']}, this GPU is {gpu}: {hint}")
    return {stage: StoredEngine(folder, record, hint) for stage, record in records.items()}


def _build(
    compiler: Compiler, bundle: Bundle, stage: Stage, options: BuildOptions, reasons: tuple[str, ...]
) -> StoredEngine:
    with ProgressLine(f"building {stage}") as progress:
        progress.say(f"building {stage}: {'; '.join(reasons)}")
        start = time.perf_counter()
        built = compiler.build(bundle.graph_path(stage), bundle.manifest.stages[stage], options, progress)
        seconds = round(time.perf_counter() - start, 3)
        progress.say(f"built {stage} in {seconds:.1f} s")
    folder, parts = _folder(bundle, compiler.platform), _parts(bundle, stage, compiler.platform, options)
    digest = hashlib.sha256(built.data).hexdigest()
    # The digest in the name keeps an engine that is in use valid until the record names the new one.
    file = FileRecord(f"{stage}-{digest[:_DIGEST_CHARACTERS]}.engine", digest, len(built.data))
    record = EngineRecord(parts, options, file, built.computes_in, built.activation_bytes, seconds)
    atomic_write_bytes(folder / file.name, built.data)
    if built.layers:
        atomic_write_bytes(folder / f"{stage}.layers.json", built.layers.encode())
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another build may add a stage of its own
        before = _records(folder)
        _write_records(folder, before | {stage: record})
    if stage in before and before[stage].engine.name != file.name:
        (folder / before[stage].engine.name).unlink(missing_ok=True)
    return StoredEngine(folder, record)


def _folder(bundle: Bundle, platform: Platform) -> Path:
    """Return the folder in the user's cache folder for the engines of a bundle on a GPU."""
    gpu = [f"{name} {text}" for name, text in platform.parts.items() if name not in _VERSIONS]
    return cache_folder() / "engines" / _digest([str(bundle.root.resolve()), *gpu])[:32]


def _parts(bundle: Bundle, stage: Stage, platform: Platform, options: BuildOptions) -> dict[str, str]:
    """Return everything that an engine depends on."""
    record = bundle.manifest.stages[stage]
    fixed = {"precision": record.precision, "contract": _digest(record.contract), "build recipe": _RECIPE}
    graphs = {f"graph file {file.name}": file.sha256 for file in (record.graph, *record.data)}
    chosen = {f"option {name}": str(value) for name, value in asdict(options).items()}
    return fixed | graphs | platform.parts | chosen


def _differences(mine: dict[str, str], theirs: dict[str, str]) -> tuple[str, ...]:
    """Return the differences of two engines, one text each, e.g. ``driver CUDA 12.4 -> CUDA 13.0``."""

    def short(text: str) -> str:
        return f"{text[:12]}..." if len(text) == 64 else text  # a digest

    changed = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
    return tuple(f"{name} {short(mine.get(name, 'none'))} -> {short(theirs.get(name, 'none'))}" for name in changed)


def _records(folder: Path) -> dict[Stage, EngineRecord]:
    """Return the records of a folder; none if they are missing or unreadable."""
    try:
        return msgspec.json.decode((folder / RECORD_NAME).read_bytes(), type=dict[Stage, EngineRecord])
    except (OSError, ValueError, RecursionError, BadInputError):
        return {}


def _write_records(folder: Path, records: dict[Stage, EngineRecord]) -> None:
    atomic_write_bytes(folder / RECORD_NAME, msgspec.json.format(msgspec.json.encode(records), indent=2))


def _digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()
