"""Reads and writes weights as safetensors with the model configuration in the header, without pickles.

All readers raise BadInputError if the file is missing, damaged, not written by rsrefseg, or does not fit the model.
"""

import contextlib
import json
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.files import atomic_file, sha256_file

from ..model.config import ModelConfig
from ..model.model import RSRefSeg, build_stage
from .key_matching import Matches, match_own, single_precision

FORMAT = "rsrefseg"
SCHEMA_VERSION = 1
_NO_TENSOR = "\0"  # prefix of no tensor name, to read the header only


@dataclass(frozen=True, slots=True)
class TensorFile:
    """Content of a tensor file: its tensors by name and the JSON of its header."""

    path: Path
    tensors: dict[str, Tensor]
    header: dict[str, Any]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header, atomically.

    Raises:
        RSRefSegError: the disk is full or the file cannot be written.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    document = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **header}
    try:
        with atomic_file(path) as temporary:
            temporary.touch()
            usual_mode = stat.S_IMODE(temporary.stat().st_mode)
            save_file(contiguous, temporary, metadata={FORMAT: json.dumps(document)})
            temporary.chmod(usual_mode)  # safetensors writes files that only the owner can read
    except SafetensorError as error:  # atomic_file reports a full disk
        raise BadInputError(f"'{path}' could not be written ({error}): free space or choose another place") from error


def load_tensors(path: Path, prefix: str = "") -> TensorFile:
    """Read a tensor file of this project; with ``prefix``, only the tensors under it, named without the prefix."""
    if not path.is_file():
        raise BadInputError(f"'{path}' does not exist: give a safetensors file that `rsrefseg train` or `merge` wrote")
    try:
        with safe_open(path, framework="pt") as stream:
            header = json.loads((stream.metadata() or {}).get(FORMAT, "null"))
            names = [name for name in stream.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
            tensors = {name.removeprefix(prefix): stream.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInputError(f"'{path}' is not a complete safetensors file ({error}): copy it again") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise BadInputError(f"'{path}' was not written by rsrefseg: import other checkpoints with `rsrefseg convert`")
    if header.get("schema_version") != SCHEMA_VERSION:
        found = header.get("schema_version")
        raise BadInputError(f"'{path}' has schema version {found}, this release reads {SCHEMA_VERSION}: write it again")
    return TensorFile(path, tensors, header)


def save_model(path: Path, model: RSRefSeg, dtype: torch.dtype | None = None, **header: Any) -> None:
    """Write a model; ``dtype`` converts the floating-point tensors in the file, e.g. to float16."""
    tensors = model.state_dict()
    if dtype is not None:
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_tensors(path, tensors, {"config": model.config.to_dict(), **header})


def load_model(path: Path) -> RSRefSeg:
    """Load a model in float32 and eval mode.

    Raises:
        BadInputError: the file is damaged, or its tensors do not fit its configuration.
    """
    return model_from(load_tensors(path))


def model_from(file: TensorFile) -> RSRefSeg:
    """Build the model of a file in float32 and eval mode. Its weights stay mapped from the file until used."""
    model = _empty(config_of(file))
    _take(model, file.tensors, file.path)
    return model


def model_of(config: ModelConfig, matches: Matches) -> RSRefSeg:
    """Build a model of the tensors of another file, in eval mode. Float32 tensors are not copied.

    Raises:
        BadInputError: a tensor has a value that is not finite in float32.
    """
    model = _empty(config)
    # The model has further tensors that follow from these.
    model.load_state_dict({**model.state_dict(), **dict(single_precision(matches))}, assign=True)
    model.refresh_position_encodings()
    return model


def load_stage(path: Path, stage: Stage) -> nn.Module:
    """Load one stage of a model in float32 and eval mode, without reading the other stages."""
    file = load_tensors(path, f"{stage}.")
    config = config_of(file)
    with _without_weights():
        module = build_stage(stage, config).eval()
    _take(module, file.tensors, path)
    return module


def config_of(file: TensorFile) -> ModelConfig:
    """Return the configuration in the header of a model file."""
    if "config" not in file.header:
        raise BadInputError(f"'{file.path}' contains part of a model: run `rsrefseg merge` and give its result")
    try:
        return ModelConfig.from_dict(file.header["config"])
    except BadInputError as error:
        raise BadInputError(f"the configuration in '{file.path}' is damaged: {error}") from error


def read_config(path: Path) -> ModelConfig:
    """Return the configuration of a model file without reading its tensors."""
    return config_of(load_tensors(path, _NO_TENSOR))


def _empty(config: ModelConfig) -> RSRefSeg:
    with _without_weights():
        return RSRefSeg(config).eval()


@contextlib.contextmanager
def _without_weights() -> Iterator[None]:
    """Build modules without allocating parameters: initialising them takes longer than reading the weights."""
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        yield


def _take(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Assign tensors as the weights of a model, in float32."""
    match_own(model.state_dict(), tensors, path)
    single = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model.load_state_dict(single, assign=True)


def is_random(path: Path) -> bool:
    """Return whether a model file is marked as having random weights; false for any other file."""
    try:
        return load_tensors(path, _NO_TENSOR).header.get("random_weights") is True
    except BadInputError:
        return False


def digest(path: Path) -> str:
    """Return the SHA-256 of a checkpoint file as a hex string, as manifests and run records store it."""
    try:
        return sha256_file(path)
    except OSError as error:
        raise BadInputError(f"'{path}' cannot be read: {error.strerror}") from error
