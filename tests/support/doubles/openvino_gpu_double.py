"""A double of OpenVINO's GPU plugin for machines without an Intel GPU, based on the CPU plugin.

It accepts the properties of the GPU plugin only. Models in FP16 have weights rounded to FP16 and compute in FP32,
but report FP16; sums are not rounded.
"""

import itertools
from enum import Enum
from pathlib import Path
from typing import Any

from rsrefseg.engines.openvino.library import CPU, package

PRODUCT = "Intel(R) Double Graphics"
_HINT = "INFERENCE_PRECISION_HINT"
_KNOWN = {"PERFORMANCE_HINT", "COMPILATION_NUM_THREADS", _HINT}
DeviceType = Enum("DeviceType", ["INTEGRATED", "DISCRETE"])  # as OpenVINO's own


class IntelGpuDouble:
    """An ``openvino.Core`` with a GPU; ``precisions`` has the requested precision of each model.

    Args:
        core: the real core.
        folder: folder for files of rounded weights, which stay mapped.
    """

    def __init__(self, core: Any, folder: Path) -> None:
        self._core, self._folder = core, folder
        self._numbers = itertools.count()
        self.available_devices = [CPU, "GPU"]
        self.computes_fp16 = True
        self.discrete: set[str] = set()
        self.precisions: list[str] = []

    def get_property(self, device: str, name: str) -> Any:
        """Return a property of the GPU, or of the real CPU."""
        if device == CPU:
            return self._core.get_property(device, name)
        assert device in self.available_devices
        return {
            "OPTIMIZATION_CAPABILITIES": ["FP32", "BIN", *(["FP16"] if self.computes_fp16 else [])],
            "FULL_DEVICE_NAME": PRODUCT,
            "DEVICE_TYPE": DeviceType.DISCRETE if device in self.discrete else DeviceType.INTEGRATED,
        }[name]

    def read_model(self, path: Path) -> Any:
        """Read a model."""
        return self._core.read_model(path)

    def compile_model(self, model: Any, device: str, settings: dict[str, Any]) -> Any:
        """Compile a model that reports the properties of a model on a GPU."""
        if device == CPU:
            return self._core.compile_model(model, device, settings)
        assert device in self.available_devices
        if unknown := settings.keys() - _KNOWN:
            raise RuntimeError(f"[GPU] Unsupported property {unknown}")
        hint = settings[_HINT]
        self.precisions.append(hint)
        if hint == "f16":
            path = self._folder / f"{next(self._numbers)}.xml"
            package().save_model(model, path, compress_to_fp16=True)
            model = self._core.read_model(path)
        compiled = self._core.compile_model(model, CPU, {_HINT: "f32"})
        compiled.get_property = {_HINT: getattr(package().Type, hint)}.__getitem__  # as the GPU's plugin gives it back
        return compiled
