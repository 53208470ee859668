"""A file or Hugging Face folder of weights becomes tensors by name, nothing believed and nothing read in vain."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rsrefseg.engines.errors import BadInputError

from .torch_zip import ZIP_MAGIC, load_torch_zip

State = dict[str, Tensor]

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_JSON_BYTES = 16 << 20
# In the order they are looked for: safetensors first, for it cannot hold code.
_FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INDEX_SUFFIX = ".index.json"
# How trainers wrap a state dict: DeepSpeed, mmengine, plain loops.
_WRAPPINGS = ("module", "state_dict", "model_state_dict")
_PARALLEL_PREFIX = "module."


def read_weights(path: Path) -> State:
    """Tensors by name, in whatever of the two formats: a file, or a Hugging Face folder (sharded or not).

    The tensors are views of mapped files: memory is taken where they are copied.

    Raises:
        BadInputError: there is nothing to read, or it is damaged, hostile or not a plain set of dense tensors.
    """
    if not path.is_dir():
        return _plain_state(_read_file(path), path)
    files = weight_files(path)
    if not files[0].name.endswith(_INDEX_SUFFIX):
        return _plain_state(_read_file(files[0]), files[0])
    homes = _read_index(files[0])
    state: State = {}
    for file in files[1:]:
        part = _plain_state(_read_file(file), file)
        promised = {name for name, home in homes.items() if home == file.name}
        if different := sorted(promised ^ part.keys()):
            raise BadInputError(
                f"'{files[0]}' and '{file.name}' disagree about tensor '{different[0]}': download again"
            )
        state |= part
    return state


def weight_files(path: Path) -> tuple[Path, ...]:
    """The files that hold the weights of ``path``: itself, or a folder's single file, or its index and then its shards.

    Raises:
        BadInputError: there is no such file.
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
    """As ``read_weights`` for one file, the state dict wrapped or not as trainers do.

    Known are a flat dict, ``{"module": ...}`` (DeepSpeed), ``{"state_dict": ...}`` (mmengine) and
    ``{"model_state_dict": ...}``, and the prefix ``module.`` that data-parallel training puts before every name.

    Raises:
        BadInputError: as ``read_weights``; or there are two wrapped state dicts to choose from.
    """
    document = _read_file(path)
    wrapped = [key for key in _WRAPPINGS if isinstance(document, Mapping) and isinstance(document.get(key), Mapping)]
    if len(wrapped) > 1:
        raise BadInputError(f"'{path}' holds both '{wrapped[0]}' and '{wrapped[1]}': save the one that is meant alone")
    state = _plain_state(document[wrapped[0]] if wrapped else document, path)
    if all(name.startswith(_PARALLEL_PREFIX) for name in state):
        return {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in state.items()}
    return state


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        BadInputError: it is missing, too large, or something else.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadInputError(f"'{path}' has more than {MAX_JSON_BYTES >> 20} MiB, which no such file has: refused")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInputError(f"'{path}' cannot be read as JSON ({reason}): download it again") from error
    if not isinstance(value, dict):
        raise BadInputError(f"'{path}' holds no JSON object: download it again")
    return value


def _read_file(path: Path) -> Any:
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise BadInputError(f"'{path}' {kind}: give a .safetensors or .pth file")
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise BadInputError(f"'{path}' cannot be read: {error.strerror}") from error
    if head.startswith(ZIP_MAGIC):
        return load_torch_zip(path)
    if head[8:] == b"{":
        return _read_safetensors(path)
    if head.startswith(b"\x80"):
        raise BadInputError(
            f"'{path}' is a bare pickle, which may hold code: refused; save its state dict with torch.save of "
            "PyTorch 1.6 or later, or as safetensors"
        )
    raise BadInputError(f"'{path}' is neither a safetensors file nor a PyTorch checkpoint: download or copy it again")


def _read_safetensors(path: Path) -> State:
    try:
        with safe_open(path, framework="pt") as stream:
            return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
    # Its reader says most faults by SafetensorError, an unknown dtype by others.
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInputError(f"'{path}' is no whole safetensors file ({reason}): download or copy it again") from error


def _read_index(path: Path) -> dict[str, str]:
    homes = read_json_object(path).get("weight_map")
    if not isinstance(homes, dict) or not homes:
        raise BadInputError(f"'{path}' has no weight_map: download it again")
    for name in homes.values():
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise BadInputError(f"'{path}' names the shard {name!r}, which is no file beside it: refused")
    return homes


def _plain_state(value: Any, path: Path) -> State:
    """Make sure that every entry is an ordinary dense tensor whose numbers are really in the file."""
    if not isinstance(value, Mapping) or not value:
        raise BadInputError(f"'{path}' holds no state dict, but {_kind(value)}: save the state dict alone")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise BadInputError(
                f"'{path}': entry {str(name)[:80]!r} is no tensor but {_kind(tensor)}: save tensors alone"
            )
        ordinary = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        # A tensor that is larger than its storage repeats a few numbers: copying it may take any amount of memory.
        if not ordinary or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise BadInputError(f"'{path}': tensor '{name}' is no ordinary dense tensor: save it with .contiguous()")
    return {name: tensor.detach() for name, tensor in value.items()}


def _kind(value: Any) -> str:
    return "nothing" if value is None or (isinstance(value, Mapping) and not value) else f"a {type(value).__name__}"
