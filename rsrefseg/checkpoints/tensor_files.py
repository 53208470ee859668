"""Reads tensors by name from untrusted weight files and Hugging Face folders."""

import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rsrefseg.engines.errors import BadInputError

from ..data.annotation_files import parse_object, read_text

State = dict[str, Tensor]

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# The pickle contains names and sizes only: 0.2 MiB and 60,000 opcodes for an RSRefSeg of 1,600 tensors.
MAX_PICKLE_BYTES = 16 << 20
_MAX_PICKLE_OPCODES = 2_000_000
_ZIP_START, _ZIP_END, _ZIP_END_BYTES = b"PK\x03\x04", b"PK\x05\x06", 22
_MAX_JSON_BYTES = 16 << 20
# In search order: safetensors first, because it cannot contain code.
_INDEX_SUFFIX = ".index.json"
_FOLDER_FILES = [name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", _INDEX_SUFFIX)]
# How trainers wrap a state dict (DeepSpeed, mmengine, plain loops), and how data-parallel training prefixes its names.
_WRAPPINGS = ("module", "state_dict", "model_state_dict")
_PARALLEL_PREFIX = "module."
# Globals of a state dict. PyTorch's list also has `bytearray`, which can allocate any amount of memory.
_ALLOWED_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch Size|torch device"
    r"|torch\.storage UntypedStorage|torch \w+Storage|torch (b?float|u?int)\d+|torch bool"
)
# Other opcodes that name a global, or that create objects.
_FORBIDDEN_OPCODES = frozenset({"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"})


def read_weights(path: Path) -> State:
    """Read the tensors of a safetensors or PyTorch file, or of a Hugging Face folder, sharded or not, by name.

    The tensors are views of memory-mapped files: only copies of them allocate memory.

    Raises:
        BadInputError: the file is missing, damaged or hostile, or has more than dense tensors.
    """
    files = weight_files(path)
    if len(files) == 1:
        return _plain_state(_read_file(files[0]), files[0])
    file_of = _read_index(files[0])
    state: State = {}
    for file in files[1:]:
        part = _plain_state(_read_file(file), file)
        promised = {name for name, shard in file_of.items() if shard == file.name}
        if different := sorted(promised ^ part.keys()):
            raise BadInputError(f"'{files[0]}' and '{file.name}' disagree about tensor '{different[0]}'")
        state |= part
    return state


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the weight files of ``path``: the file, or a folder's single file, or its index followed by its shards.

    Raises:
        BadInputError: a file is missing.
    """
    if not path.is_dir():
        if not path.is_file():
            raise BadInputError(f"'{path}' does not exist: give a checkpoint or a Hugging Face folder")
        return (path,)
    first = next((path / name for name in _FOLDER_FILES if (path / name).is_file()), None)
    if first is None:
        raise BadInputError(f"no weights in '{path}': it has neither {_FOLDER_FILES[0]} nor {_FOLDER_FILES[2]}")
    if not first.name.endswith(_INDEX_SUFFIX):
        return (first,)
    shards = sorted(set(_read_index(first).values()))
    for name in shards:
        if not (path / name).is_file():
            raise BadInputError(f"'{path}' lacks '{name}', which its {first.name} names: download it again")
    return (first, *(path / name for name in shards))


def read_wrapped(path: Path) -> State:
    """Read the tensors of one file whose state dict may be wrapped and have prefixed names, as trainers save it.

    Raises:
        BadInputError: see ``read_weights``; or the file has two wrapped state dicts.
    """
    document = _read_file(path)
    wrapped = [key for key in _WRAPPINGS if isinstance(document, Mapping) and isinstance(document.get(key), Mapping)]
    if len(wrapped) > 1:
        raise BadInputError(f"'{path}' contains both '{wrapped[0]}' and '{wrapped[1]}': save one of them alone")
    state = _plain_state(document[wrapped[0]] if wrapped else document, path)
    if all(name.startswith(_PARALLEL_PREFIX) for name in state):
        return {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in state.items()}
    return state


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a small JSON file that contains an object.

    Raises:
        BadInputError: the file is missing, too large, or contains something else.
    """
    return parse_object(read_text(path, _MAX_JSON_BYTES), f"'{path}'")


def _read_file(path: Path) -> Any:
    """Load the content of a file with memory-mapped tensors."""
    if not path.is_file():
        raise BadInputError(f"'{path}' does not exist or is not a file: give a .safetensors or .pth file")
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
        if head[8:] == b"{":
            with safe_open(path, framework="pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a mapping)
        if not head.startswith(_ZIP_START):
            raise BadInputError(
                f"'{path}' is neither a safetensors file nor a checkpoint of PyTorch 1.6 or later (bare pickles may "
                "hold code and are refused): download it again, or save its state dict with torch.save"
            )
        _check_archive(path)
        with warnings.catch_warnings(action="ignore"):
            # Mapped storages are slices of the file, so none can be larger than the file.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except BadInputError:
        raise
    # Damaged files raise almost any exception (SafetensorError, BadZipFile, UnpicklingError, RuntimeError, ...).
    except (Exception, SafetensorError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise BadInputError(f"'{path}' cannot be read in full ({reason}): download or copy it again") from error


def _check_archive(path: Path) -> None:
    """Raise BadInputError if a PyTorch file contains more than tensors or unpacks to more than its size."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, size - _ZIP_END_BYTES))
        if not stream.read().startswith(_ZIP_END):  # otherwise Python and PyTorch may read different archives
            raise BadInputError(f"'{path}' is not a complete PyTorch checkpoint (the end is missing): download it")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(max(entry.file_size, entry.compress_size) for entry in entries) > size:
            raise BadInputError(f"'{path}' unpacks to more than its size, which no PyTorch checkpoint does: refused")
        pickles = [entry for entry in entries if re.fullmatch(r"[^/]+/data\.pkl", entry.filename)]
        if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
            raise BadInputError(f"'{path}' is an archive, but not a state dict that torch.save wrote: refused")
        data = archive.read(pickles[0])
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        named = str(argument) if opcode.name == "GLOBAL" else None
        strange = named is not None and not _ALLOWED_GLOBALS.fullmatch(named)
        if strange or opcode.name in _FORBIDDEN_OPCODES or count > _MAX_PICKLE_OPCODES:
            what = f"code or objects ('{named.replace(' ', '.')}')" if named and strange else "objects"
            raise BadInputError(f"'{path}' contains {what} besides tensors: refused; save its state dict alone")


def _read_index(path: Path) -> dict[str, str]:
    file_of = read_json_object(path).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise BadInputError(f"'{path}' has no weight_map: download it again")
    for name in file_of.values():
        if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise BadInputError(f"'{path}' names the shard {name!r}, which is not a file beside it: refused")
    return file_of


def _plain_state(value: Any, path: Path) -> State:
    """Return the entries if all are ordinary dense tensors whose values are all in the file."""
    if not isinstance(value, Mapping) or not value:
        raise BadInputError(
            f"'{path}' does not contain a state dict but {type(value).__name__}: save the state dict alone"
        )
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise BadInputError(f"'{path}': entry {str(name)[:80]!r} is not a tensor but {kind}: save tensors alone")
        ordinary = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        # A tensor larger than its storage repeats values, and a copy of it may need any amount of memory.
        if not ordinary or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            fix = "save it with .contiguous()"
            raise BadInputError(f"'{path}': tensor '{name}' is not an ordinary dense tensor: {fix}")
    return {name: tensor.detach() for name, tensor in value.items()}
