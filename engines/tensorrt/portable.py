"""Engines of TensorRT-RTX for named GPU classes, built on any machine: a folder with one record.

The record names everything the engines depend on. Engine files are native code: a folder is used only if its user names
it, and only if its record fits the bundle and its files fit the record.
"""

import hashlib
import json
from pathlib import Path

import msgspec

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..bundle.manifest import FileRecord, StageRecord
from ..errors import BadInputError, BundleError, MissingPartError
from ..records import Record
from ..system.files import atomic_directory, atomic_write_json
from .build import Compiler
from .library import RTX, open_rtx
from .records import EngineFile
from .store import BuildReport, ensure_engines

RECORD_NAME = "record.json"
_OPTIONS = {"strongly_typed": True, "tf32": False}


class StageEngine(Record, frozen=True):
    """The engine of one stage.

    Attributes:
        graphs: SHA-256 of the graph and its weights, by file name.
        contract_sha256: digest of the contract, whose bounds are the optimisation profile.
        computes_in: precision of the graph, and its fused attentions.
        engine: the file.
    """

    graphs: dict[str, str]
    contract_sha256: str
    computes_in: str
    engine: FileRecord


class EnginesRecord(Record, frozen=True):
    """``record.json`` of a folder of engines. It has no times, so that the same build gives the same bytes.

    Attributes:
        runtime: ``TensorRT-RTX``.
        version: its version, which must be the same where the engines run.
        gpus: compute capabilities such as ``sm86``.
        options: options of the build.
        stages: the engines.
    """

    runtime: str
    version: str
    gpus: tuple[str, ...]
    options: dict[str, bool]
    stages: dict[Stage, StageEngine]


class PortableEngines:
    """A folder of engines that fits a bundle.

    Args:
        folder: the folder.
        bundle: the bundle to run.

    Raises:
        MissingPartError: the folder holds no record.
        BundleError: the record is unreadable, or its engines were built from other graphs; the message names the stage.
    """

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.folder = folder
        path = folder / RECORD_NAME
        try:
            self.record = EnginesRecord.from_dict(msgspec.json.decode(path.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            raise MissingPartError(f"'{folder}' holds no engines (no {RECORD_NAME}): {_build(folder)}") from None
        except (OSError, ValueError, RecursionError, BadInputError) as error:
            raise BundleError(f"'{path}' cannot be read ({error}): {_build(folder)}") from error
        for stage in Stage:
            found, wanted = self.record.stages.get(stage), bundle.manifest.stages[stage]
            if found is None:
                raise BundleError(f"'{path}' has no engine of '{stage}': {_build(folder)}")
            if (found.graphs, found.contract_sha256) != (_graphs(wanted), _contract_digest(wanted)):
                raise BundleError(
                    f"'{path}' is of another bundle: its '{stage}' was not built from '{bundle.root}': {_build(folder)}"
                )

    def require(self, version: str, gpu: str) -> None:
        """Check that the engines run on this machine.

        Args:
            version: version of TensorRT-RTX here.
            gpu: compute capability of the GPU, such as ``sm86``.

        Raises:
            MissingPartError: they were built with another version, or for other GPUs.
        """
        record = self.record
        if record.version != version:
            again = f"install that version, or {_build(self.folder)}"
            raise MissingPartError(f"'{self.folder}' is of {RTX} {record.version}, this is {version}: {again}")
        if gpu not in record.gpus:
            raise MissingPartError(
                f"'{self.folder}' is for {', '.join(record.gpus)}, this GPU is {gpu}: {_build(self.folder)}"
            )

    def file(self, stage: Stage) -> EngineFile:
        """Return the file of a stage's engine."""
        one = self.record.stages[stage]
        return EngineFile(self.folder / one.engine.name, one.engine.sha256, one.computes_in, hint=_build(self.folder))


def build_portable(bundle: Bundle, gpus: tuple[str, ...], out: Path, force: bool = False) -> BuildReport:
    """Build the engines of all stages for named GPU classes, without a GPU.

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
    compiler = Compiler.for_gpus(open_rtx(), gpus)
    with atomic_directory(out, replaces=RECORD_NAME) as folder:
        built = ensure_engines(compiler, bundle, tuple(Stage), force=force)
        stages = {}
        for stage, one in built.items():
            record, wanted = one.engine.record, bundle.manifest.stages[stage]
            (folder / record.engine.name).write_bytes(one.engine.file.read())
            stages[stage] = StageEngine(_graphs(wanted), _contract_digest(wanted), record.computes_in, record.engine)
        header = EnginesRecord(RTX, compiler.library.version, gpus, _OPTIONS, stages)
        atomic_write_json(folder / RECORD_NAME, header.to_dict())
    return BuildReport(str(bundle.root), str(compiler.platform), built, str(out))


def _graphs(record: StageRecord) -> dict[str, str]:
    return {file.name: file.sha256 for file in (record.graph, *record.data)}


def _contract_digest(record: StageRecord) -> str:
    plain = msgspec.to_builtins(record.contract)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _build(folder: Path) -> str:
    return f"build it with `rsrefseg build --runtime tensorrt-rtx --gpus ... --out {folder}`"
