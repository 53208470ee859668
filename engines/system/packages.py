"""Third-party packages: which one a failed import belongs to, and how to install it."""

import sys
from traceback import walk_tb

_SAME_NAME = ("msgspec", "numpy", "psutil", "rasterio", "rich", "safetensors", "tokenizers", "typer")
# Import names of the packages that every command needs, with their pip names.
RUNTIME = {"PIL": "pillow", "cv2": "opencv-python-headless", **{name: name for name in _SAME_NAME}}
TRAIN = (
    "torch", "torchvision", "transformers", "segment_anything", "peft", "accelerate", "onnx", "onnxscript",
    "pycocotools", "filelock",
)  # fmt: skip
_EXTRAS = {
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "cuda": "tensorrt",
    "polygraphy": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt_rtx_bindings": "tensorrt-rtx",
    "matplotlib": "report",
    "ray": "ray",
    "huggingface_hub": "hub",
    **dict.fromkeys(TRAIN, "train"),
}


def installed_version(package: str) -> str | None:
    """Return the version of a package by its pip name; None if it is not installed."""
    from importlib import metadata  # imported here to keep `--help` fast

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def how_to_install(package: str) -> str:
    """Return the argument of ``pip install`` that installs a package, by its import name."""
    return RUNTIME[package] if package in RUNTIME else f"'rsrefseg[{_EXTRAS[package]}]'"


def import_problem(error: BaseException) -> str | None:
    """Describe a missing or broken package in one line; None if ``error`` is not a failed import of a known package.

    A broken package may raise any error, e.g. OSError for a shared library that cannot be loaded.
    """
    if isinstance(error, ImportError) and error.name in sys.stdlib_module_names and sys.version_info < (3, 11):
        return "this command needs Python 3.11 or later: 3.10 can only run bundles"
    names = [error.name] if isinstance(error, ImportError) and error.name else []
    frames = [frame for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]
    names += [frame.f_globals.get("__name__", "") for frame in reversed(frames)]
    known = [name.partition(".")[0] for name in names if name.partition(".")[0] in {*RUNTIME, *_EXTRAS}]
    if not known:
        return None
    package = known[0]
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return f"the package '{package}' is not installed: `pip install {how_to_install(package)}`"
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    again = f"`pip install --force-reinstall {how_to_install(package)}`"
    return f"the package '{package}' is installed but broken ({reason}): {again}"
