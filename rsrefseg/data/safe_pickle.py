"""Reads pickles of plain values and nothing else: no code runs, whatever the file holds."""

import io
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rsrefseg.engines.errors import BadInputError

from .annotation_files import read_bytes

# 50,000 expressions in two languages, each word a string of its own, take about 50 MB and 3 million objects.
MAX_PICKLE_BYTES = 256 << 20
# A byte of pickle can become an object of a hundred bytes: this many fit in a few hundred MB.
MAX_PICKLE_OBJECTS = 8_000_000
_MEMO_WRITERS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
# They name objects that are there already.
_MEMO_OPCODES = _MEMO_WRITERS | {"MEMOIZE", "GET", "BINGET", "LONG_BINGET"}

# The codes of numpy's integers and floats, and struct's.
_NUMBER_FORMATS = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
_NUMBER_FORMATS |= {"f2": "e", "f4": "f", "f8": "d"}


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle of None, bools, numbers (numpy's integers and floats too), strings, bytes, lists, tuples, dicts.

    Raises:
        BadInputError: the file names any other global (that is: code), is cut off or corrupt, or asks for more memory
            than such a file needs.
    """
    data = read_bytes(path, MAX_PICKLE_BYTES)
    try:
        _check_appetite(data, path)
        return _PlainUnpickler(data, path).load()
    except BadInputError:
        raise
    # Corrupt opcodes end in almost any exception (UnpicklingError, EOFError, ValueError, IndexError, ...).
    except Exception as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise BadInputError(f"'{path}' is cut off or corrupt ({reason}): download it again") from error


class _Dtype:
    """Stands for ``numpy.dtype`` of one integer or float."""

    def __init__(self, code: str, *flags: Any) -> None:
        if code not in _NUMBER_FORMATS:
            raise ValueError(f"a numpy {code!r} is neither an integer nor a float")
        self.format = _NUMBER_FORMATS[code]
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(dtype: _Dtype, data: bytes) -> int | float:
    """Stands for numpy's function of this name: a Python number."""
    number: int | float = struct.unpack(f"{dtype.order}{dtype.format}", data)[0]
    return number


def _encode(text: str, encoding: str) -> bytes:
    """Stands for ``_codecs.encode``, as which protocols up to 2 write bytes."""
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
    """Refuses every persistent id, and every global but what numpy's numbers are written with."""

    def __init__(self, data: bytes, path: Path) -> None:
        # Strings of Python 2 pickles are bytes: read them as text, and let one odd byte not cost the data set.
        super().__init__(io.BytesIO(data), encoding="utf-8", errors="replace")
        self._path = path

    def find_class(self, module_name: str, global_name: str) -> Any:
        known = _NUMPY_NUMBERS.get((module_name, global_name))
        if known is None:
            raise BadInputError(f"'{self._path}' contains code ({module_name}.{global_name}): refused")
        # Of its own for every load: what the file sets on it ends with it.
        return lambda *arguments: known(*arguments)

    def persistent_load(self, pid: Any) -> Any:
        raise BadInputError(f"'{self._path}' contains a persistent id, which annotations never have: refused")


def _check_appetite(data: bytes, path: Path) -> None:
    """Walk the opcodes without executing them and refuse what would take memory out of proportion to the file.

    The memo is the worst: the C unpickler makes room for the largest index it sees, so six bytes can ask for 32 GiB.
    """
    objects = 0
    for opcodes, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        memo = opcode.name in _MEMO_OPCODES
        objects += not memo
        wild_index = memo and isinstance(argument, int) and argument > opcodes and opcode.name in _MEMO_WRITERS
        if wild_index or objects > MAX_PICKLE_OBJECTS:
            raise BadInputError(f"'{path}' asks for far more memory than annotations need: refused")
