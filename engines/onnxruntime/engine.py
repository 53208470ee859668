"""Runs a bundle on ONNX Runtime's CPU provider. Also the base of the CUDA engine."""

from collections.abc import Mapping
from typing import Any

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage
from ..engine import Engine, Tensors, check_signature, one_line
from ..errors import BundleError, MissingPartError, NotInstalledError, RSRefSegError
from ..system.cores import usable_cores
from .library import package

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
FATAL = 4  # log severity: errors reach the caller as exceptions, and stderr would repeat them
TYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
}
_FAULTS_OF_A_GRAPH = {"InvalidGraph", "InvalidProtobuf", "NoSuchFile"}  # the names of ONNX Runtime's error classes


def unavailable_reason(device: str) -> str | None:
    """Return why ONNX Runtime has no provider for ``cpu`` or ``cuda``, with a hint; ``None`` if it has one."""
    try:
        onnxruntime = package()
    except (ImportError, OSError) as error:  # a shared library may be missing
        extra = "cpu" if device == "cpu" else "cuda"
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        return f"onnxruntime {reason}: pip install 'rsrefseg[{extra}]'"
    if PROVIDERS[device] in onnxruntime.get_available_providers():
        return None
    return (
        f"this onnxruntime {onnxruntime.__version__} has no {PROVIDERS[device]}:"
        " pip uninstall onnxruntime onnxruntime-gpu, then pip install 'rsrefseg[cuda]'"
    )


def not_started(provider: str, reason: str) -> str:
    """Return the message for a provider that is installed and fails to start."""
    cause = reason.replace(": ", ", ")  # `auto` reports the part before the first colon
    return (
        f"onnxruntime could not start {provider} ({cause}): check the driver, install CUDA's"
        " libraries with pip install 'onnxruntime-gpu[cuda,cudnn]', or use --backend onnxruntime"
    )


class OnnxRuntimeEngine(Engine):
    """Runs every stage in a separate ONNX Runtime session, and only on the requested provider.

    Args:
        bundle: the bundle to run.
        threads: number of threads within an operator; by default the cores this process may use.
        device: ``cpu``, or ``cuda`` for the subclass.

    Raises:
        MissingPartError: ONNX Runtime or its provider for the device is not installed.
    """

    loads_together = True

    def __init__(self, bundle: Bundle, threads: int | None = None, device: str = "cpu") -> None:
        super().__init__(bundle)
        if (reason := unavailable_reason(device)) is not None:
            raise NotInstalledError(reason)
        self.name = "onnxruntime" if device == "cpu" else f"onnxruntime-{device}"
        self._device = device
        self._threads = threads

    def provider_of(self, stage: Stage) -> str:
        """Return the execution provider of the stage's session."""
        return str(self._loaded(stage).get_providers()[0])

    def _load(self, stage: Stage) -> Any:
        return self._session(stage, {}, {})

    def _session(self, stage: Stage, entries: Mapping[str, str], provider_options: Mapping[str, str]) -> Any:
        """Create the session of a stage, with extra entries for session and provider by ONNX Runtime's keys."""
        onnxruntime, path = package(), self.bundle.graph_path(stage)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL
        options.intra_op_num_threads = self._threads or usable_cores()
        if self._device == "cpu":
            # Each number of phrases would have its own memory plan, which keeps its own memory.
            options.enable_mem_pattern = False
        # Every stage has its own threads: if they spin after a run, they take the cores from the next stage.
        for key, value in {"session.force_spinning_stop": "1", **entries}.items():
            options.add_session_config_entry(key, value)
        provider = PROVIDERS[self._device]
        try:
            # The fallback would replace a provider that fails by the CPU, and print the reason on standard output.
            session = onnxruntime.InferenceSession(
                str(path), options, providers=[(provider, dict(provider_options))], enable_fallback=0
            )
        except Exception as error:  # its error classes share no base but Exception
            reason = one_line(error)
            if self._device == "cpu" or type(error).__name__ in _FAULTS_OF_A_GRAPH:
                raise BundleError(f"onnxruntime {onnxruntime.__version__} cannot load '{path}': {reason}") from error
            # The file was verified, so the device is the cause, for example because its memory is full.
            raise MissingPartError(not_started(f"'{path.name}' on {provider}", reason)) from error
        if (runs := session.get_providers()[0]) != provider:
            raise MissingPartError(not_started(provider, f"it offered {runs}"))
        inputs, outputs = (
            {node.name: TYPES.get(node.type, node.type) for node in nodes}
            for nodes in (session.get_inputs(), session.get_outputs())
        )
        check_signature(path.name, self.contract(stage), inputs, outputs)
        return session

    def _run(self, stage: Stage, model: Any, feeds: Mapping[str, Any]) -> Tensors:
        names = [spec.name for spec in self.contract(stage).outputs]
        try:
            return dict(zip(names, model.run(names, dict(feeds)), strict=True))
        except Exception as error:  # its error classes share no base but Exception
            raise self._run_error(stage, error) from error

    def _run_error(self, stage: Stage, error: Exception) -> RSRefSegError:
        return RSRefSegError(f"stage '{stage}' failed in {self.name}: {one_line(error)}")
