"""The public RSRefSeg layout: whose tensor is whose, under peft's wrappers and the Hugging Face names of SAM.

Derived from how that model is put together (its wrappers name what they hold ``model``); with adapters merged or not.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rsrefseg.engines.errors import BadInputError

from ..model.config import ModelConfig, Preset, model_config
from . import siglip_folder
from .adapters import fold_adapters
from .key_matching import Matches, match
from .sam_file import OWN_CONSTANTS
from .sam_names import hugging_face_name, join_shared_encoding
from .tensor_files import State

# peft puts this behind the module it wraps; merging removes it.
_PEFT = re.compile(r"^(backbone|clip_vision_encoder|clip_text_encoder)\.base_model\.model\.")
# Adapted layers keep their own weights under this name until they are merged.
_BASE_LAYER = ".base_layer."
# Older releases of transformers have one more level in each SigLIP tower.
_TOWER = re.compile(r"^(clip_(?:vision|text)_encoder\.model)\.(?:vision|text)_model\.")
_SHARED = "backbone.shared_image_embedding.positional_embedding"
_OTHER = "sam_prompt_encoder.model.shared_embedding.positional_embedding"
_CONSTANTS = (*OWN_CONSTANTS, "attn_prompter.grid_encoding")
_PATCHES = "backbone.model.patch_embed.projection.weight"


@dataclass(frozen=True, slots=True)
class PublishedCheckpoint:
    """A public checkpoint in plain names: adapters folded, wrappers gone."""

    path: Path
    tensors: State
    adapters: int


def plain_checkpoint(state: State, alpha: float | None, path: Path) -> PublishedCheckpoint:
    """Take peft's wrappers off and fold the adapters.

    Raises:
        BadInputError: two tensors come out under one name, or an adapter cannot be folded.
    """
    plain: State = {}
    for name, tensor in state.items():
        short = _TOWER.sub(r"\1.", _PEFT.sub(r"\1.", name).replace(_BASE_LAYER, "."))
        if short in plain:
            raise BadInputError(f"'{path}' holds '{short}' twice, wrapped and plain: save the model once more")
        plain[short] = tensor
    # The adapter of a part that is left out is left out with it.
    unused = {name: tensor for name, tensor in plain.items() if _is_left_out(name)}
    folded = fold_adapters({name: tensor for name, tensor in plain.items() if name not in unused}, alpha, path)
    tensors = folded.tensors
    # Only points and boxes read the prompt encoder's own copy, so nothing kept the two alike.
    if _SHARED not in tensors or _OTHER not in tensors or torch.equal(tensors[_SHARED], tensors[_OTHER]):
        tensors = join_shared_encoding(tensors, _SHARED, _OTHER, path)
    return PublishedCheckpoint(path, tensors | unused, folded.adapters)


def match_published(checkpoint: PublishedCheckpoint, config: ModelConfig, expected: Mapping[str, Tensor]) -> Matches:
    """Account for every tensor of a public checkpoint.

    Raises:
        BadInputError: names what is missing, surplus or misshapen.
    """
    ours = {name: tensor for name, tensor in expected.items() if name not in _CONSTANTS}
    what = f"RSRefSeg of preset '{config.preset}' in the public layout"
    return match(ours, published_name, checkpoint.tensors, is_unused, checkpoint.path, what)


def published_name(name: str) -> str:
    """The public name of one of our tensors."""
    stage, _, rest = name.partition(".")
    if stage in ("sam_encoder", "sam_decoder"):
        port = hugging_face_name(rest)
        for prefix, public in (
            ("vision_encoder.", "backbone.model."),
            ("shared_image_embedding.", "backbone.shared_image_embedding."),
            ("prompt_encoder.", "sam_prompt_encoder.model."),
        ):
            if port.startswith(prefix):
                return public + port.removeprefix(prefix)
        return "sam_mask_decoder.model." + port.removeprefix("mask_decoder.")
    if stage == "siglip_vision":
        return f"clip_vision_encoder.model.{rest}"
    if stage == "siglip_text":
        return f"clip_text_encoder.model.{rest}"
    if rest.startswith("logit_"):
        return f"clip_text_encoder.{rest}"
    return re.sub(r"^prompter_down_spatial\.2\.", "prompter_down_spatial.2.conv.", f"prompter_{rest}")


def is_unused(name: str) -> bool:
    """Whether a plain public name is known and not needed: the vision pooling head, positions, a second encoding."""
    return name == _OTHER or _is_left_out(name)


def _is_left_out(name: str) -> bool:
    for prefix, tower in (("clip_vision_encoder.model.", "vision_model."), ("clip_text_encoder.model.", "text_model.")):
        if name.startswith(prefix):
            return siglip_folder.is_unused(tower + name.removeprefix(prefix))
    return False


def guess_config(checkpoint: PublishedCheckpoint) -> ModelConfig:
    """The preset whose SAM has the width of this one's.

    Raises:
        BadInputError: it has no SAM, or one of another width.
    """
    if _PATCHES not in checkpoint.tensors:
        raise BadInputError(
            f"'{checkpoint.path}' is no RSRefSeg checkpoint in the public layout: it lacks '{_PATCHES}'"
        )
    width = checkpoint.tensors[_PATCHES].shape[:1]
    configs = [model_config(preset) for preset in (Preset.B, Preset.L)]
    for config in configs:
        if tuple(width) == (config.sam.embed_dim,):
            return config
    raise BadInputError(
        f"'{checkpoint.path}' has a SAM of width {tuple(width)}, neither ViT-B nor ViT-L: give --preset"
    )
