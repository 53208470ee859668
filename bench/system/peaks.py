"""What this machine can do at most: floating-point operations and bytes per second, measured on the spot.

In a process of its own, so that the thread counts of its libraries are those asked for and nothing of them stays behind
in the process that measures. Each figure is the best of many short runs: what a moment of a busy machine allows. No
library knows every processor: of those that are here the fastest counts (of FP32 on AMD processors with wide AVX-512,
PyTorch's and numpy's reached 54% of ONNX Runtime's).
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rsrefseg.engines.onnxruntime.library import package

from ..latency.timing import take_times

_COMMAND = ("-P", "-m", "rsrefseg.bench.system.peaks")
_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS")
_SIDE, _CUDA_SIDE = 1536, 8192
_SECONDS = 0.4
_LEAST_RUNS = 3
# Far beyond any cache.
_BUFFER_BYTES, _CUDA_BUFFER_BYTES = 1 << 28, 1 << 30
# An ONNX model of one MatMul, c = a b, in float32 of any size, as `onnx.helper` makes it; `onnx` need not be installed.
MATMUL = (
    b"\x08\x08\x12\x00:[\x0a\x11\x0a\x01a\x0a\x01b\x12\x01c\x22\x06MatMul\x12"
    b"\x01gZ\x15\x0a\x01a\x12\x10\x0a\x0e\x08\x01\x12\x0a\x0a\x03\x12\x01m\x0a\x03\x12\x01kZ"
    b"\x15\x0a\x01b\x12\x10\x0a\x0e\x08\x01\x12\x0a\x0a\x03\x12\x01k\x0a\x03\x12\x01nb\x15\x0a\x01"
    b"c\x12\x10\x0a\x0e\x08\x01\x12\x0a\x0a\x03\x12\x01m\x0a\x03\x12\x01nB\x04\x0a\x00\x10\x0d"
)
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_LEAST_OF_THREADS = 0.85


@dataclass(frozen=True, slots=True)
class Peaks:
    """The most a device can do.

    Attributes:
        device: ``cpu`` or ``cuda``.
        flops_per_s: by precision of the matrix product, 2 for each multiply-add.
        bandwidth_bytes_per_s: of its main memory; ``None`` if unknown.
        how: what it was measured with, or why it was not.
        threads: that a CPU was asked with; ``None`` for a GPU.
        cores_used: that it really had while multiplying.
    """

    device: str
    flops_per_s: Mapping[str, float]
    bandwidth_bytes_per_s: float | None
    how: str
    threads: int | None = None
    cores_used: float | None = None

    def notes(self) -> list[str]:
        """A line for the report where the peaks are not what the device can do, or are not known."""
        if not self.flops_per_s:
            return [f"no floor for {self.device}: {self.how}"]
        if self.threads is None or self.cores_used is None or self.cores_used >= _LEAST_OF_THREADS * self.threads:
            return []
        return [
            f"{self.threads} threads had only {self.cores_used:.1f} cores while the peaks were measured:"
            " floors are too high, shares of them too"
        ]

    def or_better(self, again: "Peaks") -> "Peaks":
        """The better of two measurements, figure by figure: a busy moment lowers a peak, and nothing raises it."""
        flops = {
            name: max(found.get(name, 0.0) for found in (self.flops_per_s, again.flops_per_s))
            for name in {**self.flops_per_s, **again.flops_per_s}
        }
        bandwidths = [found.bandwidth_bytes_per_s for found in (self, again) if found.bandwidth_bytes_per_s is not None]
        cores = [found.cores_used for found in (self, again) if found.cores_used is not None]
        # Measured again with more libraries, a peak may be that of any of them.
        told = (part for found in (self, again) if found.flops_per_s for part in found.how.split("; "))
        how = "; ".join(dict.fromkeys(told)) or self.how
        return Peaks(self.device, flops, max(bandwidths, default=None), how, self.threads, max(cores, default=None))

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def measure_peaks(threads: int, device: str = "cpu") -> Peaks:
    """Measure for about two seconds, besides starting a process; without torch FP32 alone, and on the CPU alone.

    Args:
        threads: of a CPU.
        device: ``cpu`` or ``cuda``; of any other nothing is known.
    """
    if device not in ("cpu", "cuda"):
        return Peaks(device, {}, None, "its peaks cannot be measured here")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    environment |= dict.fromkeys(_THREADS, str(threads))
    command = [sys.executable, *_COMMAND, str(threads), device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return Peaks(device, {}, None, lines[-1] if lines else f"its process ended with {done.returncode}")
    return Peaks(**json.loads(done.stdout))


def main() -> None:
    """Entry point of the new process: threads and device as arguments, JSON on standard output."""
    threads, device = int(sys.argv[1]), sys.argv[2]
    print(json.dumps((_of_cuda() if device == "cuda" else _of_cpu(threads)).as_dict()))


def _of_cpu(threads: int) -> Peaks:
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    found = {"fp32": _numpy_flops_per_s()}
    cores = (time.process_time() - start_cpu_s) / (time.perf_counter() - start_s)
    libraries = [f"numpy {np.__version__}"]
    bandwidth = _numpy_bandwidth(threads)
    if find_spec("onnxruntime") is not None:
        onnxruntime = package()
        libraries.append(f"onnxruntime {onnxruntime.__version__}")
        found["fp32"] = max(found["fp32"], _onnxruntime_flops_per_s(onnxruntime, threads))
    if find_spec("torch") is not None:
        import torch

        torch.set_num_threads(threads)
        libraries.append(f"torch {torch.__version__}")
        found["fp32"] = max(found["fp32"], _torch_flops_per_s(torch, torch.float32, "cpu", _SIDE))
        if _has_bf16():
            found["bf16"] = _torch_flops_per_s(torch, torch.bfloat16, "cpu", _SIDE)
    return Peaks("cpu", found, bandwidth, ", ".join(libraries), threads, cores)


def _of_cuda() -> Peaks:
    import torch

    kinds = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    torch.backends.cuda.matmul.allow_tf32 = False
    found = {name: _torch_flops_per_s(torch, kind, "cuda", _CUDA_SIDE) for name, kind in kinds.items()}
    source = torch.ones(_CUDA_BUFFER_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    bandwidth = 2 * _CUDA_BUFFER_BYTES / _best_s(copy)
    return Peaks("cuda", found, bandwidth, f"torch {torch.__version__} on {torch.cuda.get_device_name()}")


def _numpy_flops_per_s() -> float:
    one, other = (np.full((_SIDE, _SIDE), value, np.float32) for value in (0.5, 2.0))
    product = np.empty_like(one)
    return 2 * _SIDE**3 / _best_s(lambda: np.matmul(one, other, out=product))


def _onnxruntime_flops_per_s(onnxruntime: Any, threads: int) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(MATMUL, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in (("a", 0.5), ("b", 2.0)):
        binding.bind_cpu_input(name, np.full((_SIDE, _SIDE), value, np.float32))
    product = onnxruntime.OrtValue.ortvalue_from_numpy(np.empty((_SIDE, _SIDE), np.float32))
    binding.bind_ortvalue_output("c", product)
    return 2 * _SIDE**3 / _best_s(lambda: session.run_with_iobinding(binding))


def _numpy_bandwidth(threads: int) -> float:
    """The better of reading and copying, in as many threads: numpy lets go of the interpreter meanwhile."""
    source = np.ones(_BUFFER_BYTES // 4, np.float32)
    target = np.empty_like(source)
    pairs = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:

        def each(work: Callable[[Any], Any]) -> Callable[[], Any]:
            return lambda: list(pool.map(work, pairs))

        read = source.nbytes / _best_s(each(lambda pair: np.dot(pair[0], pair[0])))
        copied = 2 * source.nbytes / _best_s(each(lambda pair: np.copyto(pair[1], pair[0])))
    return max(read, copied)


def _torch_flops_per_s(torch: Any, kind: Any, device: str, side: int) -> float:
    one, other = (torch.full((side, side), value, dtype=kind, device=device) for value in (0.5, 2.0))
    product = torch.empty_like(one)

    def multiply() -> None:
        torch.mm(one, other, out=product)
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        return 2 * side**3 / _best_s(multiply)


def _best_s(work: Callable[[], Any]) -> float:
    """Seconds of the shortest of many runs, after one that does not count."""
    work()
    return min(one.clock_s for one in take_times(work, _LEAST_RUNS, _SECONDS))


def _has_bf16() -> bool:
    """Whether the processor multiplies BF16 itself; where it does not, torch would be slower than in FP32."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return not _BF16_FLAGS.isdisjoint(told.split())


if __name__ == "__main__":
    main()
