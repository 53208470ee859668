"""Engines of TensorRT-RTX for named GPU classes, built on any machine: a folder with one record.

The record names everything the engines depend on. Engine files are native code: a folder is used only if its user names
it, and only if its record fits the bundle and its files fit the record.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..bundle.manifest import FileRecord, StageRecord
from ..errors import BadInputError, BundleError, MissingPartError
from ..records import Record
from ..system.files import atomic_directory, atomic_write_json
from ..system.progress import ProgressLine
from .rtx import NAME, compile_stage, open_rtx, parse_stage

RECORD_NAME = "record.json"
_OPTIONS = {"strongly_typed": True, "tf32": False}


class StageEngine(Record, frozen=True):
    """The engine of one stage.

    Attributes:
        graphs: SHA-256 of the graph and its weights, by file name.
        contract_sha256: digest of the contract, whose bounds are the optimisation profile.
        precision: precision of the graph.
        attentions: number of attentions in the graph.
        fused: number of them that are one kernel.
        engine: the file.
    """

    graphs: dict[str, str]
    contract_sha256: str
    precision: str
    attentions: int
    fused: int
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


class PortableBuild(Record, frozen=True):
    """The report of ``rsrefseg build --runtime tensorrt-rtx``: the folder, its record, and seconds by stage."""

    out: str
    record: EnginesRecord
    seconds: dict[Stage, float]

    def render(self) -> Any:
        """Return a table for the terminal."""
        from ..system.tables import Table

        record = self.record
        title = f"{self.out}: {record.runtime} {record.version}, for {', '.join(record.gpus)}"
        table = Table(title, ("stage", "precision", "attentions", "fused", "MiB", "s"), words=2)
        for stage, one in record.stages.items():
            size = f"{one.engine.size_bytes / 2**20:.1f}"
            table.add(stage, one.precision, str(one.attentions), str(one.fused), size, f"{self.seconds[stage]:.1f}")
        return table.to_rich()


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
            raise MissingPartError(f"'{self.folder}' is of {NAME} {record.version}, this is {version}: {again}")
        if gpu not in record.gpus:
            raise MissingPartError(
                f"'{self.folder}' is for {', '.join(record.gpus)}, this GPU is {gpu}: {_build(self.folder)}"
            )

    def read(self, stage: Stage) -> bytes:
        """Return the bytes of an engine, after verifying their digest.

        Raises:
            BundleError: the file is missing or changed; the message names it.
        """
        record = self.record.stages[stage].engine
        path = self.folder / record.name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BundleError(f"cannot read '{path}' ({error.strerror or error}): {_build(self.folder)}") from error
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise BundleError(f"'{path}' was changed after it was built: {_build(self.folder)}")
        return data


def build_portable(bundle: Bundle, gpus: tuple[str, ...], out: Path) -> PortableBuild:
    """Build the engines of all stages for named GPU classes, without a GPU.

    Args:
        bundle: the bundle.
        gpus: compute capabilities such as ``sm86``; every engine serves them all.
        out: folder to make; an older folder of engines is replaced.

    Raises:
        MissingPartError: TensorRT-RTX is not installed.
        RSRefSegError: a graph does not parse or build, or the folder cannot be written.
    """
    rtx = open_rtx()
    stages, seconds = {}, {}
    with atomic_directory(out, replaces=RECORD_NAME) as folder:
        for stage in Stage:
            with ProgressLine(f"building {stage}") as progress:
                progress.say(f"building {stage} for {', '.join(gpus)}")
                parsed = parse_stage(rtx, bundle, stage)
                wanted = bundle.manifest.stages[stage]
                built = compile_stage(rtx, parsed, wanted.contract, gpus)
            file = FileRecord(f"{stage}.engine", hashlib.sha256(built.engine).hexdigest(), len(built.engine))
            (folder / file.name).write_bytes(built.engine)
            fused = sum(attention.node in built.fused for attention in parsed.attentions)
            stages[stage] = StageEngine(
                _graphs(wanted), _contract_digest(wanted), wanted.precision, len(parsed.attentions), fused, file
            )
            seconds[stage] = round(built.seconds, 3)
        record = EnginesRecord(NAME, rtx.version, gpus, _OPTIONS, stages)
        atomic_write_json(folder / RECORD_NAME, record.to_dict())
    return PortableBuild(str(out), record, seconds)


def _graphs(record: StageRecord) -> dict[str, str]:
    return {file.name: file.sha256 for file in (record.graph, *record.data)}


def _contract_digest(record: StageRecord) -> str:
    plain = msgspec.to_builtins(record.contract)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _build(folder: Path) -> str:
    return f"build it with `rsrefseg build --runtime tensorrt-rtx --gpus ... --out {folder}`"
