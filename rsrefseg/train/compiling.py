"""``torch.compile`` for the transformer blocks of a training."""

import torch

from rsrefseg.engines.errors import MissingPartError

from ..model.model import RSRefSeg
from .checkpointing import transformer_blocks

# Kinds of blocks (windowed or global, of each width, first or not) times shapes (all batches but the last, the last).
_MOST_VARIANTS = 64


def check_compiler(device: torch.device) -> None:
    """Compile a small function, which needs a C++ compiler on a CPU, and Triton and a C compiler on a GPU.

    Raises:
        MissingPartError: ``torch.compile`` cannot compile for the device here.
    """
    try:
        torch.compile(torch.exp)(torch.ones(8, device=device))
    except Exception as error:  # errors of compilers share no base but Exception
        cause = " ".join(str(error).partition("\n\n")[0].split())
        raise MissingPartError(
            f"--compile: torch.compile does not work here ({cause}): install a C++ compiler such as g++, or leave "
            "--compile out"
        ) from error


def compile_blocks(model: RSRefSeg) -> None:
    """Compile the blocks of both SigLIP towers and of SAM's image encoder in their first runs, in place.

    Names of parameters stay the same. Blocks of one kind share their compiled code, so that compiling takes as long for
    deep towers as for shallow ones. Dropout draws other numbers than without compilation.
    """
    torch._dynamo.config.recompile_limit = _MOST_VARIANTS
    for block in transformer_blocks(model):
        block.forward = torch.compile(block.forward)
