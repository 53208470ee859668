"""TensorRT's timing cache: what kernels took on this GPU, so that the next build need not measure again.

One file per GPU with its multiprocessors (a power mode changes their number) and TensorRT version, in this user's cache
folder. Builds for the same platform run one at a time, so that none overwrites what another has measured.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RSRefSegError
from ..system.files import atomic_write_bytes, cache_folder
from .errors import TrtCalls, host_bytes
from .library import Platform

if TYPE_CHECKING:
    from collections.abc import Callable

    import tensorrt as trt

_WITHOUT = "build with --force to measure again"


def timing_cache_path(platform: Platform) -> Path:
    """Where the cache of a platform lies."""
    gpu = platform.gpu
    parts = (gpu.name, gpu.compute_capability, f"{gpu.multiprocessors}sm", platform.tensorrt)
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in parts)
    return cache_folder() / "timing" / f"{name}.cache"


def attach(
    config: "trt.IBuilderConfig", platform: Platform, calls: TrtCalls, say: "Callable[[str], None]"
) -> "trt.ITimingCache":
    """Give the kept timings to a build; those that cannot be used are discarded, which ``say`` reports.

    Returns:
        The cache, which must live as long as the build.

    Raises:
        RSRefSegError: TensorRT does not take even an empty cache.
    """
    path = timing_cache_path(platform)
    try:
        return _set(config, path.read_bytes(), calls)
    except FileNotFoundError:
        pass
    except OSError as error:
        say(f"the timing cache '{path}' cannot be read ({error.strerror or error})")
    except RSRefSegError as error:
        say(f"the timing cache '{path}' is discarded: {error}")
        path.unlink(missing_ok=True)
    return _set(config, b"", calls)


def keep(cache: "trt.ITimingCache", platform: Platform, calls: TrtCalls) -> None:
    """Keep the timings of a build, the earlier ones included.

    Raises:
        RSRefSegError: TensorRT does not serialise them, or they cannot be written.
    """
    data = host_bytes(calls.require(cache.serialize, "serialise its timing cache", _WITHOUT))
    atomic_write_bytes(timing_cache_path(platform), data)


def _set(config: "trt.IBuilderConfig", data: bytes, calls: TrtCalls) -> "trt.ITimingCache":
    cache = calls.require(lambda: config.create_timing_cache(data), "make a timing cache", _WITHOUT)
    calls.require_true(lambda: config.set_timing_cache(cache, False), "use the timing cache", _WITHOUT)
    return cache
