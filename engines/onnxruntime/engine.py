"""A bundle on ONNX Runtime's CPU provider, and what its other providers have in common with it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ..bundle.bundle import Bundle
from ..bundle.contracts import Stage, TensorSpec
from ..engine import Arrays, Engine
from ..errors import BundleError, MissingPartError, RSRefSegError
from ..system.cores import usable_cores

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
FATAL = 4  # errors reach the caller as exceptions; on stderr they would be told twice
TYPES = {
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
    except (ImportError, OSError) as error:  # a shared library may be missing
        extra = "cpu" if device == "cpu" else "cuda"
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        return f"onnxruntime {reason}: pip install 'rsrefseg[{extra}]'"
    if PROVIDERS[device] in onnxruntime.get_available_providers():
        return None
    return (
        f"this onnxruntime {onnxruntime.__version__} has no {PROVIDERS[device]}:"
        " pip uninstall onnxruntime, then pip install 'rsrefseg[cuda]'"
    )


def not_started(provider: str, reason: str) -> str:
    """The line for a provider that this ONNX Runtime has and cannot start here."""
    cause = reason.replace(": ", ", ")  # what stands before the first colon is all that `auto` tells
    return (
        f"onnxruntime could not start {provider} ({cause}): check the driver, bring CUDA's"
        " libraries with pip install 'onnxruntime-gpu[cuda,cudnn]', or use --backend onnxruntime"
    )


class OnnxRuntimeEngine(Engine):
    """Runs every stage in an ONNX Runtime session of its own, and never on another provider than the one asked for.

    Safe among threads.

    Args:
        bundle: what to run.
        threads: threads within an operator; default is the cores this process may use.
        device: ``cpu``, or what a subclass brings.

    Raises:
        MissingPartError: ONNX Runtime or its provider for the device is not installed.
    """

    loads_together = True

    def __init__(self, bundle: Bundle, threads: int | None = None, device: str = "cpu") -> None:
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
        options.log_severity_level = FATAL
        options.intra_op_num_threads = self._threads or usable_cores()
        if self._device == "cpu":
            _keep_lean(options)
        for key, value in self._session_entries().items():
            options.add_session_config_entry(key, value)
        provider = PROVIDERS[self._device]
        try:
            # With its fallback a provider that fails is replaced by the CPU, and the reason printed on standard output.
            session = onnxruntime.InferenceSession(
                str(path), options, providers=[(provider, self._provider_options(stage))], enable_fallback=0
            )
        except Exception as error:  # its error classes share no base but Exception
            raise self._load_error(path, error) from error
        if (runs := session.get_providers()[0]) != provider:
            raise MissingPartError(not_started(provider, f"it offered {runs}"))
        contract = self.bundle.manifest.stages[stage].contract
        _check_face(path.name, "inputs", session.get_inputs(), contract.inputs)
        _check_face(path.name, "outputs", session.get_outputs(), contract.outputs)
        self._sessions[stage] = session

    def _session_entries(self) -> dict[str, str]:
        """Settings of a session, by ONNX Runtime's own keys.

        Every stage has threads of its own. Left spinning after their run they take the cores from the next stage: on
        two cores that made each stage five times slower.
        """
        return {"session.force_spinning_stop": "1"}

    def _provider_options(self, stage: Stage) -> dict[str, str]:
        """Options of the provider for a stage, by its own names."""
        return {}

    def _load_error(self, path: Path, error: Exception) -> RSRefSegError:
        """What it means that a graph cannot be loaded."""
        import onnxruntime

        return BundleError(f"onnxruntime {onnxruntime.__version__} cannot load '{path}': {one_line(error)}")

    def _run(self, stage: Stage, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        names = [spec.name for spec in self.bundle.manifest.stages[stage].contract.outputs]
        try:
            results = self._sessions[stage].run(names, dict(feeds))
        except Exception as error:  # as above
            raise self._run_error(stage, error) from error
        return dict(zip(names, results, strict=True))

    def _run_error(self, stage: Stage, error: Exception) -> RSRefSegError:
        return RSRefSegError(f"stage '{stage}' failed in {self.name}: {one_line(error)}")


def _keep_lean(options: Any) -> None:
    """Plan no memory, but keep what a run took.

    By default a session takes more for its second run, which follows a plan made in the first, one for each number of
    phrases. Without plans preset b's peak at a second picture was 5.1 GB instead of 6.4 (2 cores, 2026-11-25, weights
    of 3.85 GB). To give back what the image encoders took would save 0.4 GB between pictures and nothing of the peak,
    and ask for every operator's pages anew: 7.2 s of a core's time in SAM's encoder instead of 6.1 (2026-11-26).
    Huge pages (``GLIBC_TUNABLES=glibc.malloc.hugetlb=1``, all from the heap) leave 31,000 of 965,000 page faults of
    loading, and nothing that stands out of the noise of loading and answering (Zen 3, 2026-11-27).
    """
    options.enable_mem_pattern = False


def _check_face(file: str, kind: str, found: list[Any], specs: tuple[TensorSpec, ...]) -> None:
    """A graph whose names and types are not those of its contract belongs to another bundle."""
    have = {node.name: TYPES.get(node.type, node.type) for node in found}
    want = {spec.name: spec.dtype for spec in specs}
    if have != want:
        raise BundleError(f"the {kind} of '{file}' are {have}, its contract says {want}: export the bundle again")


def one_line(error: Exception) -> str:
    """What an error says, without line breaks and not too long; CUDA's part alone where it has one."""
    text = " ".join(str(error).split())
    by_cuda = re.search(r"CU\w+ failure \d+: [^;]*[^; ]", text)
    return (by_cuda[0] if by_cuda else text)[:300]
