"""Weights, gradients and moments split over the processes (FSDP 2), and whole tensors out of the parts again."""

import os
import warnings

from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rsrefseg.engines.errors import BadInputError, MissingPartError

from ..model.model import RSRefSeg
from .blocks import transformer_blocks
from .config import Precision


def sharding_wanted(precision: str) -> bool:
    """Whether ``accelerate launch`` was told to shard.

    Args:
        precision: as asked for, or as the device decided.

    Raises:
        MissingPartError: it was told to in a way that this training does not offer.
        BadInputError: in an arithmetic that does not go with it.
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise MissingPartError(
            "training runs without DeepSpeed: launch with --multi_gpu (one copy of the model a GPU), or with "
            "--use_fsdp --fsdp_version 2 (one copy over all GPUs)"
        )
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise MissingPartError("training shards by FSDP 2 alone: add --fsdp_version 2 to accelerate launch")
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        raise MissingPartError("sharded training keeps weights on the device: launch without --fsdp_offload_params")
    if precision == Precision.FP16:
        raise BadInputError("--precision fp16 does not go with sharding (--use_fsdp): use bf16 or fp32")
    return True


def shard(model: RSRefSeg) -> None:
    """Split every parameter of ``model`` over the processes, in place, one unit a transformer block.

    Outside of a forward or backward pass every parameter is its part, also after a validation that no backward pass
    follows: checkpoints and the optimizer know parameters by these parts.
    """
    # Masks are views of the decoder's product; nothing here writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in transformer_blocks(model):
        fully_shard(block)
    fully_shard(model, reshard_after_forward=True)


def exchange_gradients(model: nn.Module, exchange: bool) -> None:
    """Whether the next backward pass of a sharded model is followed by an exchange; does nothing for others."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(exchange)


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece. Of a sharded one all processes must ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, target: Tensor) -> Tensor:
    """A copy of a whole tensor on the device of ``target``, and sharded as ``target`` is."""
    tensor = tensor.to(target.device, copy=True)
    if not isinstance(target, DTensor):
        return tensor
    # Every process has read the same file: nothing needs to be sent.
    return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)
