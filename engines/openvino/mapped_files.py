"""Files that a runtime has mapped into this process: where they are, and giving their pages back."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_FIELDS = 6  # addresses, permissions, offset, device, inode, path
_DONTNEED = 4  # of Linux
_RELEASE_EVERY_S = 0.3


def mapped_addresses(paths: Iterable[Path]) -> frozenset[range]:
    """Where files are mapped for reading only; nothing on other systems than Linux."""
    try:
        rows = [line.split(None, _FIELDS - 1) for line in _MAPS.read_bytes().splitlines()]
    except OSError:
        return frozenset()
    names = {os.fsencode(path.resolve()) for path in paths}
    return frozenset(
        range(*(int(address, 16) for address in row[0].split(b"-")))
        for row in rows
        # What was written to a private mapping would be lost with its pages.
        if len(row) == _FIELDS and row[-1] in names and b"w" not in row[1]
    )


def release_pages(addresses: Iterable[range]) -> None:
    """Give back the memory of pages of files; whoever reads them again gets them again.

    Args:
        addresses: of ``mapped_addresses``. The files must not change, and be mapped there still: of memory that is
            there by now this makes zeros.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        advise = ctypes.CDLL(None).madvise
        for mapping in addresses:
            advise(ctypes.c_void_p(mapping.start), ctypes.c_size_t(len(mapping)), _DONTNEED)


@contextlib.contextmanager
def releasing_pages(addresses: frozenset[range]) -> Iterator[None]:
    """Give back pages of mapped files over and over while the body has them read, and once more at its end.

    For a body that copies a file's content and lets other threads run meanwhile: of what it maps, only what it has read
    since the last time is in memory.

    Args:
        addresses: as for ``release_pages``, until the end of the body.
    """
    ended = threading.Event()

    def release() -> None:
        while not ended.wait(_RELEASE_EVERY_S):
            release_pages(addresses)
        release_pages(addresses)

    thread = threading.Thread(target=release, name="releasing pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
