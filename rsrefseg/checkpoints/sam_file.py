"""Maps SAM's published weights to RSRefSeg, from the names of segment-anything or of its Hugging Face port."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rsrefseg.engines.errors import BadInputError

from ..model.config import ModelConfig
from .key_matching import Matches, match
from .tensor_files import State, read_weights

# Files that a SAM of the Hugging Face port needs from its repository.
SAM_FILES = (("config.json",), ("model.safetensors",))
# Constants that RSRefSeg computes; no SAM file contains them.
OWN_CONSTANTS = ("sam_decoder.position_encoding",)

_STAGES = ("sam_encoder.", "sam_decoder.")
# Constants of SAM's normalisation, which some re-saved files contain.
_UNUSED = ("pixel_mean", "pixel_std")
# Matrix of SAM's positional encoding: one name in segment-anything, two names in the port.
_SHARED = "shared_image_embedding.positional_embedding"
_OTHER = "prompt_encoder.shared_embedding.positional_embedding"
# From segment-anything's names to the port's, applied in this order.
_PORT_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", _SHARED),
        (r"^image_encoder\.patch_embed\.proj\.", "image_encoder.patch_embed.projection."),
        (r"^(image_encoder\.)blocks\.", r"\1layers."),
        (r"^(image_encoder\.layers\.\d+\.)norm(\d)", r"\1layer_norm\2"),
        (r"^(image_encoder\.neck\.)0", r"\1conv1"),
        (r"^(image_encoder\.neck\.)1", r"\1layer_norm1"),
        (r"^(image_encoder\.neck\.)2", r"\1conv2"),
        (r"^(image_encoder\.neck\.)3", r"\1layer_norm2"),
        (r"^image_encoder\.", "vision_encoder."),
        (r"^(prompt_encoder\.)point_embeddings\.", r"\1point_embed."),
        (r"^(prompt_encoder\.)mask_downscaling\.0", r"\1mask_embed.conv1"),
        (r"^(prompt_encoder\.)mask_downscaling\.1", r"\1mask_embed.layer_norm1"),
        (r"^(prompt_encoder\.)mask_downscaling\.3", r"\1mask_embed.conv2"),
        (r"^(prompt_encoder\.)mask_downscaling\.4", r"\1mask_embed.layer_norm2"),
        (r"^(prompt_encoder\.)mask_downscaling\.6", r"\1mask_embed.conv3"),
        (r"^(mask_decoder\.transformer\.(layers\.\d+\.)?)norm", r"\1layer_norm"),
        (r"^(mask_decoder\.)output_upscaling\.0", r"\1upscale_conv1"),
        (r"^(mask_decoder\.)output_upscaling\.1", r"\1upscale_layer_norm"),
        (r"^(mask_decoder\.)output_upscaling\.3", r"\1upscale_conv2"),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head)\.)layers\.0", r"\1proj_in"),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head)\.)layers\.1", r"\1layers.0"),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d|iou_prediction_head)\.)layers\.2", r"\1proj_out"),
    )
)


def match_sam(path: Path, config: ModelConfig, expected: Mapping[str, Tensor]) -> Matches:
    """Match every tensor of a SAM file or Hugging Face folder.

    ``path`` is ``sam_vit_b_01ec64.pth``, a safetensors copy of it, or the port's file or folder. ``expected`` is the
    state dict of a model of this ``config``; its tensors may be on the meta device.

    Raises:
        BadInputError: the file cannot be read, or is not a SAM of this size.
    """
    state = read_weights(path)
    is_port = any(name.startswith("vision_encoder.") for name in state)
    if is_port:
        state = join_shared_encoding(state, _SHARED, _OTHER, path)
    elif not any(name.startswith("image_encoder.") for name in state):
        raise BadInputError(
            f"'{path}' is not a SAM checkpoint: it has neither segment-anything's names (image_encoder.…) nor the "
            "Hugging Face ones (vision_encoder.…)"
        )

    def source_name(name: str) -> str:
        published = name.partition(".")[2]
        return hugging_face_name(published) if is_port else published

    ours = {name: tensor for name, tensor in expected.items() if name.startswith(_STAGES) and name not in OWN_CONSTANTS}
    return match(ours, source_name, state, _UNUSED.__contains__, path, f"SAM for preset '{config.preset}'")


def hugging_face_name(name: str) -> str:
    """Return the port's name of a segment-anything tensor (``image_encoder.…``, ``prompt_encoder.…``, …)."""
    for pattern, replacement in _PORT_NAMES:
        name = pattern.sub(replacement, name)
    return name


def join_shared_encoding(state: State, shared: str, other: str, path: Path) -> State:
    """Return ``state`` with the positional encoding under ``shared`` only; files have one of the two names or both.

    Raises:
        BadInputError: the tensors under both names differ.
    """
    if other not in state:
        return state
    rest = {name: tensor for name, tensor in state.items() if name != other}
    if shared not in state:
        return rest | {shared: state[other]}
    if not torch.equal(state[shared], state[other]):
        raise BadInputError(f"'{path}': '{shared}' and '{other}' differ; they are one positional encoding in SAM")
    return rest
