"""Files that are whole or not there: atomic writes, atomic folders, digests."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.errors import BadInputError, RSRefSegError

_CHUNK_BYTES = 1 << 20
_REPLACED_SUFFIX = ".replaced"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def unwritable(path: Path, error: OSError) -> RSRefSegError:
    """The one-line error for an output path that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RSRefSegError(f"no space left on the disk of '{path}': free some or choose another place")
    return BadInputError(f"cannot write '{path}': {error.strerror or error}; choose a place that can be written")


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either its old or its new content, never a part.

    Raises:
        RSRefSegError: the disk is full or the folder cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """UTF-8 form of :func:`atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a closing newline, atomically."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it replaces ``path``, on failure it is removed.

    For writers that insist on a file name (safetensors, onnx, image codecs). The temporary name keeps the suffix, since codecs
    choose the format by it.

    Raises:
        RSRefSegError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; on success it takes the place of ``path``, on failure it is removed.

    A folder already there is moved aside first and deleted last. A process killed between the two moves leaves the old folder under
    its moved-aside name; :func:`recover_directory` puts it back.

    Raises:
        RSRefSegError: the disk is full or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        discard_partials(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        temporary.chmod(0o755)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        replaced = path.with_name(f".{path.name}{_REPLACED_SUFFIX}")
        if path.exists():
            os.rename(path, replaced)
        os.rename(temporary, path)
        _flush(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def recover_directory(path: Path) -> None:
    """Undo the one gap of :func:`atomic_directory`: if only the moved-aside old folder exists, put it back."""
    replaced = path.with_name(f".{path.name}{_REPLACED_SUFFIX}")
    if replaced.is_dir() and not path.exists():
        os.rename(replaced, path)


def discard_partials(path: Path) -> None:
    """Remove what writers of ``path`` that were killed left beside it, and finish or undo their last move."""
    recover_directory(path)
    shutil.rmtree(path.with_name(f".{path.name}{_REPLACED_SUFFIX}"), ignore_errors=True)
    for leftover in path.parent.glob(f".{path.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def _flush(path: Path) -> None:
    """Force a file or folder entry to the disk, so that a rename never overtakes the data it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
