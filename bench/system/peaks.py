"""Measures the peak operations and bytes per second of this machine.

A separate process measures, so that its libraries use exactly the requested threads and do not affect the process that
times models. Each result is the best of many short runs with all installed libraries, because no library is the fastest
on every processor.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rsrefseg.engines.errors import RSRefSegError
from rsrefseg.engines.onnxruntime.library import package
from rsrefseg.engines.records import Record

from .process import run_module

_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS")
_SIDE, _CUDA_SIDE = 1536, 8192
_MIN_SECONDS, _MIN_RUNS = 0.4, 3
_BUFFER_BYTES, _CUDA_BUFFER_BYTES = 1 << 28, 1 << 30  # larger than any cache
# ONNX model of a float32 MatMul c = a b of any size, written by `onnx.helper`, because `onnx` may not be installed.
MATMUL = (
    b"\x08\x08\x12\x00:[\x0a\x11\x0a\x01a\x0a\x01b\x12\x01c\x22\x06MatMul\x12"
    b"\x01gZ\x15\x0a\x01a\x12\x10\x0a\x0e\x08\x01\x12\x0a\x0a\x03\x12\x01m\x0a\x03\x12\x01kZ"
    b"\x15\x0a\x01b\x12\x10\x0a\x0e\x08\x01\x12\x0a\x0a\x03\x12\x01k\x0a\x03\x12\x01nb\x15\x0a\x01"
    b"c\x12\x10\x0a\x0e\x08\x01\x12\x0a\x0a\x03\x12\x01m\x0a\x03\x12\x01nB\x04\x0a\x00\x10\x0d"
)
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
_MIN_SHARE_OF_THREADS = 0.85


class Peaks(Record, frozen=True):
    """Peak performance of a device.

    Attributes:
        device: ``cpu`` or ``cuda``.
        flops_per_s: operations per second by precision of the matrix product; a multiply-add counts as 2.
        bandwidth_bytes_per_s: bandwidth of the main memory; None if unknown.
        how: libraries of the measurement, or the reason why there is none.
        threads: number of threads on a CPU; None for a GPU.
        cores_used: number of cores that the threads used while multiplying.
    """

    device: str
    flops_per_s: dict[str, float]
    bandwidth_bytes_per_s: float | None
    how: str
    threads: int | None = None
    cores_used: float | None = None

    def notes(self) -> list[str]:
        """Return a line for the report if the peaks are unknown or too low."""
        if not self.flops_per_s:
            return [f"no roofline for {self.device}: {self.how}"]
        if self.threads is None or self.cores_used is None or self.cores_used >= _MIN_SHARE_OF_THREADS * self.threads:
            return []
        return [
            f"{self.threads} threads had only {self.cores_used:.1f} cores while peaks were measured: they are too low"
        ]


def measure_peaks(threads: int, device: str = "cpu") -> Peaks:
    """Measure peak performance for about two seconds in a separate process.

    Without PyTorch, only FP32 on the CPU is measured. Values that cannot be measured are missing; no error is raised.

    Args:
        threads: number of CPU threads.
        device: ``cpu`` or ``cuda``; for other devices the result has no peaks.
    """
    if device not in ("cpu", "cuda"):
        return Peaks(device, {}, None, "its peaks cannot be measured here")
    try:
        found = run_module("rsrefseg.bench.system.peaks", [str(threads), device], dict.fromkeys(_THREADS, str(threads)))
    except RSRefSegError as error:
        return Peaks(device, {}, None, str(error))
    return Peaks(**json.loads(found))


def _peaks_of_cpu(threads: int) -> Peaks:
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


def _peaks_of_cuda() -> Peaks:
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
    """Return the higher bandwidth of reading and copying; numpy releases the interpreter lock in both."""
    source = np.ones(_BUFFER_BYTES // 4, np.float32)
    target = np.empty_like(source)
    pairs = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        read_s = _best_s(lambda: list(pool.map(lambda pair: np.dot(pair[0], pair[0]), pairs)))
        copy_s = _best_s(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs)))
    return max(source.nbytes / read_s, 2 * source.nbytes / copy_s)


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
    """Return the shortest duration of many runs in s, after an untimed run."""
    work()
    taken: list[float] = []
    end_s = time.perf_counter() + _MIN_SECONDS
    while len(taken) < _MIN_RUNS or time.perf_counter() < end_s:
        start_s = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start_s)
    return min(taken)


def _has_bf16() -> bool:
    """Return whether the processor has BF16 instructions; otherwise BF16 is slower than FP32 in PyTorch."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not _BF16_FLAGS.isdisjoint(flags)


if __name__ == "__main__":
    measured = _peaks_of_cuda() if sys.argv[2] == "cuda" else _peaks_of_cpu(int(sys.argv[1]))
    print(json.dumps(measured.to_dict()))
