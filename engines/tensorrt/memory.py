"""GPU memory that outlives a call, and pinned host memory for copies to and from it."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import RSRefSegError
from .cuda import Cuda


def aligned(size_bytes: int) -> int:
    """Round a size up to a multiple of 256 bytes, as TensorRT requires of activation memory; at least 256."""
    return max(1, -(-size_bytes // 256)) * 256


class _Block(NamedTuple):
    """GPU memory, and the event after the last write to it."""

    address: int
    size_bytes: int
    ready: Any


class DeviceTensor:
    """An array on the GPU. Its memory returns to the pool when the tensor is deleted."""

    __slots__ = ("_block", "_pool", "dtype", "shape", "size_bytes")

    def __init__(self, pool: "DevicePool", block: _Block, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._pool, self._block = pool, block
        self.shape, self.dtype = shape, dtype
        self.size_bytes = int(np.prod(shape)) * dtype.itemsize

    def __del__(self) -> None:
        self._pool.spare[self._block.size_bytes].append(self._block)

    @property
    def address(self) -> int:
        """The GPU address of its memory.

        Raises:
            RSRefSegError: the engine that created the tensor was closed.
        """
        return self._open().address

    def wait(self, stream: Any) -> None:
        """Make a stream wait for the last write; raises as ``address`` does."""
        self._pool.cuda.call("cudaStreamWaitEvent", stream, self._open().ready, 0)

    def written(self, stream: Any) -> None:
        """Record that the work enqueued on a stream so far writes the tensor; raises as ``address`` does."""
        self._pool.cuda.call("cudaEventRecord", self._open().ready, stream)

    def _open(self) -> _Block:
        if self._pool.closed:
            raise RSRefSegError("these features were freed when their engine was closed: encode image and phrase again")
        return self._block


class DevicePool:
    """Keeps GPU memory for the next tensor of the same size, because freeing memory stops the GPU.

    Attributes:
        spare: unused memory by size. Any thread may add to it, by deleting a tensor.
        closed: whether the memory was freed.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.closed = cuda, False
        self.spare: dict[int, list[_Block]] = defaultdict(list)

    def tensor(self, shape: tuple[int, ...], dtype: str, stream: Any) -> DeviceTensor:
        """Return a tensor whose memory ``stream`` may write from now on."""
        size = aligned(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        spare = self.spare[size]
        block = spare.pop() if spare else _Block(self.cuda.allocate(size), size, self.cuda.event())
        tensor = DeviceTensor(self, block, shape, np.dtype(dtype))
        tensor.wait(stream)  # another stream may still be writing the previous tensor
        return tensor


class Staging:
    """Pinned host memory with one buffer per name, of twice the size when it is too small."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._buffers: dict[str, tuple[int, npt.NDArray[np.uint8], Any]] = {}

    def upload(self, name: str, array: npt.NDArray[Any], device: int, stream: Any) -> None:
        """Enqueue a copy of an array to the GPU. The array may change after the call."""
        source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        address, view, used = self._buffer(f"in {name}", source.size)
        self._cuda.call("cudaEventSynchronize", used)
        view[: source.size] = source
        self._cuda.copy(device, address, source.size, "HostToDevice", stream)
        self._cuda.call("cudaEventRecord", used, stream)

    def download(self, name: str, tensor: DeviceTensor, shape: tuple[int, ...], stream: Any) -> Callable[[], Any]:
        """Enqueue a copy of a tensor's first elements; return a function that returns them once the stream is done."""
        size = int(np.prod(shape)) * tensor.dtype.itemsize
        address, view, _ = self._buffer(f"out {name}", size)
        self._cuda.copy(address, tensor.address, size, "DeviceToHost", stream)
        return lambda: view[:size].view(tensor.dtype).reshape(shape).copy()

    def _buffer(self, name: str, size_bytes: int) -> tuple[int, npt.NDArray[np.uint8], Any]:
        if name not in self._buffers or self._buffers[name][1].size < size_bytes:
            # A smaller one is freed with the rest: work on it may not be done.
            address, view = self._cuda.pin(1 << max(8, (size_bytes - 1).bit_length()))
            self._buffers[name] = address, view, self._cuda.event()
        return self._buffers[name]
