"""Keep freed memory in the process: training asks for the same large blocks at every step."""

import ctypes
import platform

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_TOP_PAD_BYTES = 512 << 20


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large blocks instead of returning them to the kernel after every step.

    By default every large tensor is mapped, zeroed page by page and unmapped again, which on virtual machines can take
    a third of a CPU training step. See mallopt(3).

    Returns:
        Whether it was done (only glibc has these settings).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)]
    return all(done)
