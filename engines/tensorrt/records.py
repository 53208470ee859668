"""Engines on disk: ``engines/<fingerprint>/`` of a bundle, each with a record that says what it was built from and for.

An engine file is native code, so that loading one from elsewhere is running it. Three things must hold before one is:

- Its record carries a seal, an HMAC under a secret that lies in this user's cache folder, ``~/.cache/rsrefseg`` (or
  ``$XDG_CACHE_HOME/rsrefseg``), readable by nobody else. "Made on this machine" means: made by somebody who could read
  that secret. It never goes into a bundle, so a bundle that was copied here, its record forged or not, brings engines
  that are built anew.
- The record's fingerprint is the one of now: the digests of the graph's files, TensorRT's version, the GPU, its driver
  and the build options.
- The bytes that are handed to TensorRT have the digest that the record gives.
"""

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..bundle.bundle import Bundle, file_record
from ..bundle.contracts import Stage
from ..bundle.manifest import FileRecord, read_record
from ..errors import BadInputError, BundleError, RSRefSegError
from ..system import files
from ..system.files import atomic_directory, atomic_write_json, unwritable
from .secret import machine_secret

ENGINES_FOLDER = "engines"
RECORD_NAME = "record.json"
_SCHEMA_VERSION = 1
# To be raised with any change of how engines are built, e.g. of flags that are no option.
_RECIPE = "1"
_SEAL, _OPTION = "seal", "option "
_BUILD_AGAIN = "build it again with `rsrefseg build`"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What an engine depends on, as named texts: its stage, contract, graph files, platform and options."""

    parts: Mapping[str, str]

    @classmethod
    def of(cls, bundle: Bundle, stage: Stage, platform: Mapping[str, str], options: Mapping[str, str]) -> "Fingerprint":
        """The fingerprint that an engine of a stage must have now."""
        record = bundle.manifest.stages[stage]
        graphs = {f"graph file {file.name}": file.sha256 for file in (record.graph, *record.data)}
        contract = hashlib.sha256(_canonical(msgspec.to_builtins(record.contract))).hexdigest()
        fixed = {"stage": str(stage), "precision": record.precision, "contract": contract, "build recipe": _RECIPE}
        return cls({**fixed, **graphs, **platform}).with_options(options)

    @property
    def digest(self) -> str:
        """32 hex digits; the name of the folder."""
        return hashlib.sha256(_canonical(dict(self.parts))).hexdigest()[:32]

    def differences(self, other: "Fingerprint") -> list[str]:
        """What ``other`` has otherwise, one text each: ``driver CUDA 12.4 -> CUDA 13.0``."""
        names = dict.fromkeys((*self.parts, *other.parts))
        changed = [name for name in names if self.parts.get(name) != other.parts.get(name)]
        return [f"{name} {_short(self.parts.get(name))} -> {_short(other.parts.get(name))}" for name in changed]

    @property
    def options(self) -> dict[str, str]:
        """The build options."""
        return {name[len(_OPTION) :]: text for name, text in self.parts.items() if name.startswith(_OPTION)}

    def with_options(self, options: Mapping[str, str]) -> "Fingerprint":
        """The same with other options."""
        kept = {name: text for name, text in self.parts.items() if not name.startswith(_OPTION)}
        return Fingerprint(kept | {_OPTION + name: text for name, text in options.items()})


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """What is known of a built engine.

    Attributes:
        fingerprint: what it was built from and for.
        files: engine and inspector's JSON.
        precision: what the inspector showed.
        activation_bytes: GPU memory one run needs besides weights, inputs and outputs.
        built_at: UTC, ISO 8601.
        build_seconds: how long it took.
    """

    fingerprint: Fingerprint
    files: tuple[FileRecord, ...]
    precision: str
    activation_bytes: int
    built_at: str
    build_seconds: float

    @property
    def stage(self) -> Stage:
        """Of which stage it is."""
        return Stage(self.fingerprint.parts["stage"])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["fingerprint"] = dict(self.fingerprint.parts)
        values["files"] = msgspec.to_builtins(self.files)
        return {"schema_version": _SCHEMA_VERSION, **values}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "EngineRecord":
        """Inverse of ``to_json``; raises ``KeyError``, ``TypeError`` or ``ValueError`` where it is none."""
        if value["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"schema version {value['schema_version']!r}")
        parts = {str(name): str(text) for name, text in value["fingerprint"].items()}
        record = cls(
            fingerprint=Fingerprint(parts),
            files=read_record(value["files"], tuple[FileRecord, ...], RECORD_NAME, "$.files"),
            precision=str(value["precision"]),
            activation_bytes=int(value["activation_bytes"]),
            built_at=str(value["built_at"]),
            build_seconds=float(value["build_seconds"]),
        )
        _ = record.stage
        return record


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """An engine that lies in a bundle with a record whose seal holds."""

    folder: Path
    record: EngineRecord

    def read(self) -> bytes:
        """The engine's bytes, once they are known to be those that were built.

        Raises:
            BundleError: a file is missing or changed; the line names it.
        """
        data = {file.name: self._read(file) for file in self.record.files}
        return data[engine_name(self.record.stage)]

    def _read(self, file: FileRecord) -> bytes:
        path = self.folder / file.name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise BundleError(f"'{path}' is missing: {_BUILD_AGAIN}") from None
        except OSError as error:
            raise BundleError(f"cannot read '{path}': {error.strerror or error}") from error
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise BundleError(f"'{path}' was changed after it was built: {_BUILD_AGAIN}")
        return data


@dataclass(frozen=True, slots=True)
class Unusable:
    """A folder of engines that cannot be trusted or read, and why."""

    folder: Path
    reason: str


def engine_name(stage: Stage) -> str:
    """File name of an engine."""
    return f"{stage}.engine"


def layers_name(stage: Stage) -> str:
    """File name of what the engine inspector told."""
    return f"{stage}.layers.json"


def stored_engines(bundle: Bundle) -> Iterator[StoredEngine | Unusable]:
    """Everything under the bundle's ``engines/``, by name of its folder."""
    root = bundle.root / ENGINES_FOLDER
    try:
        files.clear_leftovers(root)
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise BundleError(f"cannot read '{root}': {error.strerror or error}") from error
    secret = machine_secret() if folders else b""
    for folder in folders:
        try:
            yield StoredEngine(folder, _unsealed((folder / RECORD_NAME).read_bytes(), secret))
        except OSError as error:
            yield Unusable(folder, f"its {RECORD_NAME} cannot be read ({error.strerror or error})")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RSRefSegError):
            yield Unusable(folder, f"its {RECORD_NAME} was not made on this machine, or was changed")


