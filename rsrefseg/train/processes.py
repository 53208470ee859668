"""Processes of a distributed training and values that they share."""

from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from rsrefseg.engines.errors import MissingPartError

_Value = TypeVar("_Value")


def this_process() -> PartialState:
    """Return the state of this process, on the kind of device that ``Accelerator`` selects."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def refuse_sharding() -> None:
    """Raise MissingPartError if ``accelerate`` is configured to shard the model."""
    if any(parse_flag_from_env(f"ACCELERATE_USE_{name}") for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM")):
        raise MissingPartError("training keeps the whole model on each GPU: launch with --multi_gpu and no sharding")


def agreed(value: _Value) -> _Value:
    """Return the main process's ``value`` in all processes."""
    values = [value]
    if this_process().num_processes > 1:
        broadcast_object_list(values)
    return values[0]


def gathered(values: list[_Value]) -> list[_Value]:
    """Return the concatenated ``values`` of all processes in all processes."""
    everyone: list[_Value] = gather_object(values)
    return everyone
