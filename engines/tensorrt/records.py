"""Engines on disk: ``engines/<fingerprint>/`` in the user's cache folder, each with a record of its origin.

An engine file is native code: loading it can run it. Engines are therefore never part of a bundle. An engine is loaded
only if the fingerprint of its record is current and its bytes match the digest in the record.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..bundle.manifest import FileRecord
from ..errors import BadInputError, BundleError
from ..system.files import atomic_directory, cache_folder, clear_leftovers
from .library import Platform

RECORD_NAME = "record.json"
DEFAULT_WORKSPACE_MIB, DEFAULT_OPTIMIZATION_LEVEL = 4096, 3
# Increase it with any change to the build that is not an option, such as a builder flag.
_RECIPE = "1"
_GPU_PARTS = ("GPU", "GPUs", "compute capability", "multiprocessors")
_LOG = logging.getLogger(__name__)


class BuildOptions(Struct, frozen=True):
    """The options of a build. Strong typing is always on and TF32 always off.

    Attributes:
        workspace_mib: scratch memory that a layer may use on the GPU, MiB.
        optimization_level: how long TensorRT searches for kernels, 0 (shortest) to 5.

    Raises:
        BadInputError: an option is out of range.
    """

    workspace_mib: int = DEFAULT_WORKSPACE_MIB
    optimization_level: int = DEFAULT_OPTIMIZATION_LEVEL

    def __post_init__(self) -> None:
        if self.workspace_mib < 1:
            raise BadInputError(f"the workspace must be at least 1 MiB, got {self.workspace_mib}")
        if not 0 <= self.optimization_level <= 5:
            raise BadInputError(f"the optimisation level must be 0 to 5, got {self.optimization_level}")


class Fingerprint(Struct, frozen=True):
    """Everything an engine depends on: stage, contract, graph files, platform (as named texts) and build options."""

    parts: dict[str, str]
    options: BuildOptions

    @classmethod
    def of(cls, bundle: Bundle, stage: Stage, platform: Platform, options: BuildOptions) -> "Fingerprint":
        """Return the fingerprint that a current engine has."""
        record = bundle.manifest.stages[stage]
        graphs = {f"graph file {file.name}": file.sha256 for file in (record.graph, *record.data)}
        contract = _digest(record.contract)
        fixed = {"stage": str(stage), "precision": record.precision, "contract": contract, "build recipe": _RECIPE}
        return cls({**fixed, **graphs, **platform.parts}, options)

    @property
    def digest(self) -> str:
        """32 hex digits, the name of the engine's folder."""
        return _digest(self)[:32]

    def differences(self, other: "Fingerprint") -> list[str]:
        """Return the differences to ``other``, one text each, e.g. ``driver CUDA 12.4 -> CUDA 13.0``."""
        mine, theirs = self._texts(), other._texts()
        changed = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
        return [f"{name} {_short(mine.get(name))} -> {_short(theirs.get(name))}" for name in changed]

    def _texts(self) -> dict[str, str]:
        return self.parts | {
            "option workspace MiB": str(self.options.workspace_mib),
            "option optimisation level": str(self.options.optimization_level),
        }


class EngineRecord(Struct, frozen=True):
    """The record of a built engine.

    Attributes:
        fingerprint: everything the engine depends on.
        bundle: path of the bundle it was built for.
        engine: file of the engine.
        computes_in: see ``BuiltEngine``.
        activation_bytes: GPU memory one run needs besides weights, inputs and outputs.
        built_at: time of the build, UTC, ISO 8601.
        build_seconds: duration of the build.
    """

    fingerprint: Fingerprint
    bundle: str
    engine: FileRecord
    computes_in: str
    activation_bytes: int
    built_at: str
    build_seconds: float

    def precedes(self, wanted: Fingerprint, bundle: Bundle) -> bool:
        """Return whether this is an earlier engine of the same stage, for the same bundle or the same graph files."""
        mine, theirs = self.fingerprint.parts, wanted.parts
        if mine.get("stage") != theirs["stage"] or ("GPUs" in mine) is not ("GPUs" in theirs):
            return False
        graphs = [{name: text for name, text in parts.items() if "graph file" in name} for parts in (mine, theirs)]
        return self.bundle == bundle_path(bundle) or graphs[0] == graphs[1]

    def same_gpu(self, other: "EngineRecord") -> bool:
        """Return whether both were built for the same model of GPU."""
        mine, theirs = self.fingerprint.parts, other.fingerprint.parts
        return all(mine.get(name) == theirs.get(name) for name in _GPU_PARTS)


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
        except FileNotFoundError:
            raise BundleError(f"'{path}' is missing: {self.hint}") from None
        except OSError as error:
            raise BundleError(f"cannot read '{path}': {error.strerror or error}") from error
        if hashlib.sha256(data).hexdigest() != self.record.engine.sha256:
            raise BundleError(f"'{path}' was changed after it was built: {self.hint}")
        return data


def bundle_path(bundle: Bundle) -> str:
    """Return the absolute path of a bundle, as stored in records."""
    return str(bundle.root.resolve())


def engines_folder() -> Path:
    """Return the folder of this user's engines."""
    return cache_folder() / "engines"


def stored_engines() -> list[StoredEngine]:
    """Return all engines of this user, newest first. Engines with unreadable records are skipped.

    Raises:
        BundleError: the folder cannot be read.
    """
    root, found = engines_folder(), []
    try:
        clear_leftovers(root)
        folders = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BundleError(f"cannot read '{root}': {error.strerror or error}") from error
    for folder in folders:
        try:
            record = msgspec.json.decode((folder / RECORD_NAME).read_bytes(), type=EngineRecord)
            found.append(StoredEngine(folder, record))
        except (OSError, ValueError, RecursionError, BadInputError) as error:
            _LOG.debug("'%s' is skipped: %s", folder, error)
    return sorted(found, key=lambda stored: stored.record.built_at, reverse=True)


def store_engine(record: EngineRecord, engine: bytes, layers: str) -> StoredEngine:
    """Write an engine and its record atomically; replace an engine of the same fingerprint.

    Args:
        record: record of the engine.
        engine: the serialised engine.
        layers: JSON of the inspector, stored for reference; empty if there was no GPU to inspect it with.

    Raises:
        RSRefSegError: the disk is full or the cache folder cannot be written.
    """
    target = engines_folder() / record.fingerprint.digest
    with atomic_directory(target) as folder:
        (folder / record.engine.name).write_bytes(engine)
        if layers:
            (folder / "layers.json").write_text(layers, encoding="utf-8")
        (folder / RECORD_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2))
    return StoredEngine(target, record)


def _digest(record: Struct) -> str:
    plain = msgspec.to_builtins(record)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _short(text: str | None) -> str:
    if text is None:
        return "none"
    is_digest = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return f"{text[:12]}..." if is_digest else text
