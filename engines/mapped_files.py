"""Files that a runtime has mapped into this process: giving their pages back."""

import contextlib
import ctypes
import os
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_FIELDS = 6  # addresses, permissions, offset, device, inode, path
_DONTNEED = 4  # of Linux


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
