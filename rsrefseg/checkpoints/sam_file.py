"""SAM's published weights into RSRefSeg, from segment-anything's names or the Hugging Face port's."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rsrefseg.engines.errors import BadInputError

from ..model.config import ModelConfig
from .key_matching import Matches, match
from .sam_names import PROMPT_ENCODING, SHARED_ENCODING, hugging_face_name, join_shared_encoding
from .tensor_files import read_weights

# What a SAM of the Hugging Face port needs of its repository.
SAM_FILES = (("config.json",), ("model.safetensors",))
STAGES = ("sam_encoder.", "sam_decoder.")
# Constants that RSRefSeg computes itself, never part of a SAM file.
OWN_CONSTANTS = ("sam_decoder.position_encoding",)
# The constants of SAM's normalisation, which some re-saved files carry.
_UNUSED = ("pixel_mean", "pixel_std")


def match_sam(path: Path, config: ModelConfig, expected: Mapping[str, Tensor]) -> Matches:
    """Account for every tensor of a SAM file or Hugging Face folder.

    Args:
        path: ``sam_vit_b_01ec64.pth``, the same as safetensors, or the port's file or folder.
        config: of the model to fill.
        expected: that model's state dict; tensors may lie on the meta device.

    Raises:
        BadInputError: the file cannot be read, or is no SAM of this size.
    """
    state = read_weights(path)
    if any(name.startswith("image_encoder.") for name in state):
        layout = _segment_anything_name
    elif any(name.startswith("vision_encoder.") for name in state):
        layout = _port_name
        state = join_shared_encoding(state, SHARED_ENCODING, PROMPT_ENCODING, path)
    else:
        raise BadInputError(
            f"'{path}' is no SAM checkpoint: it has neither segment-anything's names (image_encoder.…) nor the "
            "Hugging Face ones (vision_encoder.…)"
        )
    ours = {name: tensor for name, tensor in expected.items() if name.startswith(STAGES) and name not in OWN_CONSTANTS}
    return match(ours, layout, state, _UNUSED.__contains__, path, f"SAM for preset '{config.preset}'")


def _segment_anything_name(name: str) -> str:
    return name.partition(".")[2]


def _port_name(name: str) -> str:
    return hugging_face_name(_segment_anything_name(name))
