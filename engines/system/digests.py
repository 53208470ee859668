"""Digests of large files, remembered in the user's cache folder until the file changes."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from ..errors import RSRefSegError
from .files import atomic_file, cache_folder, sha256_file

_LARGE_BYTES = 16 << 20  # smaller files are read again
_RECORDS = 1000  # in the cache; the oldest are removed
_SETTLED_S = 2.0  # a file that changed later may change again within its clock's resolution


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex.

    A large file is read once: its digest is remembered by absolute path, inode, size and the times of its last changes.
    A change that the file system does not record, such as a defect of the disk or a later write through the same
    ``mmap``, is only found by reading again.

    Raises:
        OSError: the file cannot be read.
    """
    stamp = _stamp(path)
    if stamp["size"] < _LARGE_BYTES:
        return sha256_file(path)
    record = _record_path(path)
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = json.loads(record.read_bytes()) if record is not None else {}
        if isinstance(digest := found.pop("sha256", None), str) and found == stamp:
            return digest
    settled = max(stamp["mtime_ns"], stamp["ctime_ns"]) < time.time_ns() - _SETTLED_S * 1e9
    digest = sha256_file(path)
    if record is not None and settled and _stamp(path) == stamp:
        with contextlib.suppress(OSError, RSRefSegError):
            with atomic_file(record, durable=False) as temporary:
                temporary.write_text(json.dumps({**stamp, "sha256": digest}))
            _drop_oldest(record.parent)
    return digest


def _stamp(path: Path) -> dict[str, int]:
    """Return what changes whenever a file is written: ``utime`` can set its time of modification, but not of change."""
    state = path.stat()
    times = {"mtime_ns": state.st_mtime_ns, "ctime_ns": state.st_ctime_ns}
    return {"device": state.st_dev, "inode": state.st_ino, "size": state.st_size, **times}


def _drop_oldest(folder: Path) -> None:
    records = sorted(folder.glob("[0-9a-f]*.json"), key=lambda path: path.stat().st_mtime_ns)
    for record in records[:-_RECORDS]:
        record.unlink(missing_ok=True)


def _record_path(path: Path) -> Path | None:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    try:
        return cache_folder() / "digests" / f"{name}.json"
    except RSRefSegError:  # without a home folder, nothing is remembered
        return None
