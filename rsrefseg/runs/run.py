"""Run folders: their files, their records, and how commands find them."""

import platform
from contextlib import AbstractContextManager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import msgspec
from filelock import FileLock, Timeout

from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.engines.system.files import atomic_write_json, sha256_file

_SHOWN_DIGITS = 12


class _Record(msgspec.Struct):
    """Fields that every run record has."""

    schema_version: Literal[1]
    model: dict[str, Any]
    train: dict[str, Any]
    base: dict[str, Any]
    data: dict[str, Any]


class Run:
    """A run folder and the paths of its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record_path = path / "run.json"  # configuration, base and data; written once
        self.tokenizer_path = path / "tokenizer.json"
        self.reference_inputs_path = path / "reference_inputs.safetensors"  # for the checks of merging and export
        self.presence_path = path / "presence.json"  # calibration of presence scores
        self.metrics_path = path / "metrics.jsonl"  # training steps and validations
        self.last_path = path / "last.safetensors"  # the latest checkpoint, for resuming
        self.best_path = path / "best.safetensors"  # trained weights at the best validation gIoU
        self.merged_path = path / "merged.safetensors"  # the whole model without adapters

    def held(self) -> AbstractContextManager[object]:
        """Lock the folder for one training; the lock ends with the process.

        Raises:
            BadInputError: another process holds the lock.
        """
        try:
            return FileLock(self.path / ".lock", timeout=0).acquire()
        except Timeout as error:
            raise BadInputError(f"another process trains into '{self.path}': wait, or give another --out") from error

    def write_record(self, record: dict[str, Any]) -> None:
        """Write ``run.json``."""
        atomic_write_json(self.record_path, {"schema_version": 1, **record})

    def read_record(self) -> dict[str, Any]:
        """Read ``run.json``.

        Raises:
            BadInputError: the record is missing, damaged, or has another schema version.
        """
        if not self.record_path.is_file():
            raise BadInputError(f"'{self.path}' is not a run: it has no run.json; create a run with `rsrefseg train`")
        try:
            record: dict[str, Any] = msgspec.json.decode(self.record_path.read_bytes())
            msgspec.convert(record, _Record)
        except (OSError, ValueError) as error:
            raise BadInputError(
                f"'{self.record_path}' is damaged or from another release ({error}): train again in another --out"
            ) from error
        return record

    def read_training_record(self) -> dict[str, Any]:
        """Read ``run.json`` of a run that was trained here.

        Raises:
            BadInputError: see ``read_record``; or the run was exported or converted without training.
        """
        record = self.read_record()
        if not record["train"]:
            raise BadInputError(f"'{self.path}' was never trained: name the run to continue with --out")
        return record


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a run's result."""
    packages = ("torch", "transformers", "segment-anything", "peft", "accelerate", "numpy", "rsrefseg")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def latest_run(root: Path = Path("runs")) -> Run:
    """Return the run under ``root`` with the newest record.

    Raises:
        BadInputError: there is no run.
    """
    records = sorted(root.glob("*/run.json"), key=lambda record: (record.stat().st_mtime_ns, record.parent.name))
    if not records:
        raise BadInputError(
            f"no run under '{root}': train one with `rsrefseg train`, name its folder, or export the shipped base with "
            "`rsrefseg export --base`"
        )
    return Run(records[-1].parent)


def exported_run(bundle: Path, checkpoint_sha256: str | None, path: Path | None) -> Run:
    """Return the run whose merged model a bundle was exported from, without loading the model.

    Args:
        bundle: the bundle's folder, for the message.
        checkpoint_sha256: digest of the exported model, from the bundle's manifest; None for random weights.
        path: run folder; default is the latest run.

    Raises:
        MissingPartError: PyTorch is not installed.
        BadInputError: the run does not exist, is not merged, or its merged model differs from the exported one.
    """
    if find_spec("torch") is None:
        raise MissingPartError("PyTorch is not installed: pip install 'rsrefseg[train]'")
    run = Run(path) if path is not None else latest_run()
    if not run.merged_path.is_file():
        raise BadInputError(f"'{run.path}' has no merged model: run `rsrefseg merge {run.path}`")
    found = sha256_file(run.merged_path)
    if found != checkpoint_sha256:
        exported = f"the model {checkpoint_sha256[:_SHOWN_DIGITS]}" if checkpoint_sha256 else "random weights"
        raise BadInputError(
            f"the bundle '{bundle}' was exported from {exported}, '{run.merged_path}' is {found[:_SHOWN_DIGITS]}: "
            "name the right run with --run, or export again"
        )
    return run


def next_run(root: Path = Path("runs")) -> Path:
    """Return the next free numbered folder under ``root`` without creating it."""
    numbers = [int(folder.name) for folder in root.glob("*") if folder.name.isdecimal()]
    return root / f"{max(numbers, default=0) + 1:03d}"
