"""The processes of one training: which one this is, and one answer for all of them."""

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env


def this_process() -> PartialState:
    """This process's place among those of the training, on the device kind that training will choose."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator itself decides


def agreed(choice: str) -> str:
    """The main process's ``choice``, for all of them: what one sees on the disk, another may have written already."""
    choices = [choice]
    if this_process().num_processes > 1:
        broadcast_object_list(choices)
    return choices[0]
