"""Files that are whole or not there: atomic writes, atomic folders, digests.

A writer works in a hidden folder beside its target, ``.<name>.partial``, and renames once everything is on the disk.
The folder is locked while its writer lives, so the next writer knows what a killed one left behind and clears it away,
and two writers at once never share one.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import BadInputError, RSRefSegError

_CHUNK_BYTES = 1 << 20
_REPLACED_SUFFIX = ".replaced"
_PARTIAL_SUFFIX = ".partial"
_SWAP_LOCK_SECONDS = 10.0
_FULL_BYTES = 1 << 16  # a disk is full in blocks, before its last byte
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_ONLY_WHEN_WRITING = (*_DISK_FULL, errno.EFBIG, errno.EROFS, errno.EIO)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def unwritable(path: Path, error: OSError) -> RSRefSegError:
    """The one-line error for an output path that could not be written."""
    if error.errno in _DISK_FULL:
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
    """UTF-8 form of ``atomic_write_bytes``."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write ``value`` as JSON with a closing newline, atomically; ``indent=None`` for long lists of numbers."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    # File names may hold lone surrogates, which UTF-8 cannot: escaped, they are JSON's own notation.
    atomic_write_bytes(path, text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path of the same name; on success it replaces ``path``, on failure it is removed.

    For writers that insist on a file name (safetensors, onnx, image codecs).

    Raises:
        RSRefSegError: the disk is full or the folder cannot be written. Other errors of the ``with`` block, such as an
            input that cannot be read, pass through as they are.
    """
    with _output_errors(path), _partial_folder(path) as folder, _output_errors(path):
        temporary = folder / path.name
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)


@contextlib.contextmanager
def atomic_directory(path: Path, replaces: str | None = None) -> Iterator[Path]:
    """Give a temporary folder; on success it takes the place of ``path``, on failure it is removed.

    A folder already there is moved aside first and deleted last. A process killed between the two moves leaves the old
    folder under its moved-aside name; ``recover_directory`` puts it back.

    Args:
        path: the folder to make or replace. A file of that name is refused.
        replaces: a name that a folder already there must hold, unless it is empty, so that a slip of the pen replaces
            no folder of another kind. ``None`` for callers that have looked themselves.

    Raises:
        RSRefSegError: the disk is full, the folder cannot be written or not be replaced. Other errors of the ``with``
            block pass through as they are.
    """
    path = path.resolve()
    with _output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        discard_partials(path)
        with _alone_in(path.parent):
            _check_replaceable(path, replaces)
        with _partial_folder(path) as folder, _output_errors(path):
            yield folder
            for entry in (*folder.rglob("*"), folder):
                if not entry.is_symlink():
                    _flush(entry)
            replaced, old = _replaced(path), _unique_partial(path)
            with _alone_in(path.parent):
                if path.exists():
                    _remove(replaced)
                    path.rename(replaced)
                folder.rename(path)
                if replaced.exists():
                    replaced.rename(old)
            _flush(path.parent)
            _remove(old)


def recover_directory(path: Path) -> None:
    """Undo the one gap of ``atomic_directory``: if only the moved-aside old folder exists, put it back.

    Readers of such a folder call this first.
    """
    replaced = _replaced(path)
    if path.exists() or not replaced.is_dir():
        return
    with _output_errors(path), _alone_in(path.parent):
        if replaced.is_dir() and not path.exists():
            replaced.rename(path)


def discard_partials(path: Path) -> None:
    """Remove what writers of ``path`` that were killed left beside it, and finish or undo their last move."""
    if not path.parent.is_dir():
        return
    recover_directory(path)
    if path.exists():
        with _alone_in(path.parent):
            _remove(_replaced(path))
    leftovers = re.compile(re.escape(f".{path.name}") + r"(\.[0-9a-f]{32})?" + re.escape(_PARTIAL_SUFFIX))
    with _alone_in(path.parent):
        for entry in path.parent.iterdir():
            if leftovers.fullmatch(entry.name) and (lock := _claim(entry)) is not None:
                _remove(entry)
                os.close(lock)


@contextlib.contextmanager
def _partial_folder(path: Path) -> Iterator[Path]:
    """An empty hidden folder beside ``path``, this writer's alone. Gone at the end, unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}{_PARTIAL_SUFFIX}")
    with _alone_in(path.parent):  # or else another writer might take a folder that has no lock yet for a leftover
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        lock = _claim(folder)
        if lock is None:  # another writer is at work, or locks do not work here
            folder = _unique_partial(path)
            folder.mkdir()
            lock = _claim(folder)
    try:
        yield folder
    finally:
        # Once renamed, the name may already be another writer's.
        if lock is None or _is_at(lock, folder):
            _remove(folder)
        if lock is not None:
            os.close(lock)


def _claim(folder: Path) -> int | None:
    """Lock a partial folder and empty it. ``None`` if a living writer has it; the lock ends with the descriptor."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        _lock(descriptor)
        if not _is_at(descriptor, folder):
            raise FileNotFoundError(folder)
        for leftover in folder.iterdir():
            _remove(leftover)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _is_at(descriptor: int, folder: Path) -> bool:
    """Whether an open folder is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), folder.lstat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other writers from moving entries of ``folder`` meanwhile. Does not wait long for a lock held by others."""
    if folder.name.startswith(".") and folder.name.endswith(_PARTIAL_SUFFIX):
        yield  # a partial folder is its writer's alone, who holds this very lock and would wait for itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + _SWAP_LOCK_SECONDS
    try:
        while time.monotonic() < deadline:
            try:
                _lock(descriptor)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Tell errors of writing ``path`` in one line; let errors of anything else pass."""
    try:
        yield
    except RSRefSegError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and _concerns(error, path):
            raise unwritable(path, error) from error
        # Native writers (safetensors, torch, image codecs) hide the system's error in one of their own.
        if os.strerror(errno.ENOSPC) in str(error) or _is_full(path):
            raise unwritable(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise


def _concerns(error: OSError, path: Path) -> bool:
    """Whether the error is about ``path``, a folder above it or its partial folder, rather than about some input."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
    if not names:
        return error.errno in _ONLY_WHEN_WRITING
    target = path.absolute()
    for name in names:
        found = Path(os.fsdecode(name)).absolute()
        if found == target or found in target.parents or error.errno in _DISK_FULL:
            return True
        if target.parent in found.parents and found.relative_to(target.parent).parts[0].startswith(f".{path.name}."):
            return True
    return False


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _FULL_BYTES
    except OSError:
        return False


def _check_replaceable(path: Path, replaces: str | None) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise BadInputError(f"cannot write the folder '{path}': there is a file of that name; choose another place")
    if replaces is not None and any(path.iterdir()) and not (path / replaces).exists():
        raise BadInputError(f"the folder '{path}' holds other things (no {replaces}): choose a new or an empty one")


def _replaced(path: Path) -> Path:
    return path.with_name(f".{path.name}{_REPLACED_SUFFIX}")


def _unique_partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{_PARTIAL_SUFFIX}")


def _remove(path: Path) -> None:
    """Remove a file or a whole folder, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _flush(path: Path) -> None:
    """Force a file or folder entry to the disk, so that a rename never overtakes the data it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
