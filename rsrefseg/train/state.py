"""Stores the state of a training in a safetensors file: weights, optimizer moments and position.

The state has no random number generators, because every batch is seeded (see ``trainer``).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsrefseg.engines.errors import BadInputError

from ..checkpoints.model_file import load_tensors, save_tensors
from ..runs.trained import load_trained_state, trained_state

_WEIGHT, _OPTIMIZER = "weight.", "optimizer."


@dataclass(frozen=True, slots=True)
class Position:
    """Position in a training: ``epoch`` and ``batch`` are the next ones, ``step`` counts finished steps."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_giou: float = -1.0


def save_training_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    scaler: dict[str, Any] | None,
) -> None:
    """Write the state for exact resuming, atomically; ``scaler`` is the state of the gradient scaler, if any."""
    tensors = {_WEIGHT + name: tensor for name, tensor in trained_state(model).items()}
    for name, parameter in _optimized(model, optimizer).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{_OPTIMIZER}{key}.{name}"] = value
    save_tensors(path, tensors, {"position": asdict(position), "scaler": scaler})


def load_training_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Position, dict[str, Any] | None]:
    """Load a saved state into model and optimizer.

    Returns:
        The position to continue from, and the state of the gradient scaler, if any.

    Raises:
        BadInputError: the file is damaged or belongs to another model.
    """
    file = load_tensors(path)
    try:
        position, scaler = Position(**file.header["position"]), file.header["scaler"]
    except (KeyError, TypeError) as error:
        raise BadInputError(f"'{path}' is not a training state") from error
    load_trained_state(model, _under(_WEIGHT, file.tensors), path)
    parameters = _optimized(model, optimizer)
    for name, tensor in _under(_OPTIMIZER, file.tensors).items():
        key, _, parameter_name = name.partition(".")
        if parameter_name not in parameters:
            raise BadInputError(f"'{path}' has the unknown tensor '{parameter_name}': it belongs to another model")
        parameter = parameters[parameter_name]
        # Copied, because the tensors may be mapped from the file. AdamW keeps step counts on the CPU.
        device = tensor.device if key == "step" else parameter.device
        optimizer.state[parameter][key] = tensor.to(device, copy=True)
    return position, scaler


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimized(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in held}
