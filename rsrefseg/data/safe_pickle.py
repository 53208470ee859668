"""Reads pickles of plain values and nothing else: no code runs, whatever the file holds."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from rsrefseg.engines.errors import BadInputError

# 50,000 expressions in two languages, each word a string of its own, take about 50 MB and 3 million objects.
MAX_PICKLE_BYTES = 256 << 20
# A byte of pickle can become an object of a hundred bytes: this many fit in a few hundred MB.
MAX_PICKLE_OBJECTS = 8_000_000
_MEMO_WRITERS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
# They name objects that are there already.
_MEMO_OPCODES = _MEMO_WRITERS | {"MEMOIZE", "GET", "BINGET", "LONG_BINGET"}


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle of built-in values: None, bools, numbers, strings, bytes, lists, tuples, dicts.

    Raises:
        BadInputError: the file names a global (that is: code), is cut off or corrupt, or asks for more memory than
            such a file needs.
    """
    try:
        size = path.stat().st_size
        if size > MAX_PICKLE_BYTES:
            raise BadInputError(f"'{path}' has {size >> 20} MiB; annotations may have {MAX_PICKLE_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise BadInputError(f"cannot read '{path}': {error.strerror or error}") from error
    try:
        _check_appetite(data, path)
        return _PlainUnpickler(data, path).load()
    except BadInputError:
        raise
    # Corrupt opcodes end in almost any exception (UnpicklingError, EOFError, ValueError, IndexError, ...).
    except Exception as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise BadInputError(f"'{path}' is cut off or corrupt ({reason}): download it again") from error


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every global and every persistent id."""

    def __init__(self, data: bytes, path: Path) -> None:
        # Strings of Python 2 pickles are bytes: read them as text, and let one odd byte not cost the data set.
        super().__init__(io.BytesIO(data), encoding="utf-8", errors="replace")
        self._path = path

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise BadInputError(f"'{self._path}' contains code ({module_name}.{global_name}): refused")

    def persistent_load(self, pid: Any) -> NoReturn:
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
