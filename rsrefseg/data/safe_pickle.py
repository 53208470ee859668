"""Reads pickles of plain values only: no code of the file runs."""

import io
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError

from .annotation_files import read_bytes

# 270,000 expressions (RemoteSAM-270K), with one string per word, take about 110 MB and 9 million objects.
MAX_PICKLE_BYTES = 256 << 20
# One byte of pickle can create an object of about 80 bytes: this many fit in 1.3 GB.
MAX_PICKLE_OBJECTS = 16_000_000
_MEMO_WRITERS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
# Opcodes that refer to existing objects.
_MEMO_OPCODES = _MEMO_WRITERS | {"MEMOIZE", "GET", "BINGET", "LONG_BINGET"}

# Codes of numpy's integers and floats, and the matching formats of struct.
_NUMBER_FORMATS = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
_NUMBER_FORMATS |= {"f2": "e", "f4": "f", "f8": "d"}


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle of None, bools, numbers (also of numpy), strings, bytes, lists, tuples and dicts.

    Raises:
        BadInputError: the file names any other global (that is, code), is cut off or corrupt, or requests more memory
            than such a file needs.
    """
    data = read_bytes(path, MAX_PICKLE_BYTES)
    try:
        _check_memory(data, path)
        return _PlainUnpickler(data, path).load()
    except BadInputError:
        raise
    # Corrupt opcodes raise almost any exception (UnpicklingError, EOFError, ValueError, IndexError, ...).
    except Exception as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise BadInputError(f"'{path}' is cut off or corrupt ({reason}): download it again") from error


class _Dtype:
    """Replaces ``numpy.dtype`` of an integer or float."""

    def __init__(self, code: str, *flags: Any) -> None:
        if code not in _NUMBER_FORMATS:
            raise ValueError(f"a numpy {code!r} is neither an integer nor a float")
        self.format = _NUMBER_FORMATS[code]
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(dtype: _Dtype, data: bytes) -> int | float:
    """Replaces numpy's function ``scalar`` and returns a Python number."""
    number: int | float = struct.unpack(f"{dtype.order}{dtype.format}", data)[0]
    return number


def _encode(text: str, encoding: str) -> bytes:
    """Replaces ``_codecs.encode``, which protocols up to 2 use for bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin1")


_NUMPY_NUMBERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encode,
}


class _PlainUnpickler(pickle.Unpickler):
    """Rejects persistent ids and all globals except those of numpy's numbers."""

    def __init__(self, data: bytes, path: Path) -> None:
        # Strings of Python 2 pickles are bytes: they are read as text, and invalid bytes are replaced.
        super().__init__(io.BytesIO(data), encoding="utf-8", errors="replace")
        self._path = path

    def find_class(self, module_name: str, global_name: str) -> Any:
        known = _NUMPY_NUMBERS.get((module_name, global_name))
        if known is None:
            raise BadInputError(f"'{self._path}' contains code ({module_name}.{global_name}): refused")
        # A new function for every load, so that attributes set by the file do not persist.
        return lambda *arguments: known(*arguments)

    def persistent_load(self, pid: Any) -> Any:
        raise BadInputError(f"'{self._path}' contains a persistent id, which annotations never have: refused")


def _check_memory(data: bytes, path: Path) -> None:
    """Check the opcodes, without executing them, for memory requests out of proportion to the file.

    The C unpickler allocates memory for the largest memo index, so that six bytes can request 32 GiB.
    """
    objects = 0
    for opcodes, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        memo = opcode.name in _MEMO_OPCODES
        objects += not memo
        wild_index = memo and isinstance(argument, int) and argument > opcodes and opcode.name in _MEMO_WRITERS
        if wild_index or objects > MAX_PICKLE_OBJECTS:
            raise BadInputError(f"'{path}' requests far more memory than annotations need: refused")
