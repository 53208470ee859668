"""Maps SAM's published weights to RSRefSeg, from the names of segment-anything or of its Hugging Face port."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from msgspec.structs import replace
from torch import Tensor

from rsrefseg.engines.errors import BadInputError

from ..model.config import ModelConfig, SamConfig
from .key_matching import Matches, match
from .tensor_files import State, read_weights

# Files that a SAM of the Hugging Face port needs from its repository.
SAM_FILES = (("config.json",), ("model.safetensors",))
# Constants that RSRefSeg computes; no SAM file contains them.
OWN_CONSTANTS = ("sam_decoder.position_encoding",)

_BLOCKS = ("image_encoder.blocks.", "vision_encoder.layers.")
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
    is_port = _is_port(state, path)
    if is_port:
        state = join_shared_encoding(state, _SHARED, _OTHER, path)

    def source_name(name: str) -> str:
        published = name.partition(".")[2]
        return hugging_face_name(published) if is_port else published

    ours = {name: tensor for name, tensor in expected.items() if name.startswith(_STAGES) and name not in OWN_CONSTANTS}
    return match(ours, source_name, state, _UNUSED.__contains__, path, f"SAM for preset '{config.preset}'")


def read_sam(path: Path, known: SamConfig) -> SamConfig:
    """Return the sizes of a SAM (ViT-B, -L, -H or any other) from the shapes of its tensors.

    No shape shows the decoder's heads and epsilon: they are SAM's own, or those of ``known`` if all shapes fit it.

    Raises:
        BadInputError: the file cannot be read or is not a SAM.
    """
    state = read_weights(path)
    is_port = _is_port(state, path)

    def shape(name: str) -> tuple[int, ...]:
        name = hugging_face_name(name) if is_port else name
        if name not in state:
            raise BadInputError(f"'{path}' misses tensor '{name}': it is not a SAM checkpoint")
        return tuple(state[name].shape)

    depth = len({name.split(".")[2] for name in state if name.startswith(_BLOCKS)})
    embed_dim, _, _, patch_size = shape("image_encoder.patch_embed.proj.weight")
    grid_size = shape("image_encoder.pos_embed")[1]
    # A block over windows of side w has 2 w - 1 relative positions along each axis.
    positions = [shape(f"image_encoder.blocks.{block}.attn.rel_pos_h") for block in range(depth)]
    windows = [(rows + 1) // 2 for rows, _ in positions]
    try:
        found = SamConfig(
            image_size=grid_size * patch_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=embed_dim // positions[0][1],
            global_attn_indexes=tuple(block for block, window in enumerate(windows) if window == grid_size),
            window_size=next((window for window in windows if window != grid_size), known.window_size),
            prompt_channels=shape("image_encoder.neck.0.weight")[0],
            decoder_mlp_dim=shape("mask_decoder.transformer.layers.0.mlp.lin1.weight")[0],
        )
    except (IndexError, ZeroDivisionError) as error:
        raise BadInputError(f"'{path}' is not a SAM checkpoint: it has no blocks of an image encoder") from error
    hidden = {name: getattr(known, name) for name in ("decoder_num_heads", "decoder_norm_epsilon")}
    return known if replace(found, **hidden) == known else found


def _is_port(state: State, path: Path) -> bool:
    """Return whether a SAM has the names of the Hugging Face port."""
    if any(name.startswith("vision_encoder.") for name in state):
        return True
    if not any(name.startswith("image_encoder.") for name in state):
        raise BadInputError(
            f"'{path}' is not a SAM checkpoint: it has neither segment-anything's names (image_encoder.…) nor the "
            "Hugging Face ones (vision_encoder.…)"
        )
    return False


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
