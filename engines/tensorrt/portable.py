"""A folder with the engines of a bundle for named GPU classes, built by TensorRT-RTX on any machine.

Engine files are native code: a folder is used only if its user names it, and only if its record fits the bundle and its
files fit the record.
"""

from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..errors import BadInputError, BundleError, MissingPartError
from ..system.files import atomic_directory
from .build import Compiler
from .library import RTX, Platform, open_rtx
from .records import RECORD_NAME, EngineRecord, Fingerprint, StoredEngine
from .store import BuildReport, ensure_engines


class EnginesRecord(Struct, frozen=True):
    """``record.json`` of the folder: the record of every engine, with digests, versions, GPU classes and options."""

    stages: dict[Stage, EngineRecord]


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
        for one in built.values():
            (folder / one.engine.record.engine.name).write_bytes(one.engine.read())
        # Without path and times, which mean nothing elsewhere.
        plain = {"bundle": "", "built_at": "", "build_seconds": 0.0}
        record = EnginesRecord({stage: replace(one.engine.record, **plain) for stage, one in built.items()})
        (folder / RECORD_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2))
    return BuildReport(str(bundle.root), str(compiler.platform), built, str(out))


def open_portable(folder: Path, bundle: Bundle, version: str, gpu: str) -> dict[Stage, StoredEngine]:
    """Return the engines in a folder, after checking that they were built from a bundle and run on this machine.

    Args:
        folder: the folder.
        bundle: the bundle to run.
        version: version of TensorRT-RTX here.
        gpu: compute capability of the GPU, such as ``sm86``.

    Raises:
        MissingPartError: the folder holds no record, or its engines are for another version or other GPUs.
        BundleError: the record is unreadable, or its engines were built from other graphs; the message names the stage.
    """
    path, build = (
        folder / RECORD_NAME,
        f"build it with `rsrefseg build --runtime tensorrt-rtx --gpus ... --out {folder}`",
    )
    try:
        stages = msgspec.json.decode(path.read_bytes(), type=EnginesRecord).stages
    except (FileNotFoundError, NotADirectoryError):
        raise MissingPartError(f"'{folder}' holds no engines (no {RECORD_NAME}): {build}") from None
    except (OSError, ValueError, RecursionError, BadInputError) as error:
        raise BundleError(f"'{path}' cannot be read ({error}): {build}") from error
    for stage in Stage:
        if stage not in stages:
            raise BundleError(f"'{path}' has no engine of '{stage}': {build}")
        found = stages[stage].fingerprint
        parts = {name: found.parts.get(name, "") for name in (RTX, "GPUs")}
        if differences := found.differences(Fingerprint.of(bundle, stage, Platform("", parts), found.options)):
            raise BundleError(
                f"'{path}' is of another bundle than '{bundle.root}' ('{stage}': {differences[0]}): {build}"
            )
        if parts[RTX] != version:
            raise MissingPartError(f"'{folder}' is of {RTX} {parts[RTX]}, this is {version}: install that, or {build}")
        if gpu not in parts["GPUs"].split(", "):
            raise MissingPartError(f"'{folder}' is for {parts['GPUs']}, this GPU is {gpu}: {build}")
    return {stage: StoredEngine(folder, record, build) for stage, record in stages.items()}
