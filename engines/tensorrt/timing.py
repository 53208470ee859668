"""TensorRT's timing cache, which stores kernel timings of this GPU for later builds.

The user's cache folder has one file per GPU, number of multiprocessors (which a power mode changes) and TensorRT
version. Builds for the same platform run one at a time, so that none overwrites the timings of another.
"""

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
    """Return the path of a platform's timing cache."""
    return cache_folder() / "timing" / f"{platform.file_name}.cache"


def attach(
    config: "trt.IBuilderConfig", platform: Platform, calls: TrtCalls, say: "Callable[[str], None]"
) -> "trt.ITimingCache":
    """Attach the stored timings to a build; unusable ones are discarded and reported through ``say``.

    Returns:
        The cache, which must live as long as the build.

    Raises:
        RSRefSegError: TensorRT rejects even an empty cache.
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
    """Store the timings of a build, including earlier ones.

    Raises:
        RSRefSegError: TensorRT cannot serialise the timings, or the file cannot be written.
    """
    data = host_bytes(calls.require(cache.serialize, "serialise its timing cache", _WITHOUT))
    atomic_write_bytes(timing_cache_path(platform), data)


def _set(config: "trt.IBuilderConfig", data: bytes, calls: TrtCalls) -> "trt.ITimingCache":
    cache = calls.require(lambda: config.create_timing_cache(data), "make a timing cache", _WITHOUT)
    calls.require_true(lambda: config.set_timing_cache(cache, False), "use the timing cache", _WITHOUT)
    return cache
