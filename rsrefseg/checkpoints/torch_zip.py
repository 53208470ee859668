"""PyTorch's own checkpoint format, read without trust: no code runs and memory stays in proportion to the file."""

import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from rsrefseg.engines.errors import BadInputError

ZIP_MAGIC = b"PK\x03\x04"
# The pickle holds names and sizes only; that of a 1,600-tensor RSRefSeg has 0.2 MiB and 60,000 opcodes.
MAX_PICKLE_BYTES = 16 << 20
MAX_PICKLE_OPCODES = 2_000_000
_END_OF_ZIP = b"PK\x05\x06"
_END_OF_ZIP_BYTES = 22
# What a state dict needs. PyTorch's own list is longer: it has `bytearray`, which takes any amount of memory.
_ALLOWED = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch Size",
        "torch device",
        "torch.storage UntypedStorage",
        *(f"torch {kind}Storage" for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char")),
        *(f"torch {kind}Storage" for kind in ("Byte", "Bool")),
        *(f"torch {kind}" for kind in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool")),
    }
)
# Other ways to name a global, and whatever calls one with more than its arguments.
_FORBIDDEN_OPCODES = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"})


def load_torch_zip(path: Path) -> Any:
    """The object in a file that ``torch.save`` wrote (PyTorch 1.6 or later), its tensors mapped, not read.

    Raises:
        BadInputError: the file is cut off, holds code, or asks for more memory than its own size.
    """
    try:
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Mapped storages are slices of the file, so none can be larger than what is there.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except BadInputError:
        raise
    # Damaged archives end in almost any exception (BadZipFile, UnpicklingError, RuntimeError, ValueError, ...).
    except Exception as error:
        reason = next(iter(str(error).split("\n")), "")[:120] or type(error).__name__
        raise BadInputError(f"'{path}' is no whole PyTorch checkpoint ({reason}): download or copy it again") from error


def _check_archive(path: Path) -> None:
    """Refuse an archive that Python and PyTorch could read differently, or that is larger inside than outside."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, size - _END_OF_ZIP_BYTES))
        if not stream.read().startswith(_END_OF_ZIP):
            raise BadInputError(f"'{path}' is no whole PyTorch checkpoint (its end is missing): download it again")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(max(entry.file_size, entry.compress_size) for entry in entries) > size:
            raise BadInputError(f"'{path}' is larger inside than outside, which no PyTorch checkpoint is: refused")
        pickles = [
            entry for entry in entries if entry.filename.count("/") == 1 and entry.filename.endswith("/data.pkl")
        ]
        if len(pickles) != 1:
            raise BadInputError(f"'{path}' is an archive, but no checkpoint that torch.save wrote: give another file")
        if pickles[0].file_size > MAX_PICKLE_BYTES:
            raise BadInputError(f"'{path}' holds far more than tensors: save its state dict alone with torch.save")
        _check_pickle(archive.read(pickles[0]), path)


def _check_pickle(data: bytes, path: Path) -> None:
    """Walk the opcodes without executing them."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name == "GLOBAL" and argument not in _ALLOWED:
            name = str(argument).replace(" ", ".")
            raise BadInputError(
                f"'{path}' holds code or objects ('{name}') besides tensors: refused; save its state dict alone with "
                "torch.save, or as safetensors"
            )
        if opcode.name in _FORBIDDEN_OPCODES or count > MAX_PICKLE_OPCODES:
            raise BadInputError(
                f"'{path}' holds objects besides tensors: refused; save its state dict alone with torch.save, or as "
                "safetensors"
            )
