"""TensorRT's timing cache: what kernels took on this GPU, so that the next build need not measure again.

One file per GPU with its multiprocessors (a power mode changes their number) and TensorRT version, in this user's cache
folder, sealed with this user's secret: one that was cut short or changed never reaches TensorRT.
"""

import hashlib
import hmac
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RSRefSegError
from ..system.files import atomic_write_bytes
from .errors import Asking, host_bytes
from .library import Platform
from .secret import cache_folder, machine_secret

if TYPE_CHECKING:
    from collections.abc import Callable

    import tensorrt as trt

_SEAL_BYTES = 32
_WITHOUT = "build with --force to measure anew"


def timing_cache_path(platform: Platform) -> Path:
    """Where the cache of a platform lies."""
    gpu = platform.gpu
    parts = (gpu.name, gpu.compute_capability, f"{gpu.multiprocessors}sm", platform.tensorrt)
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", part) for part in parts)
    return cache_folder() / "timing" / f"{name}.cache"


def attach(
    config: "trt.IBuilderConfig", platform: Platform, asking: Asking, say: "Callable[[str], None]"
) -> "trt.ITimingCache":
    """Give the kept timings to a build; broken ones are discarded, which ``say`` is told.

    Returns:
        The cache, which must live as long as the build.

    Raises:
        RSRefSegError: TensorRT takes not even an empty cache.
    """
    path = timing_cache_path(platform)
    kept = _read(path, say)
    if kept:
        try:
            return _set(config, kept, asking)
        except RSRefSegError as error:
            say(f"the timing cache '{path}' is discarded: {error}")
            # Left there, it would be refused again, now and at every build, and nothing kept.
            path.unlink(missing_ok=True)
    return _set(config, b"", asking)


def keep(cache: "trt.ITimingCache", config: "trt.IBuilderConfig", platform: Platform, asking: Asking) -> None:
    """Add what a build has measured to the kept timings, those that another build kept meanwhile included.

    Raises:
        RSRefSegError: TensorRT does not give its timings, or they cannot be written.
    """
    path = timing_cache_path(platform)
    if others := _read(path, lambda line: None):
        other = asking.made(lambda: config.create_timing_cache(others), "read the kept timing cache", _WITHOUT)
        asking.agreed(lambda: cache.combine(other, False), "combine the timing caches", f"remove '{path}'")
    data = host_bytes(asking.made(cache.serialize, "serialise its timing cache", _WITHOUT))
    atomic_write_bytes(path, _seal(data) + data)


def _set(config: "trt.IBuilderConfig", data: bytes, asking: Asking) -> "trt.ITimingCache":
    cache = asking.made(lambda: config.create_timing_cache(data), "make a timing cache", _WITHOUT)
    asking.agreed(lambda: config.set_timing_cache(cache, False), "use the timing cache", _WITHOUT)
    return cache


def _read(path: Path, say: "Callable[[str], None]") -> bytes:
    """The kept cache, empty where there is none that is whole."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        say(f"the timing cache '{path}' cannot be read ({error.strerror or error}) and is made anew")
        return b""
    seal, data = stored[:_SEAL_BYTES], stored[_SEAL_BYTES:]
    if not hmac.compare_digest(_seal(data), seal):
        say(f"the timing cache '{path}' is broken and is made anew")
        return b""
    return data


def _seal(data: bytes) -> bytes:
    return hmac.new(machine_secret(), data, hashlib.sha256).digest()
