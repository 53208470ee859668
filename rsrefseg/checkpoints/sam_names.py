"""SAM's tensors under the names of segment-anything (which are ours) and of the Hugging Face port."""

import re
from pathlib import Path

import torch

from rsrefseg.engines.errors import BadInputError

from .tensor_files import State

# The matrix of SAM's positional encoding: one in segment-anything, shared under two names in the port.
SHARED_ENCODING = "shared_image_embedding.positional_embedding"
PROMPT_ENCODING = "prompt_encoder.shared_embedding.positional_embedding"

_NECK = {"0": "conv1", "1": "layer_norm1", "2": "conv2", "3": "layer_norm2"}
_MASK_INPUT = {"0": "conv1", "1": "layer_norm1", "3": "conv2", "4": "layer_norm2", "6": "conv3"}
_UPSCALING = {"0": "upscale_conv1", "1": "upscale_layer_norm", "3": "upscale_conv2"}
_MLP = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}


def hugging_face_name(name: str) -> str:
    """The port's name of a segment-anything tensor (``image_encoder.…``, ``prompt_encoder.…``, ``mask_decoder.…``)."""
    if name == "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix":
        return SHARED_ENCODING
    stage, _, rest = name.partition(".")
    if stage == "image_encoder":
        rest = rest.replace("patch_embed.proj.", "patch_embed.projection.").replace("blocks.", "layers.")
        rest = re.sub(r"^(layers\.\d+\.)norm(\d)", r"\1layer_norm\2", rest)
        rest = re.sub(r"^neck\.(\d)", lambda found: f"neck.{_NECK[found[1]]}", rest)
        return f"vision_encoder.{rest}"
    if stage == "prompt_encoder":
        rest = rest.replace("point_embeddings.", "point_embed.")
        rest = re.sub(r"^mask_downscaling\.(\d)", lambda found: f"mask_embed.{_MASK_INPUT[found[1]]}", rest)
        return f"prompt_encoder.{rest}"
    rest = re.sub(r"^(transformer\.(layers\.\d+\.)?)norm", r"\1layer_norm", rest)
    rest = re.sub(r"^output_upscaling\.(\d)", lambda found: _UPSCALING[found[1]], rest)
    rest = re.sub(
        r"^(output_hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.(\d)",
        lambda found: f"{found[1]}.{_MLP[found[2]]}",
        rest,
    )
    return f"mask_decoder.{rest}"


def join_shared_encoding(state: State, shared: str, other: str, path: Path) -> State:
    """``state`` with the positional encoding under ``shared`` alone; savers keep one of its two names or both.

    Raises:
        BadInputError: both are there and differ, which no SAM has.
    """
    if other not in state:
        return state
    rest = {name: tensor for name, tensor in state.items() if name != other}
    if shared not in state:
        return rest | {shared: state[other]}
    if not torch.equal(state[shared], state[other]):
        raise BadInputError(f"'{path}': '{shared}' and '{other}' differ; they are one positional encoding in SAM")
    return rest
