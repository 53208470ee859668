"""GPU memory that outlives a call, and pinned host memory for copies to and from it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RSRefSegError
from .cuda import Cuda

_ALIGNMENT = 256  # bytes; TensorRT requires it of activation memory, and cudaMalloc guarantees it


def aligned(size_bytes: int) -> int:
    """Round a size up to a multiple of 256 bytes, at least 256."""
    return max(1, -(-size_bytes // _ALIGNMENT)) * _ALIGNMENT


@dataclass(slots=True, eq=False)
class _Block:
    """GPU memory, and the event after the last write to it."""

    address: int
    size_bytes: int
    ready: Any


class DeviceTensor:
    """An array on the GPU. Its memory returns to the pool when the tensor is deleted."""

    __slots__ = ("_block", "_pool", "dtype", "shape")

    def __init__(self, pool: "DevicePool", block: _Block, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._pool, self._block = pool, block
        self.shape, self.dtype = shape, dtype

    def __del__(self) -> None:
        self._pool.give_back(self._block)

    @property
    def address(self) -> int:
        """The GPU address of its memory.

        Raises:
            RSRefSegError: the engine that created the tensor was closed.
        """
        if self._pool.closed:
            raise RSRefSegError("these features were freed when their engine was closed: encode image and phrase again")
        return self._block.address

    @property
    def size_bytes(self) -> int:
        """Size of its elements in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def ready(self) -> Any:
        """The event after the last write, as ``written`` recorded it."""
        return self._block.ready

    def written(self, stream: Any) -> None:
        """Record that the work enqueued on a stream so far writes the tensor."""
        self._pool.cuda.record(self._block.ready, stream)


class DevicePool:
    """A pool that keeps GPU memory for the next tensor of the same size, because freeing memory stops the GPU."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.closed = False
        self._blocks: list[_Block] = []
        self._spare: dict[int, list[_Block]] = {}
        self._lock = threading.RLock()  # tensors may be deleted in any thread while one is created

    def tensor(self, shape: tuple[int, ...], dtype: str, stream: Any) -> DeviceTensor:
        """Return a tensor whose memory ``stream`` may write from now on."""
        numpy_dtype = np.dtype(dtype)
        size = aligned(int(np.prod(shape)) * numpy_dtype.itemsize)
        with self._lock:
            spare = self._spare.get(size)
            block = spare.pop() if spare else None
        if block is None:
            block = _Block(self.cuda.allocate(size, "for tensors"), size, self.cuda.make_event())
            self._blocks.append(block)
        # Another stream may still be writing the previous tensor.
        self.cuda.wait_in_stream(stream, block.ready)
        return DeviceTensor(self, block, shape, numpy_dtype)

    def give_back(self, block: _Block) -> None:
        """Keep the memory of a deleted tensor for the next tensor of the same size."""
        with self._lock:
            if not self.closed:
                self._spare.setdefault(block.size_bytes, []).append(block)

    def close(self, free: Callable[..., None]) -> None:
        """Free all memory through ``free``. Existing tensors become unusable."""
        with self._lock:
            self.closed = True
            self._spare.clear()
        for block in self._blocks:
            free(self.cuda.free, block.address)
            free(self.cuda.free_event, block.ready)
        self._blocks.clear()


@dataclass(slots=True)
class _Pinned:
    """Pinned host memory for the copies of one tensor, and the event after the last copy."""

    address: int
    view: npt.NDArray[np.uint8]
    used: Any


class Staging:
    """Pinned host memory with one buffer per name, which grows when needed."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._pieces: dict[str, _Pinned] = {}

    def upload(self, name: str, array: npt.NDArray[Any], device: int, stream: Any) -> None:
        """Enqueue a copy of an array to the GPU. The array may change after the call."""
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        piece = self._piece(f"in {name}", source.size)
        self._cuda.wait_for_event(piece.used)
        piece.view[: source.size] = source
        self._cuda.copy_in(device, piece.address, source.size, stream)
        self._cuda.record(piece.used, stream)

    def download(
        self, name: str, device: int, shape: tuple[int, ...], dtype: str, stream: Any
    ) -> Callable[[], npt.NDArray[Any]]:
        """Enqueue a copy from the GPU; return a function that returns the array after the stream is done."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        piece = self._piece(f"out {name}", size)
        self._cuda.copy_out(piece.address, device, size, stream)
        self._cuda.record(piece.used, stream)
        return lambda: piece.view[:size].view(dtype).reshape(shape).copy()

    def close(self, free: Callable[..., None]) -> None:
        """Free all memory through ``free``."""
        for piece in self._pieces.values():
            free(self._cuda.free_pinned, piece.address)
            free(self._cuda.free_event, piece.used)
        self._pieces.clear()

    def _piece(self, name: str, size_bytes: int) -> _Pinned:
        piece = self._pieces.get(name)
        if piece is None or piece.view.size < size_bytes:
            address, view = self._cuda.allocate_pinned(aligned(size_bytes))
            if piece is not None:
                self._cuda.wait_for_event(piece.used)
                self._cuda.free_pinned(piece.address)
            piece = _Pinned(address, view, self._cuda.make_event() if piece is None else piece.used)
            self._pieces[name] = piece
        return piece
