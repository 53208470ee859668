"""A bundle on ONNX Runtime, on the CPU or a CUDA device."""

import os
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from engines.bundle import Bundle
from engines.contracts import Stage, TensorSpec
from engines.engine import Arrays, Engine
from engines.errors import BundleError, MissingPartError, RSRefSegError

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FATAL = 4  # errors reach the caller as exceptions; on stderr they would be told twice
_TYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
}


def why_unavailable(device: str) -> str | None:
    """Why ONNX Runtime cannot run on ``cpu`` or ``cuda`` here, with the way out; ``None`` when it says it can."""
    try:
        import onnxruntime
    except ImportError as error:
        extra = "cpu" if device == "cpu" else "cuda"
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        return f"onnxruntime {reason}: pip install 'rsrefseg[{extra}]'"
    if _PROVIDERS[device] in onnxruntime.get_available_providers():
        return None
    return (
        f"this onnxruntime {onnxruntime.__version__} has no {_PROVIDERS[device]}:"
        " pip uninstall onnxruntime, then pip install 'rsrefseg[cuda]'"
    )


class OnnxRuntimeEngine(Engine):
    """Runs every stage in an ONNX Runtime session of its own, and never on another device than the one asked for.

    Args:
        bundle: what to run.
        device: ``cpu`` or ``cuda``.
        threads: threads within an operator; default is the cores this process may use.

    Raises:
        MissingPartError: ONNX Runtime or its provider for the device is not installed.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu", threads: int | None = None) -> None:
        super().__init__(bundle)
        if (reason := why_unavailable(device)) is not None:
            raise MissingPartError(reason)
        self.name = "onnxruntime" if device == "cpu" else f"onnxruntime-{device}"
        self._device = device
        self._threads = threads
        self._sessions: dict[Stage, Any] = {}

    def provider_of(self, stage: Stage) -> str:
        """The execution provider of the stage's session."""
        self.load(stage)
        return str(self._sessions[stage].get_providers()[0])

    def close(self) -> None:
        """Free all sessions."""
        self._sessions.clear()
        super().close()

    def _load(self, stage: Stage) -> None:
        import onnxruntime

        path = self.bundle.graph_path(stage)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = self._threads or usable_cores()
        # Every stage has threads of its own. Left spinning after their run they take the cores from the next stage:
        # on two cores that made each stage five times slower.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        provider = _PROVIDERS[self._device]
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # its error classes share no base but Exception
            raise BundleError(f"onnxruntime {onnxruntime.__version__} cannot load '{path}': {_line(error)}") from error
        session.disable_fallback()
        if (runs := session.get_providers()[0]) != provider:
            raise MissingPartError(
                f"onnxruntime could not start {provider} (it offered {runs}): check the driver and CUDA libraries,"
                " or use --backend onnxruntime"
            )
        contract = self.bundle.manifest.stages[stage].contract
        _check_face(path.name, "inputs", session.get_inputs(), contract.inputs)
        _check_face(path.name, "outputs", session.get_outputs(), contract.outputs)
        self._sessions[stage] = session

    def _run(self, stage: Stage, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        names = [spec.name for spec in self.bundle.manifest.stages[stage].contract.outputs]
        try:
            results = self._sessions[stage].run(names, dict(feeds))
        except Exception as error:  # as above
            raise RSRefSegError(f"stage '{stage}' failed in {self.name}: {_line(error)}") from error
        return dict(zip(names, results, strict=True))


def usable_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_face(file: str, kind: str, found: list[Any], specs: tuple[TensorSpec, ...]) -> None:
    """A graph whose names and types are not those of its contract belongs to another bundle."""
    have = {node.name: _TYPES.get(node.type, node.type) for node in found}
    want = {spec.name: spec.dtype for spec in specs}
    if have != want:
        raise BundleError(f"the {kind} of '{file}' are {have}, its contract says {want}: export the bundle again")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
