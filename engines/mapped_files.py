"""Files that a runtime has mapped into this process: giving their pages back."""

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


def release_pages(path: Path) -> None:
    """Give back the memory of a file's pages that are mapped for reading; whoever reads them again gets them again.

    Where that cannot be done, on other systems than Linux, nothing happens.

    Args:
        path: of a file that does not change while it is mapped.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        name = os.fsencode(path.resolve())
        advise = ctypes.CDLL(None).madvise
        for line in _MAPS.read_bytes().splitlines():
            fields = line.split(None, _FIELDS - 1)
            # What was written to a private mapping would be lost.
            if len(fields) == _FIELDS and fields[-1] == name and b"w" not in fields[1]:
                start, end = (int(address, 16) for address in fields[0].split(b"-"))
                advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


@contextlib.contextmanager
def releasing_pages(paths: Iterable[Path]) -> Iterator[None]:
    """Give back the pages of mapped files over and over while the body has them read, and once more at its end.

    For a body that copies a file's content and lets other threads run meanwhile: of what it maps, only what it has read
    since the last time is in memory.

    Args:
        paths: as for :func:`release_pages`.
    """
    files, ended = tuple(paths), threading.Event()

    def release() -> None:
        while True:
            last = ended.wait(_RELEASE_EVERY_S)
            for path in files:
                release_pages(path)
            if last:
                return

    thread = threading.Thread(target=release, name="releasing pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