def clear_leftovers(bundle: Bundle) -> None:
    """Remove what builds that were killed left under ``engines/``. Living ones are not touched."""
    files.clear_leftovers(bundle.root / ENGINES_FOLDER)


def store_engine(bundle: Bundle, engine: bytes, layers: str, describe: Mapping[str, Any]) -> StoredEngine:
    """Write an engine with its record, whole or not at all; replaces one of the same fingerprint.

    Args:
        bundle: into whose ``engines/``.
        engine: the serialised engine.
        layers: the inspector's JSON.
        describe: the fields of ``EngineRecord`` but ``files``.

    Raises:
        RSRefSegError: the disk is full or the bundle's folder cannot be written.
    """
    fingerprint: Fingerprint = describe["fingerprint"]
    stage = Stage(fingerprint.parts["stage"])
    target = bundle.root / ENGINES_FOLDER / fingerprint.digest
    with atomic_directory(target) as folder:
        names = {engine_name(stage): engine, layers_name(stage): layers.encode()}
        for name, data in names.items():
            try:
                (folder / name).write_bytes(data)
            except OSError as error:
                raise unwritable(target / name, error) from error
        record = EngineRecord(files=tuple(file_record(folder / name) for name in names), **describe)
        atomic_write_json(folder / RECORD_NAME, _sealed(record.to_json(), machine_secret()))
    return StoredEngine(target, record)


def _sealed(document: dict[str, Any], secret: bytes) -> dict[str, Any]:
    return {**document, _SEAL: hmac.new(secret, _canonical(document), hashlib.sha256).hexdigest()}


def _unsealed(data: bytes, secret: bytes) -> EngineRecord:
    document = json.loads(data)
    seal = document.pop(_SEAL)
    if not hmac.compare_digest(_sealed(document, secret)[_SEAL], str(seal)):
        raise BadInputError("the seal does not hold")
    return EngineRecord.from_json(document)


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _short(text: str | None) -> str:
    if text is None:
        return "none"
    is_digest = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return f"{text[:12]}..." if is_digest else text
