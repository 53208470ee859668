"""A double of the CUDA runtime's Python bindings (``cuda.bindings.runtime``), which enforces the rules of a GPU.

Work on a stream runs when the host waits for it, not earlier. Memory that was never written contains poison, and freed
memory is inaccessible. Two streams break a rule if they access the same memory, one of them writing, without an event
in between; so does a copy from or to host memory that is not pinned. Broken rules raise ``RuleBroken``, which no
product code catches; injected faults return the status of CUDA.
"""

import ctypes
import functools
import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from tests.support.doubles.cuda_values import (
    Access,
    Clock,
    DeviceFault,
    Event,
    Graph,
    Operation,
    Properties,
    RuleBroken,
    Stream,
    cudaError_t,
    cudaMemcpyKind,
    cudaStreamCaptureMode,
)

POISON = 0xFF  # NaN in every floating-point type
_FIRST_ADDRESS = 0x7000_0000_0000  # of no real memory: the host cannot touch it by mistake
_OK = cudaError_t.cudaSuccess
_DONE = Operation("done", lambda: None)


class CudaDouble:
    """One GPU."""

    def __init__(self) -> None:
        self.faults: dict[str, cudaError_t] = {}  # status to answer with, by name of the call; planted by tests
        self.properties = Properties()
        self.driver = 13000
        self.launched = 0  # CUDA graphs so far
        self._numbers = itertools.count(1)
        self._next_address = _FIRST_ADDRESS
        self._memory: dict[int, np.ndarray] = {}
        self._pinned: dict[int, Any] = {}
        self._streams: dict[int, Stream] = {}
        self._log: list[tuple[int, int, Access, str]] = []
        self._host: Clock = {}
        self._sticky = _OK

    @property
    def held(self) -> dict[str, int]:
        """Return allocations that are not freed."""
        return {"device": len(self._memory), "pinned": len(self._pinned), "streams": len(self._streams)}

    def view(self, address: int, size: int) -> np.ndarray:
        """Return bytes of the GPU's memory, for work that runs on it."""
        for base, data in self._memory.items():
            if base <= address and address + size <= base + data.size:
                return data[address - base : address - base + size]
        raise DeviceFault(cudaError_t.cudaErrorIllegalAddress)

    def give(self, stream_number: int, operation: Operation) -> None:
        """Add work to a stream."""
        stream = self._streams[stream_number]
        if stream.captured is not None:
            stream.captured.append(operation)
            return
        stream.issued.append(operation)
        clock = _merged(stream.clock, self._host)
        for access in operation.accesses:
            for number, index, other, name in self._log:
                overlap = access.start < other.end and other.start < access.end
                unordered = number != stream_number and clock.get(number, 0) < index
                if overlap and unordered and (access.writes or other.writes):
                    raise RuleBroken(f"{operation.name} and {name} use the same memory at the same time")
        index = len(stream.issued)
        stream.clock = clock | {stream_number: index}
        self._log += [(stream_number, index, access, operation.name) for access in operation.accesses]

    def module(self) -> ModuleType:
        """Return the double as the module ``cuda.bindings.runtime``."""
        module = ModuleType("cuda.bindings.runtime", "A double: no GPU.")
        for name in dir(self):
            if name.startswith("cuda"):
                setattr(module, name, self._guarded(name))
        for enum in (cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode):
            setattr(module, enum.__name__, enum)
        module.__dict__.update(cudaStreamNonBlocking=1, cudaEventDisableTiming=2, cudaHostAllocDefault=0)
        return module

    def _guarded(self, name: str) -> Callable[..., tuple[Any, ...]]:
        call = getattr(self, name)

        @functools.wraps(call)
        def guarded(*arguments: Any) -> tuple[Any, ...]:
            if (status := self.faults.get(name, _OK)) != _OK:
                if name == "cudaStreamEndCapture":  # which ends it even so
                    call(*arguments)
                return (status, None)
            return call(*arguments)

        return guarded

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return _OK, self.driver

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return _OK, 1

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        return _OK, self.properties

    def cudaGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return _OK, f"double of {cudaError_t(error).name}".encode()

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if self._spoils_capture():
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        address = self._next_address
        self._next_address += -(-size // 256) * 256 + 256
        self._memory[address] = np.full(size, POISON, np.uint8)
        return _OK, address

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        if self._spoils_capture():
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self._finish_all()
        if self._memory.pop(devPtr, None) is None:
            raise RuleBroken(f"freed {devPtr:#x}, which is not allocated")
        return (_OK,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        memory = (ctypes.c_uint8 * size)()
        ctypes.memset(memory, POISON, size)
        address = ctypes.addressof(memory)
        self._pinned[address] = memory
        return _OK, address

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        self._finish_all()
        memory = self._pinned.pop(ptr, None)
        if memory is None:
            raise RuleBroken("freed pinned memory that is not allocated")
        ctypes.memset(memory, POISON, len(memory))
        return (_OK,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Any) -> tuple[Any, ...]:
        to_host = kind == cudaMemcpyKind.cudaMemcpyDeviceToHost
        from_host = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        for host in [dst] * to_host + [src] * from_host:
            if not any(base <= host and host + count <= base + len(memory) for base, memory in self._pinned.items()):
                raise RuleBroken("an asynchronous copy from or to host memory that is not pinned")

        def copy() -> None:
            source = bytes((ctypes.c_uint8 * count).from_address(src)) if from_host else bytes(self.view(src, count))
            if to_host:
                ctypes.memmove(dst, source, count)
            else:
                self.view(dst, count)[:] = np.frombuffer(source, np.uint8)

        accesses = (Access(src, src + count, False), Access(dst, dst + count, True))
        self.give(int(stream), Operation(f"a copy of {count} bytes", copy, accesses))
        return (_OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        stream = Stream(next(self._numbers))
        self._streams[stream.number] = stream
        return _OK, stream

    def cudaStreamDestroy(self, stream: Any) -> tuple[Any, ...]:
        del self._streams[int(stream)]
        return (_OK,)

    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any, ...]:
        if self._spoils_capture():
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self._finish(stream, len(stream.issued))
        self._host = _merged(self._host, stream.clock)
        self._forget()
        return (self._sticky,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return _OK, Event(next(self._numbers))

    def cudaEventDestroy(self, event: Any) -> tuple[Any, ...]:
        event.destroyed = True
        return (_OK,)

    def cudaEventRecord(self, event: Any, stream: Any) -> tuple[Any, ...]:
        _check_event(event)
        event.stream, event.after = stream, len(stream.issued)
        event.clock = _merged(stream.clock, self._host)
        return (_OK,)

    def cudaEventSynchronize(self, event: Any) -> tuple[Any, ...]:
        _check_event(event)
        if event.stream is not None:
            self._finish(event.stream, event.after)
            self._host = _merged(self._host, event.clock)
            self._forget()
        return (self._sticky,)

    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> tuple[Any, ...]:
        _check_event(event)
        other, after = event.stream, event.after
        if other is not None:
            stream.clock = _merged(stream.clock, event.clock)
            self.give(int(stream), Operation("a wait", lambda: self._finish(other, after)))
        return (_OK,)

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> tuple[Any, ...]:
        stream.captured, stream.capture_broken = [], False
        return (_OK,)

    def cudaStreamEndCapture(self, stream: Any) -> tuple[Any, ...]:
        operations, stream.captured = stream.captured, None
        if stream.capture_broken:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return _OK, Graph(next(self._numbers), operations)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        return _OK, Graph(next(self._numbers), list(graph.operations))

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        graph.operations = None
        return (_OK,)

    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> tuple[Any, ...]:
        if not graphExec.operations:
            raise RuleBroken("launched a graph that is empty or was freed")
        self.launched += 1
        for operation in graphExec.operations:
            operation.check()
            self.give(int(stream), operation)
        return (_OK,)

    def cudaGraphExecDestroy(self, graphExec: Any) -> tuple[Any, ...]:
        graphExec.operations = None
        return (_OK,)

    def _finish(self, stream: Stream, count: int) -> None:
        while stream.done < count:
            operation = stream.issued[stream.done]
            stream.issued[stream.done] = _DONE
            stream.done += 1
            if self._sticky == _OK:
                try:
                    operation.do()
                except DeviceFault as fault:
                    self._sticky = fault.args[0]

    def _finish_all(self) -> None:
        for stream in self._streams.values():
            self._finish(stream, len(stream.issued))
            self._host = _merged(self._host, stream.clock)
        self._forget()

    def _forget(self) -> None:
        """Remove work that the host knows to be finished."""
        self._log = [entry for entry in self._log if self._host.get(entry[0], 0) < entry[1]]

    def _spoils_capture(self) -> bool:
        capturing = [stream for stream in self._streams.values() if stream.captured is not None]
        for stream in capturing:
            stream.capture_broken = True
        return bool(capturing)


def _check_event(event: Any) -> None:
    if event.destroyed:
        raise RuleBroken("used an event that was destroyed")


def _merged(one: Clock, other: Clock) -> Clock:
    return {number: max(one.get(number, 0), other.get(number, 0)) for number in one.keys() | other.keys()}
