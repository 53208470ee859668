"""Values of the double of the CUDA runtime: statuses, handles, and work for the GPU."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum


class RuleBroken(AssertionError):
    """The product made a call that leads to wrong results on real hardware."""


class DeviceFault(Exception):
    """Work on the GPU failed; reported when the host waits."""


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorUnknown = 999


_KINDS = {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2, "cudaMemcpyDeviceToDevice": 3}
cudaMemcpyKind = IntEnum("cudaMemcpyKind", _KINDS)
cudaStreamCaptureMode = IntEnum("cudaStreamCaptureMode", {"cudaStreamCaptureModeThreadLocal": 1})

Clock = dict[int, int]  # how far each stream is known to be done, by number of operations


@dataclass(frozen=True)
class Access:
    """A range of memory that an operation reads or writes."""

    start: int
    end: int
    writes: bool


@dataclass
class Operation:
    """Work for the GPU. ``check`` runs when a graph that contains it is launched."""

    name: str
    do: Callable[[], None]
    accesses: tuple[Access, ...] = ()
    check: Callable[[], None] = lambda: None


@dataclass
class Handle:
    """A stream, event or graph, as an integer and as an object."""

    number: int

    def __int__(self) -> int:
        return self.number


@dataclass
class Stream(Handle):
    issued: list[Operation] = field(default_factory=list)
    done: int = 0
    clock: Clock = field(default_factory=dict)
    captured: list[Operation] | None = None
    capture_broken: bool = False


@dataclass
class Event(Handle):
    stream: Stream | None = None
    after: int = 0
    clock: Clock = field(default_factory=dict)
    destroyed: bool = False


@dataclass
class Graph(Handle):
    operations: list[Operation] = field(default_factory=list)


@dataclass(frozen=True)
class Properties:
    name: bytes = b"Double of a GPU"
    major: int = 8
    minor: int = 7
    multiProcessorCount: int = 16
