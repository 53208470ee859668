"""Atomic writes of files and folders, and digests.

A writer works under a hidden name beside its target and renames it once everything is written. The hidden name contains
the host and the process, so that the next writer can remove what a killed one left.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from ..errors import BadInputError, MissingPartError, RSRefSegError

_CHUNK_BYTES = 1 << 20
_PARTIAL, _REPLACED = "partial", "replaced"
_HIDDEN = re.compile(rf"\.({_PARTIAL}|{_REPLACED})\.([0-9a-f]{{8}})\.(\d+)\.([0-9a-f]{{8}})\.\d+\.(.+)", re.DOTALL)
_HOST = hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]
_RUN = os.urandom(4).hex()  # a restarted container has the same host name and process ids
_NUMBERS = count()
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_ONLY_WHEN_WRITING = (*_DISK_FULL, errno.EFBIG, errno.EROFS)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def unwritable(path: Path, error: OSError) -> RSRefSegError:
    """Return the error for an output path that cannot be written."""
    if error.errno in _DISK_FULL:
        return RSRefSegError(f"no space left on the disk of '{path}': free some or choose another place")
    return BadInputError(f"cannot write '{path}': {error.strerror or error}; choose a place that can be written")


def cache_folder() -> Path:
    """Return the user's cache folder: ``$XDG_CACHE_HOME/rsrefseg`` or ``~/.cache/rsrefseg``.

    Raises:
        MissingPartError: the user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "rsrefseg"
    except RuntimeError as error:
        raise MissingPartError("this user has no home folder: set XDG_CACHE_HOME to one that can be written") from error


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` holds either its old or its new content, never a part.

    Raises:
        RSRefSegError: the disk is full or the folder cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8, atomically; see ``atomic_write_bytes``."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write ``value`` as JSON with a closing newline, atomically; ``indent=None`` for long lists of numbers."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    # File names may hold lone surrogates, which UTF-8 cannot encode. Their escapes are valid JSON.
    atomic_write_bytes(path, text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def atomic_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path with the same suffix; on success it replaces ``path``, on failure it is removed.

    For writers that take a file name (safetensors, image codecs).

    Args:
        path: the file to create or replace; its folder is created as well.
        durable: survive a power cut, and remove what killed writers left in the folder. False for many small files.

    Raises:
        RSRefSegError: the disk is full or the folder cannot be written. Other errors of the ``with`` block, such as an
            input that cannot be read, pass through unchanged.
    """
    hidden = _hidden(path, _PARTIAL)
    # In a folder, because a killed native writer may leave its own temporary files beside the one it writes.
    temporary = hidden / path.name if durable else hidden
    with _output_errors(path, hidden):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if durable:
                clear_leftovers(path.parent)
                hidden.mkdir()
            yield temporary
            if durable:
                _flush(temporary)
            temporary.replace(path)
        finally:
            shutil.rmtree(hidden, ignore_errors=True) if durable else hidden.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path, replaces: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder; on success it replaces ``path``, on failure it is removed.

    Replacing a folder that is not empty takes two renames. If the process is killed between them, ``path`` is missing
    until ``recover_directory`` or the next writer restores the old folder.

    Args:
        path: the folder to create or replace. A file of that name is an error.
        replaces: a name that an existing folder must contain, unless it is empty, so that a mistyped path does not
            replace a folder of another kind. ``None`` if the caller has checked the folder.

    Raises:
        RSRefSegError: the disk is full, or the folder cannot be written or replaced. Other errors of the ``with``
            block pass through unchanged.
    """
    path = path.resolve()
    temporary = _hidden(path, _PARTIAL)
    with _output_errors(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent)
        _check_replaceable(path, replaces)
        try:
            temporary.mkdir()
            yield temporary
            for entry in (*temporary.rglob("*"), temporary):
                if not entry.is_symlink():
                    _flush(entry)
            while not _swap(temporary, path):
                pass  # another writer was faster, or a reader restored the old folder
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def recover_directory(path: Path) -> None:
    """Restore the old folder if a writer was killed while it replaced ``path``. Readers call this first."""
    if not path.exists():
        clear_leftovers(path.resolve().parent)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed writers left in ``folder``, and restore a folder that was moved aside and not replaced.

    Files of running processes and of other hosts stay.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208 (much faster for many files)
    except OSError:
        return
    for found in filter(None, map(_HIDDEN.fullmatch, names)):
        kind, host, process, run, name = found.groups()
        with contextlib.suppress(OSError):
            if kind == _REPLACED and not (folder / name).exists():
                (folder / found[0]).rename(folder / name)
            elif host == _HOST and not _is_running(int(process), run):
                _remove(folder / found[0], folder / name)


def _swap(new: Path, path: Path) -> bool:
    """Move ``new`` to ``path`` and remove the old folder; return False if another process created ``path`` first."""
    old = _hidden(path, _REPLACED)
    try:
        with contextlib.suppress(FileNotFoundError):
            path.rename(old)
        new.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    finally:
        with contextlib.suppress(OSError):
            if not path.exists():
                old.rename(path)
        with contextlib.suppress(OSError):  # also if a writer created `path` just before the old one was restored
            if path.exists():
                _remove(old, path)
    return True


def _remove(entry: Path, path: Path) -> None:
    """Rename ``entry`` and remove it, so that a partly removed folder is never restored as ``path``."""
    doomed = _hidden(path, _PARTIAL)
    try:
        entry.rename(doomed)
    finally:
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            doomed.unlink(missing_ok=True)


def _hidden(path: Path, kind: str) -> Path:
    """Return a name beside ``path`` that no other writer uses. It ends like ``path``: codecs read the suffix."""
    return path.with_name(f".{kind}.{_HOST}.{os.getpid()}.{_RUN}.{next(_NUMBERS)}.{path.name}")


def _is_running(process: int, run: str) -> bool:
    if process == os.getpid():
        return run == _RUN
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@contextlib.contextmanager
def _output_errors(path: Path, temporary: Path) -> Iterator[None]:
    """Convert errors of writing ``path`` to one-line errors; other errors pass through."""
    try:
        yield
    except RSRefSegError:
        raise
    except OSError as error:
        named = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
        found = [Path(os.fsdecode(name)) for name in named]
        ours = any(name in (path, temporary, *path.parents) or temporary in name.parents for name in found)
        if ours or (not found and error.errno in _ONLY_WHEN_WRITING):
            raise unwritable(path, error) from error
        raise
    except Exception as error:
        # Native writers (safetensors, image codecs) raise their own errors with the system's message.
        if os.strerror(errno.ENOSPC) in str(error):
            raise unwritable(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise


def _check_replaceable(path: Path, replaces: str | None) -> None:
    try:
        names = {entry.name for entry in path.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        hint = "there is a file of that name; choose another place"
        raise BadInputError(f"cannot write the folder '{path}': {hint}") from None
    if replaces is not None and names and replaces not in names:
        raise BadInputError(f"the folder '{path}' holds other things (no {replaces}): choose a new or an empty one")


def _flush(path: Path) -> None:
    """Force a file or folder to the disk, so that a rename never overtakes the data it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
